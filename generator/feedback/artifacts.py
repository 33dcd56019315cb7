"""Adapters as files in S3, under `models/<version>/<hash>/`, checked by that hash when fetched."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from generator.storage.objects import Store
from schemas.errors import ModelError


def folder_sha256(folder: Path) -> str:
    """Hash of a folder's files, by relative path and content.

    Raises:
        ModelError: there is no such folder, or it is empty.
    """
    digest = hashlib.sha256()
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise ModelError(f"{folder}: no files there")
    for path in files:
        digest.update(
            f"{path.relative_to(folder).as_posix()}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


def upload(store: Store, version: str, folder: Path) -> tuple[str, str]:
    """Put an adapter's files into the bucket unless they are there; returns key prefix and hash."""
    sha256 = folder_sha256(folder)
    prefix = f"models/{version}/{sha256[:16]}/"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = prefix + path.relative_to(folder).as_posix()
            store.create(key, path.read_bytes(), "application/octet-stream")
    return prefix, sha256


def fetch(store: Store, prefix: str, sha256: str, cache: Path) -> Path:
    """An adapter's folder, from the cache or the bucket.

    Raises:
        ModelError: the bucket lacks it, or holds other bytes than the registry says.
    """
    folder = cache / sha256[:16]
    if folder.is_dir() and folder_sha256(folder) == sha256:
        return folder
    partial = cache / f"{sha256[:16]}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for key in store.keys(prefix):
        stored = store.get(key)
        if stored is None:
            raise ModelError(f"adapter {store.uri(key)} vanished while it was read")
        target = partial / key.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(stored.body)
    if not any(partial.iterdir()):
        raise ModelError(f"adapter {store.uri(prefix)} is not there: restore it or retire its version")
    if (found := folder_sha256(partial)) != sha256:
        raise ModelError(f"adapter {store.uri(prefix)} hashes to {found[:16]}, the registry says {sha256[:16]}")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder
