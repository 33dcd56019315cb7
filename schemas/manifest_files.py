"""The manifest's files, for writers: keys in the bucket, Parquet schemas, the pointer.

Readers want schemas/manifest.py.

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

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
        # Further sizes of the same poster; the columns above are the first configured size.
        pa.field(
            "renditions",
            pa.list_(
                pa.struct(
                    [
                        pa.field("width", pa.int32(), nullable=False),
                        pa.field("height", pa.int32(), nullable=False),
                        pa.field("image_key", pa.string(), nullable=False),
                        pa.field("image_sha256", pa.string(), nullable=False),
                    ]
                )
            ),
            nullable=False,
        ),
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


def to_parquet(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, **about: str) -> bytes:
    """Rows as Parquet; the same rows in the same order give the same bytes.

    `about` joins the file's metadata.

    Keys of a row that are not in the schema are left out.
    """
    table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)
    table = table.replace_schema_metadata({**about, **(schema.metadata or {})})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", version="2.6")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_parquet(data: bytes, schema: pa.Schema) -> pa.Table:
    """The inverse of `to_parquet`.

    Raises:
        ValueError: not Parquet, or not of this manifest version.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    version = (table.schema.metadata or {}).get(b"manifest_version", b"").decode()
    if version != str(MANIFEST_VERSION):
        raise ValueError(f"manifest version {version or 'missing'}, this reader knows {MANIFEST_VERSION}")
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise ValueError(f"columns {missing} are missing")
    return table


@dataclass(frozen=True)
class ManifestRef:
    """Where one night's set is, and how to know that it is whole."""

    run_id: str
    logical_date: str
    manifest_key: str
    manifest_sha256: str
    items_key: str
    items_sha256: str
    posters: int
    model_version: str

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> ManifestRef:
        """From JSON; unknown keys are ignored."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Pointer:
    """`manifests/latest.json`: the set that readers show, and the one before it."""

    current: ManifestRef
    previous: ManifestRef | None
    fencing_token: int
    published_at: str

    def to_json(self) -> bytes:
        """As stored."""
        previous = self.previous.__dict__ if self.previous else None
        return json.dumps(
            {
                "manifest_version": MANIFEST_VERSION,
                **self.current.__dict__,
                "previous": previous,
                "fencing_token": self.fencing_token,
                "published_at": self.published_at,
            },
            indent=2,
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> Pointer:
        """Inverse of `to_json`.

        Raises:
            ValueError: not a pointer of this version; the message says what is wrong.
        """
        try:
            value = json.loads(data)
            if value["manifest_version"] != MANIFEST_VERSION:
                raise ValueError(f"pointer version {value['manifest_version']}, this reader knows {MANIFEST_VERSION}")
            previous = value.get("previous")
            return cls(
                ManifestRef.parse(value),
                ManifestRef.parse(previous) if previous else None,
                int(value.get("fencing_token", 0)),
                str(value.get("published_at", "")),
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a manifest pointer: {type(error).__name__} {error}") from error
