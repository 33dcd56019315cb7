"""A data set's manifest: what is in it, what was left out and why, and the hash that it is known by."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import InputError

MANIFEST = "dataset.json"
TRAINING = "alignment.json"
"""File of a training's folder and of its result that says what was trained, and on which data set."""
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
NOT_HASHED = {"dataset_id", "read_at", "supersedes", "redrawn"}
"""Fields that may differ between two data sets of equal content."""
PEOPLES_FILES = ("card.md", "contact-sheet.webp", "redrawn.webp")
"""Files that are for people, and no part of the content."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """A file of a data set."""

    path: str
    """Path below the data set's folder, with slashes."""
    sha256: str
    bytes: int
    rows: int


class Redrawn(_Frozen):
    """How well a checkpoint draws the catalogue's own pictures from their codes."""

    images: int
    similarity: float
    """100·cosine of original and redrawn picture, mean, by `extractor`."""
    recognised: float
    """Share of the redrawn pictures that are nearer to their own original than to any other of them."""
    ssim: float
    extractor: str


class DatasetManifest(_Frozen):
    """dataset.json."""

    format_version: Literal[1] = 1
    dataset_id: str = ""
    """Hash of what is below, but for when it was read, what it replaces, and how a checkpoint redraws it."""
    preset: str
    """The checkpoint's preset."""
    tokenizer: str
    """Hash of the visual tokenizer that pictures, and codes given apart, are for."""
    image_size: int
    """Pixels of a picture's side."""
    history: int
    """Items in a window's history."""
    split_by: Literal["both", "users"]
    counts: dict[str, int]
    left_out: dict[str, int]
    """Reason -> how many clicks, items, users or windows, as the reason says."""
    redrawn: Redrawn | None = None
    files: tuple[FileEntry, ...]
    read_at: datetime
    """Moment at which the source was read; a user erased later has to be taken out."""
    supersedes: str | None = None
    """The data set that this one replaces after an erasure."""

    def named(self) -> DatasetManifest:
        """The same with the id that follows from its content."""
        return self.model_copy(update={"dataset_id": self.content_id()})

    def content_id(self) -> str:
        """Hash of the content, 32 hex digits."""
        content = self.model_dump(mode="json", exclude=NOT_HASHED)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def paths(self, prefix: str) -> list[str]:
        """Paths of the files that begin so, in order."""
        return [entry.path for entry in self.files if entry.path.startswith(prefix)]

    def windows(self, split: Split) -> int:
        """How many windows a split has."""
        return sum(entry.rows for entry in self.files if entry.path.startswith(f"windows/{split}-"))


def read_manifest(folder: Path) -> DatasetManifest:
    """Read and check a folder's manifest.

    Raises:
        InputError: there is none, it is damaged, or was edited.
    """
    path = folder / MANIFEST
    try:
        manifest = DatasetManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder}: no data set there ({MANIFEST}: {error.strerror}); `pigeon dataset build` makes one"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc'])) or 'manifest'}: {first['msg']}") from error
    if manifest.content_id() != manifest.dataset_id:
        raise InputError(f"{path}: was changed after the build (hash {manifest.content_id()[:12]}); build it again")
    return manifest


def check_files(folder: Path, manifest: DatasetManifest) -> None:
    """Compare every file with the manifest.

    Raises:
        InputError: a file is missing or was changed.
    """
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise InputError(f"{path}: is missing; fetch or build the data set again")
        if file_sha256(path) != entry.sha256:
            raise InputError(f"{path}: was changed after the build; fetch or build the data set again")


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries(folder: Path, rows: dict[str, int]) -> tuple[FileEntry, ...]:
    """A line of the manifest for each written file; `rows` by path below the folder."""
    return tuple(
        FileEntry(path=name, sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size, rows=rows[name])
        for name in sorted(rows)
    )


def tokenizer_version(checkpoint: Path) -> str:
    """Hash of a checkpoint's visual tokenizer: weights and configuration.

    Raises:
        InputError: the folder has no weights of one.
    """
    files = [
        path
        for stem in ("eva_vitg_psz14", "tokenizer_encoder")
        for path in sorted((checkpoint / "visual_tokenizer").glob(f"{stem}*"))
    ]
    if not files:
        raise InputError(f"{checkpoint}: no visual_tokenizer/ there; give the folder of a Pigeon checkpoint")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def check_fits(manifest: DatasetManifest, checkpoint: Path, history: int, image_size: int) -> None:
    """Refuse a data set that was made for another tokenizer than the checkpoint's.

    Raises:
        InputError: it was; the message names both.
    """
    named = f"data set {manifest.dataset_id[:12]}"
    found = tokenizer_version(checkpoint)
    if manifest.tokenizer != found or manifest.image_size != image_size:
        raise InputError(
            f"{named}: was made for another tokenizer ({manifest.preset}, {manifest.image_size} pixels, {manifest.tokenizer[:8]}) than "
            f"{checkpoint} has ({image_size} pixels, {found[:8]}); build it with --checkpoint {checkpoint}"
        )
    if manifest.history != history:
        raise InputError(
            f"{named}: its windows have {manifest.history} history items, {checkpoint} takes {history}; build it again"
        )
