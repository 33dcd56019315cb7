"""Shards of a manifest: Arrow files sorted by a hash of the id, mapped and searched in place.

A shard is an Arrow IPC file, uncompressed, with one record batch. Its first column is `user_hash` (`item_hash` in the items'
file), which the rows are sorted by; ties are in the order of the ids, as bytes, and of the variants. Shard i of n = 2^b holds the
users whose hash has i in its b highest bits. The same rows give the same bytes, in whatever order they come.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.manifest_files import ITEM_SCHEMA, POSTER_SCHEMA, check_schema

USER_HASH, ITEM_HASH = "user_hash", "item_hash"
SHARD_SCHEMA = pa.schema(
    [pa.field(USER_HASH, pa.uint64(), nullable=False), *POSTER_SCHEMA], metadata=POSTER_SCHEMA.metadata
)
ITEM_SHARD_SCHEMA = pa.schema(
    [pa.field(ITEM_HASH, pa.uint64(), nullable=False), *ITEM_SCHEMA], metadata=ITEM_SCHEMA.metadata
)

Hashes = npt.NDArray[np.uint64]


def stable_hash(text: str) -> int:
    """First 8 bytes of the SHA-256 of the UTF-8 text, big endian: the same in every language."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def stable_hashes(texts: Iterable[str]) -> Hashes:
    """`stable_hash` of each; quick where equal texts stand together."""
    values, last, value = [], None, 0
    for text in texts:
        if text != last:
            last, value = text, stable_hash(text)
        values.append(value)
    return np.array(values, np.uint64)


def shard_of(hashes: Hashes, shards: int) -> Hashes:
    """The number of the shard of each hash; `shards` is a power of two."""
    bits = shards.bit_length() - 1
    return hashes >> np.uint64(64 - bits) if bits else np.zeros_like(hashes)


def with_hashes(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of POSTER_SCHEMA or ITEM_SCHEMA with the first column of SHARD_SCHEMA or ITEM_SHARD_SCHEMA."""
    hashes = pa.array(stable_hashes(rows[schema.names[1]].to_pylist()), pa.uint64())
    columns = [hashes, *(rows[name].cast(schema.field(name).type) for name in schema.names[1:])]
    return pa.Table.from_arrays(columns, schema=schema)


def write_shard(rows: pa.Table, path: Path, **about: str) -> None:
    """Sort rows of SHARD_SCHEMA or ITEM_SHARD_SCHEMA and write them as a shard.

    `about` joins the file's metadata.
    """
    keys = [name for name in (USER_HASH, "user_id", ITEM_HASH, "item_id", "variant") if name in rows.column_names]
    order = pc.sort_indices(rows.select(keys).combine_chunks(), sort_keys=[(name, "ascending") for name in keys])
    schema = rows.schema.with_metadata({**about, **(rows.schema.metadata or {})})
    # Column by column: no more than one of them is in memory twice.
    columns = [_contiguous(rows[name]).take(order) for name in schema.names]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


class Shard:
    """A shard in place: only the pages that are looked at are in memory, and all processes share them."""

    def __init__(self, file: int, schema: pa.Schema) -> None:
        """Map the open file; `file` may be closed afterwards.

        Raises:
            ValueError: not such a file, or of another manifest version.
        """
        self.map = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        try:
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self.map)))
            check_schema(reader.schema, schema)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except pa.ArrowException as error:
            raise ValueError(f"not an Arrow file: {error}") from error
        if len(batches) > 1:
            raise ValueError(f"{len(batches)} record batches, a shard has one")
        rows = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema)
        self.rows: pa.RecordBatch = rows.select(schema.names)
        self.columns: dict[str, pa.Array] = dict(zip(schema.names, self.rows.columns, strict=True))
        self._hashes: Hashes = self.rows.column(0).to_numpy(zero_copy_only=True)
        self._ids = self.rows.column(1)
        if "propensity" in self.columns:
            self.propensities: npt.NDArray[np.float32] = self.columns["propensity"].to_numpy(zero_copy_only=True)

    def __len__(self) -> int:
        """How many rows."""
        return len(self._hashes)

    def span(self, hashed: np.uint64, name: str) -> tuple[int, int]:
        """The rows whose id (the second column) is `name`, as start and end; `hashed` is its `stable_hash`."""
        start, end = int(self._hashes.searchsorted(hashed)), int(self._hashes.searchsorted(hashed, "right"))
        # Another id with the same hash: rows of the same hash are in the order of their ids.
        while start < end and self._ids[start].as_py() != name:
            start += 1
        while start < end and self._ids[end - 1].as_py() != name:
            end -= 1
        return start, end

    def values(self, column: str, rows: Any) -> list[Any]:
        """The values of a column in the given rows."""
        found: list[Any] = self.columns[column].take(rows).to_pylist()
        return found
