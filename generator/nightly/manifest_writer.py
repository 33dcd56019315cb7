"""Writing shards in constant memory.

Rows are spooled to disk by shard, then each shard is sorted and written on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.manifest_shards import ITEM_SHARD_SCHEMA, SHARD_SCHEMA, USER_HASH, shard_of, with_hashes, write_shard

ROWS_PER_SHARD = 250_000
MAX_SHARDS = 4096


@dataclass(frozen=True)
class WrittenShard:
    """A shard's file on this machine."""

    index: int
    path: Path
    sha256: str
    rows: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.path.stat().st_size


def shards_for(rows: int) -> int:
    """How many shards for about this many rows: a power of two, with at most ROWS_PER_SHARD in each."""
    shards = 1
    while rows > shards * ROWS_PER_SHARD and shards < MAX_SHARDS:
        shards *= 2
    return shards


class ShardSpool:
    """Rows by shard, in files under `folder`."""

    def __init__(self, folder: Path, shards: int) -> None:
        self._folder = folder
        self.shards = shards
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, rows: pa.Table) -> None:
        """Rows of POSTER_SCHEMA, in any order; there may be none."""
        if not len(rows):
            return
        rows = with_hashes(rows, SHARD_SCHEMA)
        numbers = shard_of(rows[USER_HASH].to_numpy(), self.shards)
        order = np.argsort(numbers, kind="stable")
        rows = rows.take(pa.array(order)).combine_chunks()
        found, starts = np.unique(numbers[order], return_index=True)
        ends = [*starts[1:], len(rows)]
        for number, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            self._writer(number).write_table(rows.slice(start, end - start))

    def _writer(self, number: int) -> pa.ipc.RecordBatchStreamWriter:
        if number not in self._writers:
            self._writers[number] = pa.ipc.new_stream(str(self._path(number)), SHARD_SCHEMA)
        return self._writers[number]

    def write(self, **about: str) -> Iterator[WrittenShard]:
        """Every shard in turn, empty ones too; a file is gone when the next is asked for."""
        for writer in self._writers.values():
            writer.close()
        for number in range(self.shards):
            path = self._folder / f"{number}.arrow"
            rows = SHARD_SCHEMA.empty_table()
            if number in self._writers:
                with pa.memory_map(str(self._path(number))) as source, pa.ipc.open_stream(source) as reader:
                    rows = reader.read_all()
            write_shard(rows, path, **about)
            self._path(number).unlink(missing_ok=True)
            yield WrittenShard(number, path, sha256_of(path), len(rows))
            path.unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.spool"


def write_items(pages: Iterator[pa.Table], folder: Path, **about: str) -> WrittenShard:
    """The items' file. The catalogue is held in memory once."""
    parts = [with_hashes(page, ITEM_SHARD_SCHEMA) for page in pages]
    rows = pa.concat_tables(parts) if parts else ITEM_SHARD_SCHEMA.empty_table()
    path = folder / "items.arrow"
    write_shard(rows, path, **about)
    return WrittenShard(0, path, sha256_of(path), len(rows))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
