"""Parquet shards, written a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from generator.training.catalog.dataset.manifest import SPLITS, Split
from generator.training.catalog.dataset.windows import Window

WINDOW_ROWS, IMAGE_ROWS = 100_000, 4_096
"""Rows of a shard."""
BATCH = {"windows": 4_096, "images": 64, "items": 4_096}
"""Rows of a row group: what is held at a time."""

WINDOWS = pa.schema(
    [
        ("user_id", pa.string()),
        ("occurred_at", pa.timestamp("us", tz="UTC")),
        ("history", pa.list_(pa.string())),
        ("reference", pa.string()),
        ("target_codes", pa.list_(pa.int32())),
        ("target_image", pa.string()),
    ]
)
IMAGES = pa.schema([("sha256", pa.string()), ("png", pa.binary())])
ITEMS = pa.schema(
    [("item_id", pa.string()), ("title", pa.string()), ("description", pa.string()), ("image", pa.string())]
)


class ShardWriter:
    """Rows into `name` files of at most `rows` rows; `name` has a place for the number.

    `written` has the rows of each file by its path below the folder.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, rows: int, batch: int) -> None:
        self._folder, self._name, self._schema, self._rows, self._batch = folder, name, schema, rows, batch
        self._held: list[Mapping[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self.written: dict[str, int] = {}
        self._path = ""

    def add(self, row: Mapping[str, Any]) -> None:
        self._held.append(row)
        if len(self._held) == self._batch:
            self._flush()

    def close(self) -> None:
        """Write what is held, and end the last file."""
        if self._held:
            self._flush()
        self._end()

    def _flush(self) -> None:
        if self._writer is None:
            self._path = self._name.format(len(self.written))
            target = self._folder / self._path
            target.parent.mkdir(parents=True, exist_ok=True)
            # No dictionaries of a whole column: they are kept in memory until the file ends.
            self._writer = pq.ParquetWriter(target, self._schema, compression="zstd")
            self.written[self._path] = 0
        self._writer.write_table(pa.Table.from_pylist(self._held, schema=self._schema))
        self.written[self._path] += len(self._held)
        self._held = []
        if self.written[self._path] >= self._rows:
            self._end()

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WindowWriter:
    """Windows into the shards of their splits."""

    def __init__(self, folder: Path) -> None:
        self._writers = {
            split: ShardWriter(folder, f"windows/{split}-{{:05d}}.parquet", WINDOWS, WINDOW_ROWS, BATCH["windows"])
            for split in SPLITS
        }

    def add(self, split: Split, window: Window) -> None:
        self._writers[split].add(
            {
                "user_id": window.user_id,
                "occurred_at": window.at,
                "history": window.history,
                "reference": window.reference,
                "target_codes": window.target_codes,
                "target_image": window.target_image,
            }
        )

    def close(self) -> dict[str, int]:
        """Rows of each file that was written."""
        for writer in self._writers.values():
            writer.close()
        return {path: rows for writer in self._writers.values() for path, rows in writer.written.items()}


def write_all(
    folder: Path, name: str, schema: pa.Schema, rows: int, batch: int, content: Iterable[Mapping[str, Any]]
) -> dict[str, int]:
    """Write rows into shards; returns the rows of each file."""
    writer = ShardWriter(folder, name, schema, rows, batch)
    for row in content:
        writer.add(row)
    writer.close()
    return writer.written


def read_rows(path: Path, columns: list[str] | None = None, batch: int = 1_024) -> Iterator[dict[str, Any]]:
    """Rows of a shard, a batch in memory at a time."""
    with pq.ParquetFile(path) as file:
        for part in file.iter_batches(batch_size=batch, columns=columns):
            yield from part.to_pylist()
