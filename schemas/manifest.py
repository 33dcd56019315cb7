"""The S3 manifest: its Parquet schema, its keys, and the reader that is a recommender's whole integration.

    from schemas.manifest import PosterManifest

    posters = PosterManifest.open(bucket="pigeon", endpoint_url="https://s3.example.org")
    choice = posters.poster_for("u42", "m7")
    if choice and choice.image_key:
        show(choice.image_key, choice.poster_id, choice.propensity)   # send the last two back with the feedback

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

import hashlib
import json
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import InputError, ServerUnavailable

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

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
    """Rows as Parquet; the same rows in the same order give the same bytes. `about` joins the file's metadata.

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


Source = Literal["tonight", "last_good", "item"]
Alarm = Literal[
    "pointer_unreadable",
    "manifest_missing",
    "manifest_corrupt",
    "items_missing",
    "items_corrupt",
    "refresh_failed",
    "nothing_published",
]


@dataclass(frozen=True)
class PosterChoice:
    """What to show for (user, item).

    `source` is the rung of the ladder: "tonight" (drawn by the night of the manifest), "last_good" (by an earlier one that
    still holds, or read from the set before because the newest cannot be read), "item" (the catalogue's own picture: then
    only `image_uri` is set). Send `poster_id` and `propensity` back with the feedback.
    """

    source: Source
    poster_id: str | None = None
    image_key: str | None = None
    image_uri: str | None = None
    variant: int | None = None
    propensity: float | None = None
    model_version: str | None = None
    synthetic: bool = False
    safety: str | None = None


@dataclass(frozen=True)
class _Loaded:
    """One whole set in memory; replaced as a whole, so that a caller never sees two nights mixed."""

    ref: ManifestRef
    is_previous: bool
    users: list[str]
    """Sorted, one per poster, as the rows are."""
    rows: pa.Table
    items: dict[str, str | None]
    etag: str


class PosterManifest:
    """The recommender's side. Light: pyarrow and boto3 only. Safe to use from several threads.

    Looks for a new night at most every `refresh_seconds`, by the pointer's ETag. Whatever goes wrong after the first
    reading, `poster_for` answers from the last whole set that was read; `alarms` counts what went wrong, and `on_alarm` is told.
    """

    def __init__(
        self,
        s3: S3Client,
        bucket: str,
        *,
        refresh_seconds: float = 60.0,
        on_alarm: Callable[[Alarm, str], None] | None = None,
    ) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._refresh_seconds = refresh_seconds
        self._on_alarm = on_alarm
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._looked_at = float("-inf")
        self.alarms: Counter[Alarm] = Counter()

    @classmethod
    def open(
        cls,
        *,
        bucket: str,
        endpoint_url: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        client: S3Client | None = None,
        refresh_seconds: float = 60.0,
        on_alarm: Callable[[Alarm, str], None] | None = None,
    ) -> PosterManifest:
        """Connect and read the newest set. Keys that are not given come from where boto3 looks (environment, profile, role).

        Raises:
            InputError: the bucket does not exist or the keys are refused.
            ServerUnavailable: the store cannot be reached.
        """
        if client is None:
            import boto3
            from botocore.config import Config

            client = boto3.client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region or "us-east-1",
                aws_access_key_id=access_key_id,
                aws_secret_access_key=secret_access_key,
                config=Config(
                    signature_version="s3v4",
                    connect_timeout=5,
                    read_timeout=30,
                    retries={"mode": "standard", "total_max_attempts": 4},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        reader = cls(client, bucket, refresh_seconds=refresh_seconds, on_alarm=on_alarm)
        reader._load()
        reader._looked_at = time.monotonic()
        return reader

    @property
    def current(self) -> ManifestRef | None:
        """The set that answers now; None while nothing has been published."""
        return self._loaded.ref if self._loaded else None

    def refresh(self) -> bool:
        """Look for a newer set now; True when there was one. Never raises: what goes wrong is an alarm."""
        with self._lock:
            self._looked_at = time.monotonic()
            before = self._loaded
            try:
                self._load()
            except (InputError, ServerUnavailable) as error:
                self._alarm("refresh_failed", str(error))
            return self._loaded is not before

    def poster_for(self, user_id: str, item_id: str, *, on: date | None = None) -> PosterChoice | None:
        """What to show this user for this item; None when not even the item is known.

        Variants are drawn with their propensities by a stable hash of (user, item, date), so that a user sees one variant
        for the whole day. The date is the night's unless `on` is given.
        """
        if time.monotonic() - self._looked_at >= self._refresh_seconds:
            self.refresh()
        loaded = self._loaded
        if loaded is None:
            return None
        variants = self._variants(loaded, user_id, item_id)
        if variants:
            row = _pick(variants, f"{user_id}\x1f{item_id}\x1f{on.isoformat() if on else loaded.ref.logical_date}")
            tonight = row["drawn_by_run"] == loaded.ref.run_id and not loaded.is_previous
            return PosterChoice(
                source="tonight" if tonight else "last_good",
                poster_id=row["poster_id"],
                image_key=row["image_key"],
                variant=row["variant"],
                propensity=row["propensity"],
                model_version=row["model_version"],
                synthetic=row["synthetic"],
                safety=row["safety"],
            )
        image_uri = loaded.items.get(item_id)
        return PosterChoice(source="item", image_uri=image_uri) if image_uri else None

    def variants_for(self, user_id: str, item_id: str) -> list[dict[str, Any]]:
        """All rows of the manifest for this user and item, in the order of their variant numbers."""
        return self._variants(self._loaded, user_id, item_id) if self._loaded else []

    def rows(self) -> pa.Table:
        """The whole set, as POSTER_SCHEMA."""
        return self._loaded.rows if self._loaded else POSTER_SCHEMA.empty_table()

    @staticmethod
    def _variants(loaded: _Loaded, user_id: str, item_id: str) -> list[dict[str, Any]]:
        start = bisect_left(loaded.users, user_id)
        stop = start
        while stop < len(loaded.users) and loaded.users[stop] == user_id:
            stop += 1
        return [row for row in loaded.rows.slice(start, stop - start).to_pylist() if row["item_id"] == item_id]

    def _load(self) -> None:
        """Read the pointer and, when it has changed, the set that it leads to, else the one before."""
        answer = self._get(POINTER_KEY, none_match=self._loaded.etag if self._loaded else None)
        if answer is None:
            if self._loaded is None:
                self._alarm("nothing_published", POINTER_KEY)
            return
        body, etag = answer
        if not body:  # not modified
            return
        try:
            pointer = Pointer.parse(body)
        except ValueError as error:
            self._alarm("pointer_unreadable", str(error))
            return
        for ref, is_previous in ((pointer.current, False), (pointer.previous, True)):
            rows = self._read(ref.manifest_key, ref.manifest_sha256, POSTER_SCHEMA) if ref is not None else None
            if ref is not None and rows is not None:
                items = self._read(ref.items_key, ref.items_sha256, ITEM_SCHEMA, "items_missing", "items_corrupt")
                if items is None:
                    items = ITEM_SCHEMA.empty_table()
                uris = dict(zip(items["item_id"].to_pylist(), items["image_uri"].to_pylist(), strict=True))
                # A set read instead of a missing one is looked at again next time: its tag is not the pointer's.
                self._loaded = _Loaded(
                    ref, is_previous, rows["user_id"].to_pylist(), rows, uris, "" if is_previous else etag
                )
                return

    def _read(
        self,
        key: str,
        sha256: str,
        schema: pa.Schema,
        missing: Alarm = "manifest_missing",
        corrupt: Alarm = "manifest_corrupt",
    ) -> pa.Table | None:
        answer = self._get(key)
        if answer is None:
            self._alarm(missing, key)
            return None
        if hashlib.sha256(answer[0]).hexdigest() != sha256:
            self._alarm(corrupt, f"{key} is not what the pointer says")
            return None
        try:
            return from_parquet(answer[0], schema)
        except ValueError as error:
            self._alarm(corrupt, f"{key}: {error}")
            return None

    def _get(self, key: str, *, none_match: str | None = None) -> tuple[bytes, str] | None:
        """Body and ETag; an empty body when the tag still matches; None when there is no such object."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            condition = {"IfNoneMatch": none_match} if none_match else {}
            answer = self._s3.get_object(Bucket=self._bucket, Key=key, **condition)  # type: ignore[arg-type]
            return answer["Body"].read(), answer["ETag"]
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in {"304", "NotModified"}:
                return b"", none_match or ""
            if code in {"NoSuchKey", "404"}:
                return None
            if code in {"NoSuchBucket", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "403"}:
                raise InputError(f"S3 bucket {self._bucket}: {code}; check bucket, endpoint and keys") from error
            raise ServerUnavailable(f"S3 bucket {self._bucket}, {key}: {code}") from error
        except BotoCoreError as error:
            raise ServerUnavailable(f"S3 bucket {self._bucket}: {error}") from error

    def _alarm(self, alarm: Alarm, detail: str) -> None:
        self.alarms[alarm] += 1
        if self._on_alarm:
            self._on_alarm(alarm, detail)


def _pick(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """One row, with its propensity, by the hash of `key`."""
    point = int(hashlib.sha256(key.encode()).hexdigest()[:13], 16) / 16**13 * sum(row["propensity"] for row in rows)
    for row in rows:
        point -= row["propensity"]
        if point < 0:
            return row
    return rows[-1]
