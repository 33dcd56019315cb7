"""The S3 manifest: its Parquet schema, its keys, and the reader that is a recommender's whole integration.

bucket/
  posters/<sha256>.webp               composed posters, content-addressed, created only if absent
  art/<sha256>.png                    the model's picture before composition
  manifests/<date>/<run_id>.parquet   one row per poster that can be surfaced
  manifests/<date>/<run_id>.items.parquet   the catalogue's own pictures, the last rung of the ladder
  manifests/<date>/<run_id>.report.html
  manifests/latest.json               the pointer, replaced with If-Match only
  snapshots/<snapshot_id>.jsonl       preference pairs
  models/<version>/...                adapters
"""

from __future__ import annotations

import pyarrow as pa

MANIFEST_VERSION = 1
POINTER_KEY = "manifests/latest.json"

POSTER_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("variant", pa.int16(), nullable=False),
        pa.field("poster_id", pa.string(), nullable=False),
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("propensity", pa.float32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("cs", pa.float32(), nullable=False),
        pa.field("cis_reference", pa.float32(), nullable=False),
        pa.field("cis_history", pa.float32(), nullable=False),
        pa.field("alpha", pa.float32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("safety", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("drawn_by_run", pa.string(), nullable=False),
    ],
    metadata={"manifest_version": str(MANIFEST_VERSION)},
)
ITEM_SCHEMA = pa.schema(
    [pa.field("item_id", pa.string(), nullable=False), pa.field("image_uri", pa.string(), nullable=True)],
    metadata={"manifest_version": str(MANIFEST_VERSION)},
)


def poster_key(sha256: str) -> str:
    """Key of a composed poster."""
    return f"posters/{sha256}.webp"


def art_key(sha256: str) -> str:
    """Key of the model's picture before composition."""
    return f"art/{sha256}.png"


def manifest_key(logical_date: str, run_id: str) -> str:
    """Key of a night's Parquet manifest."""
    return f"manifests/{logical_date}/{run_id}.parquet"


def items_key(logical_date: str, run_id: str) -> str:
    """Key of the catalogue's own pictures as of that night."""
    return f"manifests/{logical_date}/{run_id}.items.parquet"


def report_key(logical_date: str, run_id: str) -> str:
    """Key of the night's HTML report."""
    return f"manifests/{logical_date}/{run_id}.report.html"
