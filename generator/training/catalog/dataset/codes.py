"""Codes of a data set's pictures by a checkpoint's frozen tokenizer, computed once and kept in a file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import PigeonPipeline
from generator.training.catalog.dataset.pictures import Progress
from generator.training.catalog.dataset.reader import Dataset, ImageArray
from generator.training.catalog.dataset.shards import read_rows

CHUNK = 64
"""Pictures that are tokenized at once."""
SCHEMA = pa.schema([("sha256", pa.string()), ("codes", pa.list_(pa.int32()))])

ImageCodes = dict[str, list[int]]
"""Codes by a picture's hash."""


def image_codes(dataset: Dataset, model: PigeonModel, cache: Path, progress: Progress) -> ImageCodes:
    """Codes of every picture; from the cache where this data set was tokenized before."""
    manifest = dataset.manifest
    path = cache / manifest.dataset_id / f"codes-{manifest.tokenizer}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _tokenize(dataset, model, partial, progress)
        partial.replace(path)
    return {row["sha256"]: row["codes"] for row in read_rows(path)}


def _tokenize(dataset: Dataset, model: PigeonModel, path: Path, progress: Progress) -> None:
    pipeline = PigeonPipeline(model)
    images, done = dataset.images(), 0
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for part in _chunks(images):
            found = model.tokenizer.encode(pipeline.pixels([image for _, image in part]))
            rows = [{"sha256": name, "codes": codes.tolist()} for (name, _), codes in zip(part, found, strict=True)]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            done += len(part)
            progress("Tokenize pictures", done, dataset.manifest.counts["images"])


def _chunks(images: Iterator[tuple[str, ImageArray]]) -> Iterator[list[tuple[str, ImageArray]]]:
    while part := list(islice(images, CHUNK)):
        yield part
