"""The manifest's files, for writers: keys in the bucket, schemas, the pointer.

Readers want schemas/manifest.py.

bucket/
  posters/<sha256>.webp               composed posters, content-addressed, created only if absent
  art/<sha256>.png                    the model's picture before composition
  manifests/<date>/<run_id>/<i>-of-<n>.<hash>.arrow   a shard: the rows of the users whose hash begins with i (schemas/manifest_shards.py)
  manifests/<date>/<run_id>/items.<hash>.arrow        the catalogue's own pictures, the last rung of the ladder
  manifests/<date>/<run_id>/set.<hash>.json           the set as a whole: its shards and items with their hashes
  manifests/<date>/<run_id>.report.html
  manifests/latest.json               the pointer, replaced with If-Match only; lists the shards of the set that readers show
  manifests/withdrawn.json            what was taken back (schemas/manifest_withdrawn.py), replaced with If-Match only
  snapshots/<snapshot_id>.jsonl       preference pairs
  models/<version>/...                adapters
  releases/...                        model repositories for the hosts of Triton (generator/serving/release.py)

Version 1 had one Parquet file per set, `manifests/<date>/<run_id>.parquet`, and `<run_id>.items.parquet`; they stay readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST_VERSION = 2
POINTER_KEY = "manifests/latest.json"
WITHDRAWN_KEY = "manifests/withdrawn.json"
ARROW = "application/vnd.apache.arrow.file"
JSON = "application/json"

_RENDITIONS = pa.list_(
    pa.struct(
        [
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("image_key", pa.string(), nullable=False),
            pa.field("image_sha256", pa.string(), nullable=False),
        ]
    )
)
POSTER_SCHEMA_V1 = pa.schema(
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
        pa.field("renditions", _RENDITIONS, nullable=False),
    ],
    metadata={"manifest_version": "1"},
)
POSTER_SCHEMA = pa.schema(
    [
        *POSTER_SCHEMA_V1,
        pa.field("explored", pa.bool_(), nullable=False),
        pa.field("choice_propensity", pa.float32(), nullable=False),
        # None in rows of the release before.
        pa.field("picture_key", pa.string(), nullable=True),
    ],
    metadata={"manifest_version": str(MANIFEST_VERSION)},
)
ITEM_SCHEMA = pa.schema(
    [pa.field("item_id", pa.string(), nullable=False), pa.field("image_uri", pa.string(), nullable=True)],
    metadata={"manifest_version": str(MANIFEST_VERSION)},
)
ITEM_SCHEMA_V1 = ITEM_SCHEMA.with_metadata({"manifest_version": "1"})


def poster_key(sha256: str) -> str:
    """Key of a composed poster."""
    return f"posters/{sha256}.webp"


def art_key(sha256: str) -> str:
    """Key of the model's picture before composition."""
    return f"art/{sha256}.png"


def set_folder(logical_date: str, run_id: str) -> str:
    """Prefix of all files of a run's set."""
    return f"manifests/{logical_date}/{run_id}/"


def shard_key(logical_date: str, run_id: str, index: int, count: int, sha256: str) -> str:
    """Key of a shard. It tells which users' rows are in it, and which bytes they are."""
    return f"{set_folder(logical_date, run_id)}{index:04}-of-{count:04}.{sha256[:16]}.arrow"


def set_items_key(logical_date: str, run_id: str, sha256: str) -> str:
    """Key of the catalogue's own pictures as of that night."""
    return f"{set_folder(logical_date, run_id)}items.{sha256[:16]}.arrow"


def manifest_key(logical_date: str, run_id: str) -> str:
    """Key of a night's Parquet manifest; version 1."""
    return f"manifests/{logical_date}/{run_id}.parquet"


def items_key(logical_date: str, run_id: str) -> str:
    """Key of the catalogue's own pictures as of that night; version 1."""
    return f"manifests/{logical_date}/{run_id}.items.parquet"


def report_key(logical_date: str, run_id: str) -> str:
    """Key of the night's HTML report."""
    return f"manifests/{logical_date}/{run_id}.report.html"


def to_parquet(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, **about: str) -> bytes:
    """Rows as a file of version 1; the same rows in the same order give the same bytes.

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
        ValueError: not Parquet, or not of the schema's manifest version.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    check_schema(table.schema, schema)
    return table


def check_schema(found: pa.Schema, wanted: pa.Schema) -> None:
    """Refuse a file of another manifest version or with fewer columns.

    Raises:
        ValueError: it is one.
    """
    version, known = ((s.metadata or {}).get(b"manifest_version", b"").decode() for s in (found, wanted))
    if version != known:
        raise ValueError(f"manifest version {version or 'missing'}, this reader knows {known}")
    missing = [name for name in wanted.names if name not in found.names]
    if missing:
        raise ValueError(f"columns {missing} are missing")


@dataclass(frozen=True)
class ShardRef:
    """Where a shard is, and how to know that it is whole."""

    key: str
    sha256: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class ManifestRef:
    """Where one night's set is, and how to know that it is whole.

    `manifest_key` is the set's own file (version 1: the Parquet file with all rows). `shards` are in the order of the users'
    hashes, a power of two of them; a set of version 1 has none.
    """

    run_id: str
    logical_date: str
    manifest_key: str
    manifest_sha256: str
    items_key: str
    items_sha256: str
    posters: int
    model_version: str
    items_bytes: int = 0
    shards: tuple[ShardRef, ...] = ()

    @property
    def version(self) -> int:
        """The manifest version of its files."""
        return 2 if self.shards else 1

    @property
    def keys(self) -> tuple[str, ...]:
        """Every object of the set."""
        return (self.manifest_key, self.items_key, *(shard.key for shard in self.shards))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = [name for name in self.__dataclass_fields__ if name not in {"items_bytes", "shards"}]
        value = {name: getattr(self, name) for name in names}
        if self.shards:
            value |= {"items_bytes": self.items_bytes, "shards": [dict(shard.__dict__) for shard in self.shards]}
        return value

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> ManifestRef:
        """From JSON; unknown keys are ignored.

        Raises:
            ValueError: the number of shards is no power of two.
            KeyError, TypeError: something is missing or of another type.
        """
        given = {name: value[name] for name in cls.__dataclass_fields__ if name in value and name != "shards"}
        names = ShardRef.__dataclass_fields__
        shards = tuple(ShardRef(**{name: row[name] for name in names}) for row in value.get("shards", ()))
        if len(shards) & (len(shards) - 1):
            raise ValueError(f"not a manifest pointer: {len(shards)} shards are no power of two")
        return cls(**given, shards=shards)

    @classmethod
    def of_set(
        cls,
        *,
        run_id: str,
        logical_date: str,
        model_version: str,
        shards: tuple[ShardRef, ...],
        items: ShardRef,
    ) -> tuple[ManifestRef, bytes]:
        """A set of version 2 from its parts, and the body of its own file."""
        value = {
            "manifest_version": MANIFEST_VERSION,
            "run_id": run_id,
            "logical_date": logical_date,
            "model_version": model_version,
            "items_key": items.key,
            "items_sha256": items.sha256,
            "items_bytes": items.bytes,
            "posters": sum(shard.rows for shard in shards),
            "shards": [dict(shard.__dict__) for shard in shards],
        }
        body = json.dumps(value, indent=1).encode()
        sha256 = hashlib.sha256(body).hexdigest()
        key = f"{set_folder(logical_date, run_id)}set.{sha256[:16]}.json"
        return cls.parse({**value, "manifest_key": key, "manifest_sha256": sha256}), body

    @classmethod
    def parse_set(cls, key: str, body: bytes) -> ManifestRef:
        """From the set's own file, stored under `key`.

        Raises:
            ValueError: it is no such file.
        """
        try:
            value = json.loads(body)
            if value["manifest_version"] != MANIFEST_VERSION:
                raise ValueError(f"set version {value['manifest_version']}, this reader knows {MANIFEST_VERSION}")
            return cls.parse({**value, "manifest_key": key, "manifest_sha256": hashlib.sha256(body).hexdigest()})
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a manifest's set: {type(error).__name__} {error}") from error


@dataclass(frozen=True)
class Pointer:
    """`manifests/latest.json`: the set that readers show, and the one before it."""

    current: ManifestRef
    previous: ManifestRef | None
    fencing_token: int
    published_at: str

    def to_json(self) -> bytes:
        """As stored. Of version 1, for readers of then, as long as it leads to nothing else."""
        version = max(self.current.version, self.previous.version if self.previous else 1)
        return json.dumps(
            {
                "manifest_version": version,
                **self.current.to_dict(),
                "previous": self.previous.to_dict() if self.previous else None,
                "fencing_token": self.fencing_token,
                "published_at": self.published_at,
            },
            indent=2,
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> Pointer:
        """Inverse of `to_json`; version 1 is understood, too.

        Raises:
            ValueError: not a pointer of a version we know; the message says what is wrong.
        """
        try:
            value = json.loads(data)
            if value["manifest_version"] not in {1, MANIFEST_VERSION}:
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
