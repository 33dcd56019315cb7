"""A release: a model repository with its adapters as S3 holds it, published once under its hash.

    releases/parts/<sha256>   bytes of a file, at most 64 MiB; what several releases have alike is one object
    releases/<sha256>.json    the files of a release and the hashes of their parts; its name is its own hash
    releases/latest.json      which release servers should have, replaced with If-Match

`push` writes in this order, so that whoever finds a release finds its parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from generator.serving.adapters import PERSONALIZER
from generator.serving.repository import MANIFEST, check_repository, tree_hashes
from generator.storage.objects import Store
from schemas.errors import LockHeld, ModelError

PART_BYTES = 64 * 2**20
PARTS = "releases/parts/"
RELEASES = "releases/"
POINTER = "releases/latest.json"
BYTES, JSON = "application/octet-stream", "application/json"

T = TypeVar("T", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Frozen):
    """Some bytes of a file."""

    sha256: str
    bytes: int

    @property
    def key(self) -> str:
        """The key of its object."""
        return f"{PARTS}{self.sha256}"


class ReleaseFile(_Frozen):
    """A file, in parts that follow each other."""

    sha256: str
    parts: tuple[Part, ...]


class Release(_Frozen):
    """releases/<sha256>.json."""

    format_version: Literal[1] = 1
    build: str
    preset: str
    files: dict[str, ReleaseFile]
    """Path below the repository, in order -> file."""

    @field_validator("files")
    @classmethod
    def _paths_stay_inside(cls, files: dict[str, ReleaseFile]) -> dict[str, ReleaseFile]:
        for path in files:
            parts = PurePosixPath(path)
            if parts.is_absolute() or ".." in parts.parts or str(parts) != path:
                raise ValueError(f"{path!r} leads out of the repository")
        if MANIFEST not in files:
            raise ValueError(f"{MANIFEST} is not among its files")
        return files

    def body(self) -> bytes:
        """The object's bytes; their hash is the release's name."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @property
    def sha256(self) -> str:
        """What the release is known by."""
        return hashlib.sha256(self.body()).hexdigest()

    @property
    def adapters(self) -> tuple[int, ...]:
        """Numbers of the adapters in it, the checkpoint's own (1) included."""
        folders = {PurePosixPath(path).parts[1] for path in self.files if path.startswith(f"{PERSONALIZER}/")}
        return tuple(sorted(int(name) for name in folders if name.isdigit()))


class ReleasePointer(_Frozen):
    """releases/latest.json."""

    format_version: Literal[1] = 1
    release: str


def release_key(sha256: str) -> str:
    """The key of a release."""
    return f"{RELEASES}{sha256}.json"


def described(repository: Path, preset: str) -> Release:
    """The release that a repository on disk would be.

    In it are the build's files, the manifest and the installed adapters.

    Raises:
        ModelError: the repository is not complete, was changed, or is not of this preset.
    """
    manifest = check_repository(repository, preset)
    paths = {f"{model}/{path}" for model, entry in manifest.models.items() for path in entry.files}
    installed = tree_hashes(repository / PERSONALIZER)
    paths |= {f"{PERSONALIZER}/{path}" for path in installed if PurePosixPath(path).parts[0].isdigit()}
    files = {path: _in_parts(repository / path) for path in sorted({MANIFEST, *paths})}
    return Release(build=manifest.build, preset=manifest.preset, files=files)


def _in_parts(path: Path) -> ReleaseFile:
    whole, parts = hashlib.sha256(), []
    for body in read_parts(path):
        whole.update(body)
        parts.append(Part(sha256=hashlib.sha256(body).hexdigest(), bytes=len(body)))
    return ReleaseFile(sha256=whole.hexdigest(), parts=tuple(parts))


def read_parts(path: Path) -> Iterator[bytes]:
    """The bytes of a file, PART_BYTES at a time."""
    with path.open("rb") as file:
        while body := file.read(PART_BYTES):
            yield body


def push(
    store: Store,
    repository: Path,
    preset: str,
    *,
    again: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Release, int]:
    """Publish a repository and lead servers to it.

    Parts that are there are not sent, so a push that broke off goes on.

    again: send every part, for a bucket whose objects are damaged.

    Returns:
        The release, and how many bytes were sent.

    Raises:
        ModelError: the repository does not fit, or changed meanwhile.
        LockHeld: another push was first; the release is stored, and servers are led to the other one.
        InputError, ServerUnavailable: as S3 answers.
    """
    release = described(repository, preset)
    before = store.get(POINTER)
    sent = 0
    for path, file in release.files.items():
        missing = {part.sha256: part for part in file.parts if again or not store.exists(part.key)}
        if not missing:
            continue
        report(f"{path}: {sum(part.bytes for part in missing.values())} bytes")
        for body in read_parts(repository / path):
            if (sha := hashlib.sha256(body).hexdigest()) in missing:
                store.create_content(missing.pop(sha).key, body, BYTES)
                sent += len(body)
        if missing:
            raise ModelError(f"model repository {repository}: {path} was changed while it was read; push again")
    store.create_content(release_key(release.sha256), release.body(), JSON)
    pointer = ReleasePointer(release=release.sha256).model_dump_json().encode()
    if (before is None or before.body != pointer) and not store.replace(
        POINTER, pointer, JSON, etag=before.etag if before else None
    ):
        raise LockHeld(
            f"{store.uri(POINTER)}: another push was first; `pigeon models push` again if this one is to serve"
        )
    return release, sent


def read_release(store: Store, sha256: str | None = None) -> Release:
    """A release, by default the one that servers should have.

    Raises:
        ModelError: there is none, or it is damaged.
        InputError, ServerUnavailable: as S3 answers.
    """
    if sha256 is None:
        pointer = store.get(POINTER)
        if pointer is None:
            raise ModelError(f"no {store.uri(POINTER)}: `pigeon models push`, where the repository was built, makes it")
        sha256 = _parsed(ReleasePointer, pointer.body, store.uri(POINTER)).release
    where = store.uri(release_key(sha256))
    stored = store.get(release_key(sha256))
    if stored is None:
        raise ModelError(f"no {where}; `pigeon models push` makes it")
    if hashlib.sha256(stored.body).hexdigest() != sha256:
        raise ModelError(f"{where}: holds other bytes than its name says; `pigeon models push` stores it again")
    return _parsed(Release, stored.body, where)


def _parsed(kind: type[T], body: bytes, where: str) -> T:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise ModelError(
            f"{where}: {error.errors()[0]['msg']}; `pigeon models push` of this release writes it"
        ) from None
