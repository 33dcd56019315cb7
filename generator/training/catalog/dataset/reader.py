"""A data set's windows, items and pictures, read without holding them all."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from generator.training.catalog.dataset.manifest import DatasetManifest, Split, check_files, read_manifest
from generator.training.catalog.dataset.shards import read_rows

Numbers = npt.NDArray[np.int32]
ImageArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DatasetItem:
    """An item as a data set has it; `image` is its picture's hash."""

    item_id: str
    title: str
    description: str
    image: str


@dataclass(frozen=True)
class HeldOutWindow:
    """A window with its user, for what is done user by user."""

    user_id: str
    history: tuple[int, ...]
    reference: int
    target_codes: tuple[int, ...] | None


class Dataset:
    """A data set's folder; items are known by their number, in the order of items.parquet."""

    def __init__(self, folder: Path, manifest: DatasetManifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Open a folder whose files are those of its manifest.

        Raises:
            InputError: there is no data set, or a file is missing or was changed.
        """
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        return cls(folder, manifest)

    @cached_property
    def items(self) -> Sequence[DatasetItem]:
        rows = read_rows(self.folder / "items.parquet")
        return [DatasetItem(row["item_id"], row["title"], row["description"], row["image"]) for row in rows]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number by item id."""
        return {item.item_id: number for number, item in enumerate(self.items)}

    def images(self) -> Iterator[tuple[str, ImageArray]]:
        """Every picture once: its hash and RGB (S, S, 3), in the order of the hashes."""
        for path in self.manifest.paths("images/"):
            for row in read_rows(self.folder / path, batch=64):
                yield row["sha256"], decoded(row["png"])

    def images_of(self, hashes: set[str]) -> dict[str, ImageArray]:
        """Some pictures by their hashes."""
        found: dict[str, ImageArray] = {}
        for path in self.manifest.paths("images/"):
            rows = pq.read_table(self.folder / path, filters=[("sha256", "in", sorted(hashes))]).to_pylist()
            found |= {row["sha256"]: decoded(row["png"]) for row in rows}
        return found

    def windows(self, split: Split) -> Iterator[HeldOutWindow]:
        """A split's windows in their order."""
        for row in self.rows(split, ["user_id", "history", "reference", "target_codes"]):
            codes = None if row["target_codes"] is None else tuple(row["target_codes"])
            past = tuple(self.numbers[item] for item in row["history"])
            yield HeldOutWindow(row["user_id"], past, self.numbers[row["reference"]], codes)

    def rows(self, split: Split, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Some columns of a split's windows, in their order."""
        for path in self.manifest.paths(f"windows/{split}-"):
            yield from read_rows(self.folder / path, columns)

    def last_windows(self, split: Split) -> list[HeldOutWindow]:
        """Each user's last window of a split, users in the order of their ids."""
        last: dict[str, HeldOutWindow] = {}
        for window in self.windows(split):
            last[window.user_id] = window
        return [last[user] for user in sorted(last)]


class WindowIndex:
    """A split's windows as numbers in a file that is mapped into memory, however many there are.

    `rows` int32 (n, history + 2): history, reference, target; targets: see `target`.
    """

    def __init__(self, dataset: Dataset, split: Split, cache: Path) -> None:
        """Read the index from `cache`, or make it there."""
        self.dataset, self.split = dataset, split
        folder = cache / dataset.manifest.dataset_id
        self._path = folder / f"{split}.npy"
        if not self._path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._make()
        self.rows: Numbers = np.load(self._path, mmap_mode="r")
        codes = folder / f"{split}-codes.npy"
        self._codes: Numbers | None = np.load(codes, mmap_mode="r") if codes.exists() else None

    def __len__(self) -> int:
        return len(self.rows)

    def target(self, row: int) -> list[int] | None:
        """Codes that are to be learned, where they are given apart."""
        if self._codes is None:
            return None
        codes: list[int] = [code for code in self._codes[row].tolist() if code >= 0]
        return codes or None

    @cached_property
    def image_hashes(self) -> list[str]:
        """Hashes of pictures that are targets apart from their references, by number (see column target)."""
        hashes: set[str] = set()
        for row in self.dataset.rows(self.split, ["target_image"]):
            if row["target_image"] is not None:
                hashes.add(str(row["target_image"]))
        return sorted(hashes)

    def _make(self) -> None:
        manifest, numbers = self.dataset.manifest, self.dataset.numbers
        total = manifest.windows(self.split)
        partial = self._path.with_suffix(".partial")
        apart = {name: number for number, name in enumerate(self.image_hashes)}
        with partial.open("wb") as file, self._path.with_name(f"{self.split}-codes.partial").open("wb") as codes:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<i4", "fortran_order": False, "shape": (total, manifest.history + 2)}
            )
            width = self._code_width()
            if width:
                np.lib.format.write_array_header_1_0(
                    codes, {"descr": "<i4", "fortran_order": False, "shape": (total, width)}
                )
            for row in self.dataset.rows(self.split, ["history", "reference", "target_codes", "target_image"]):
                past = [numbers[item] for item in row["history"]]
                image = apart[str(row["target_image"])] if row["target_image"] is not None else -1
                file.write(np.array([*past, numbers[str(row["reference"])], image], "<i4").tobytes())
                if width:
                    given: list[int] = list(row["target_codes"] or ())
                    codes.write(np.array(given + [-1] * (width - len(given)), "<i4").tobytes())
        if width:
            codes_path = self._path.with_name(f"{self.split}-codes.npy")
            self._path.with_name(f"{self.split}-codes.partial").replace(codes_path)
        else:
            self._path.with_name(f"{self.split}-codes.partial").unlink()
        partial.replace(self._path)

    def _code_width(self) -> int:
        return max(
            (len(row["target_codes"] or ()) for row in self.dataset.rows(self.split, ["target_codes"])), default=0
        )


def decoded(png: bytes) -> ImageArray:
    """PNG -> RGB (S, S, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
