"""Which data sets have users who were erased since they were read, and their replacement."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from generator.storage.objects import Store
from generator.storage.postgres import connect
from generator.training.catalog.dataset import storage
from generator.training.catalog.dataset.database import erased_since, read_at
from generator.training.catalog.dataset.erasure import trained_on, users_of, without_users
from generator.training.catalog.dataset.manifest import DatasetManifest, read_manifest
from schemas.settings import Settings


@dataclass(frozen=True)
class _Request:
    """Who is to be taken out (None: who was erased in Postgres), and where trainings are looked for."""

    settings: Settings
    users: Sequence[str] | None
    trainings: Path
    dry_run: bool

    def erased(self, manifest: DatasetManifest) -> tuple[set[str], datetime | None]:
        """The users, and the moment up to which Postgres was asked."""
        if self.users:
            return set(self.users), None
        engine = connect(self.settings.database)
        moment = read_at(engine)
        return set(erased_since(engine, manifest.read_at)), moment


def replace_all(
    settings: Settings, name: str | None, users: Sequence[str] | None, trainings: Path, *, dry_run: bool
) -> Iterator[str]:
    """Replace a data set (a folder or an id), or all in the bucket; a line for each thing that was found.

    A data set in the bucket: the new version is stored, then the old one's bytes are deleted, everywhere that we know of.

    Raises:
        InputError: no such data set.
        Refused: nothing would be left of it.
        ServerUnavailable: S3 or Postgres is away; run it again.
    """
    request = _Request(settings, users, trainings, dry_run)
    if name is not None and Path(name).is_dir():
        yield from _replace_folder(request, Path(name))
        return
    store, cache = Store(settings.s3), settings.state_dir / "cache" / "datasets" / "fetched"
    found = 0
    for one in [one for one in storage.stored_ids(store) if one.startswith(name or "")]:
        found += 1
        folder = storage.fetch(store, one, cache)
        lines = list(_replace_folder(request, folder))
        yield from lines
        if lines and not dry_run:
            storage.upload(store, folder)
            storage.delete(store, one)
            _delete_caches(settings, one, folder)
    if not found:
        yield f"no data set in {store.uri(storage.PREFIX)}"


def _replace_folder(request: _Request, folder: Path) -> Iterator[str]:
    old = read_manifest(folder)
    erased, moment = request.erased(old)
    present = users_of(folder, erased)
    if not present:
        return
    if request.dry_run:
        yield f"data set {old.dataset_id[:12]}: {len(present)} erased user(s) in it"
    else:
        new = without_users(folder, present, moment)
        yield f"data set {old.dataset_id[:12]}: {len(present)} erased user(s) taken out, now {new.dataset_id[:12]}, old bytes deleted"
    for training in trained_on(old.dataset_id, request.trainings):
        yield f"training {training} learned from {old.dataset_id[:12]}, with {len(present)} user(s) erased since"


def _delete_caches(settings: Settings, dataset_id: str, folder: Path) -> None:
    """Indices and fetched copies of the old one on this machine; they have windows of the erased users."""
    shutil.rmtree(settings.state_dir / "cache" / "datasets" / dataset_id, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
