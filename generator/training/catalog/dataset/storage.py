"""Data sets in the bucket, under `datasets/<id>/`; the manifest is stored last."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from generator.storage.objects import Store
from generator.training.catalog.dataset.manifest import (
    MANIFEST,
    PEOPLES_FILES,
    DatasetManifest,
    check_files,
    read_manifest,
)
from schemas.errors import InputError

PREFIX = "datasets/"
MEDIA_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
    ".webp": "image/webp",
    ".md": "text/markdown",
}


def upload(store: Store, folder: Path) -> DatasetManifest:
    """Put a data set into the bucket; what is there already is left as it is.

    Raises:
        ServerUnavailable: S3 is away; again goes on with what is missing.
    """
    manifest = read_manifest(folder)
    prefix = f"{PREFIX}{manifest.dataset_id}/"
    for entry in manifest.files:
        path = folder / entry.path
        store.create_file(prefix + entry.path, path, MEDIA_TYPES[path.suffix], sha256=entry.sha256)
    for name in PEOPLES_FILES:
        if (folder / name).is_file():
            store.put(prefix + name, (folder / name).read_bytes(), MEDIA_TYPES[Path(name).suffix])
    store.put(prefix + MANIFEST, (folder / MANIFEST).read_bytes(), MEDIA_TYPES[".json"])
    return manifest


def stored_ids(store: Store) -> Iterator[str]:
    """Ids of the data sets in the bucket that are whole."""
    for key in store.keys(PREFIX):
        name = key.removeprefix(PREFIX)
        if name.endswith(f"/{MANIFEST}") and name.count("/") == 1:
            yield name.partition("/")[0]


def fetch(store: Store, name: str, cache: Path) -> Path:
    """The folder of a data set in the bucket, whose id begins with `name`; fetched unless it is there.

    Raises:
        InputError: none, or several, have such an id, or what was fetched is not what the manifest says.
    """
    found = sorted(one for one in stored_ids(store) if one.startswith(name))
    if len(found) != 1:
        what = "several" if found else "none"
        raise InputError(f"data set {name!r}: no such folder, and {what} of that id in {store.uri(PREFIX)}")
    folder = cache / found[0]
    # Another id: an erasure that was killed had replaced the copy here, and not yet what is in the bucket.
    if (folder / MANIFEST).is_file() and read_manifest(folder).dataset_id == found[0]:
        return folder
    partial = cache / f"{found[0]}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    prefix = f"{PREFIX}{found[0]}/"
    for key in store.keys(prefix):
        stored = store.get(key)
        if stored is None:
            raise InputError(
                f"data set {found[0]}: {key} vanished while it was read; was it replaced after an erasure?"
            )
        target = partial / key.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(stored.body)
    check_files(partial, read_manifest(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def delete(store: Store, dataset_id: str) -> None:
    """Delete a data set from the bucket, the manifest first, so that nobody begins to read it."""
    prefix = f"{PREFIX}{dataset_id}/"
    store.delete(prefix + MANIFEST)
    for key in list(store.keys(prefix)):
        store.delete(key)
