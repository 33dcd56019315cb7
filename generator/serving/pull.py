"""A release from S3 into this host's model repository, verified before it takes the old one's place.

What was fetched stays beside the repository (`<repository>.pulling`) until all of it is there, so that a pull that broke off
goes on; files that the repository has already are not fetched. Where only adapters differ, only their folders are replaced,
so that Triton's `load` leaves the other versions serving.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from generator.serving.adapters import PERSONALIZER
from generator.serving.release import Part, Release, ReleaseFile, read_parts, read_release
from generator.serving.replacement import finish_replace, locked, replace
from generator.serving.repository import MANIFEST, check_repository, file_hash
from generator.storage.objects import Store
from schemas.errors import InputError, ModelError

THREADS = 4
"""Files that are fetched at the same time, each with one part in memory."""


@dataclass(frozen=True)
class Pulled:
    """What a pull did."""

    release: Release
    changed: bool
    fetched_bytes: int
    dropped_adapters: tuple[int, ...] = ()
    """Adapters that were in the repository and are not in the release."""


def pull(store: Store, repository: Path, preset: str, sha256: str | None = None) -> Pulled:
    """Make the repository that of a release, by default of the one that servers should have.

    Raises:
        ModelError: there is no such release, it is of another preset, or a part is missing or damaged; the repository is
            as it was.
        LockHeld: a build or another pull of this repository is under way.
        InputError: the disk is full; what was fetched is kept. InputError, ServerUnavailable: as S3 answers.
    """
    release = read_release(store, sha256)
    if release.preset != preset:
        raise ModelError(
            f"release {release.sha256[:16]} is of preset {release.preset}, the settings say {preset}; "
            "change PIGEON_MODELS__PRESET, or push the other repository"
        )
    repository.parent.mkdir(parents=True, exist_ok=True)
    with locked(repository):
        finish_replace(repository)
        extra = sorted(set(_installed(repository)) - set(release.adapters))
        if not extra and all(_is(repository / path, file) for path, file in release.files.items()):
            return Pulled(release, changed=False, fetched_bytes=0)
        staging = repository.with_name(f"{repository.name}.pulling")
        try:
            fetched = _stage(store, release, repository, staging)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise InputError(f"{staging}: no space left; make room and pull again, which goes on from here") from error
        check_repository(staging, preset)
        if _is(repository / MANIFEST, release.files[MANIFEST]) and _is_whole(repository, release):
            _replace_adapters(repository, staging)
        else:
            replace(repository, staging)
    return Pulled(release, changed=True, fetched_bytes=fetched, dropped_adapters=tuple(extra))


def _installed(repository: Path) -> Iterator[int]:
    folder = repository / PERSONALIZER
    return (int(path.name) for path in (folder.iterdir() if folder.is_dir() else ()) if path.name.isdigit())


def _is(path: Path, file: ReleaseFile) -> bool:
    return path.is_file() and file_hash(path) == file.sha256


def _is_whole(repository: Path, release: Release) -> bool:
    """Whether the repository is this build's, unchanged, whatever adapters it has."""
    with contextlib.suppress(ModelError):
        return bool(check_repository(repository, release.preset))
    return False


def _stage(store: Store, release: Release, repository: Path, staging: Path) -> int:
    """Fetch or link all files of a release; returns how many bytes were fetched."""
    _drop_others(staging, release)
    with ThreadPoolExecutor(THREADS) as threads:
        return sum(
            threads.map(
                lambda one: _take(store, one[0], one[1], repository / one[0], staging / one[0]), release.files.items()
            )
        )


def _drop_others(staging: Path, release: Release) -> None:
    """Delete what a pull of another release has left, empty folders too.

    Triton takes a numbered one for a version.
    """
    for path in sorted(staging.rglob("*"), reverse=True) if staging.is_dir() else []:
        name = path.relative_to(staging).as_posix()
        if path.is_dir():
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        elif name.removesuffix(".part") not in release.files:
            path.unlink()


def _take(store: Store, path: str, file: ReleaseFile, old: Path, target: Path) -> int:
    """Have a file of the release in its place; returns how many bytes were fetched."""
    if _is(target, file):
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if _is(old, file):
        try:
            os.link(old, target)
        except OSError:  # another file system, or one without links
            shutil.copy2(old, target)
        return 0
    partial = target.with_name(f"{target.name}.part")
    there = _kept_parts(partial, file)
    fetched = 0
    with partial.open("ab") as out:
        for part in file.parts[there:]:
            out.write(_body(store, path, part))
            fetched += part.bytes
    if file_hash(partial) != file.sha256:
        raise ModelError(f"release file {path}: its parts do not add up to it; `pigeon models push` where it was built")
    partial.rename(target)
    return fetched


def _kept_parts(partial: Path, file: ReleaseFile) -> int:
    """How many parts an earlier pull has left whole; what follows them is cut off."""
    if not partial.is_file():
        return 0
    count = kept = 0
    for part, body in zip(file.parts, read_parts(partial), strict=False):
        if hashlib.sha256(body).hexdigest() != part.sha256:
            break
        count, kept = count + 1, kept + len(body)
    os.truncate(partial, kept)
    return count


def _body(store: Store, path: str, part: Part) -> bytes:
    stored = store.get(part.key)
    if stored is None:
        raise ModelError(f"release file {path}: no {store.uri(part.key)}; `pigeon models push` where it was built")
    if hashlib.sha256(stored.body).hexdigest() != part.sha256:
        raise ModelError(
            f"release file {path}: {store.uri(part.key)} holds other bytes than its name says; "
            "`pigeon models push --again` where it was built"
        )
    return stored.body


def _replace_adapters(repository: Path, staging: Path) -> None:
    """Give the repository the staged adapters, folder by folder; those that are the same are left alone."""
    for number in set(_installed(repository)) - set(_installed(staging)):
        shutil.rmtree(repository / PERSONALIZER / str(number))
    for number in _installed(staging):
        new, old = (folder / PERSONALIZER / str(number) for folder in (staging, repository))
        if _hashes(new) == _hashes(old):
            continue
        shutil.rmtree(old, ignore_errors=True)
        new.rename(old)
    shutil.rmtree(staging)


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
