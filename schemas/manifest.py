"""The reader of the S3 manifest: a recommender's whole integration.

    from schemas.manifest import PosterManifest

    posters = PosterManifest.open(bucket="pigeon", endpoint_url="https://s3.example.org")
    choice = posters.poster_for("u42", "m7")
    if choice and choice.image_key:
        show(choice.image_key, choice.poster_id, choice.propensity)   # send the last two back with the feedback

What is where in the bucket: schemas/manifest_files.py, whose names are given again here.
"""

from __future__ import annotations

import hashlib
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from schemas.connections import s3_client
from schemas.errors import InputError, ServerUnavailable
from schemas.hashing import unit_interval
from schemas.manifest_files import (
    ITEM_SCHEMA,
    MANIFEST_VERSION,
    POINTER_KEY,
    POSTER_SCHEMA,
    ManifestRef,
    Pointer,
    art_key,
    from_parquet,
    items_key,
    manifest_key,
    poster_key,
    report_key,
    to_parquet,
)

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

__all__ = [
    "ITEM_SCHEMA",
    "MANIFEST_VERSION",
    "POINTER_KEY",
    "POSTER_SCHEMA",
    "Alarm",
    "ManifestRef",
    "Pointer",
    "PosterChoice",
    "PosterManifest",
    "Source",
    "art_key",
    "from_parquet",
    "items_key",
    "manifest_key",
    "poster_key",
    "report_key",
    "to_parquet",
]

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
    """The recommender's reader of the newest set; safe to use from several threads.

    Light: of libraries it imports pyarrow and boto3 only.

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
        """Connect and read the newest set.

        Keys that are not given come from where boto3 looks (environment, profile, role).

        Raises:
            InputError: the bucket does not exist or the keys are refused.
            ServerUnavailable: the store cannot be reached.
        """
        if client is None:
            client = s3_client(
                endpoint_url=endpoint_url,
                region=region or "us-east-1",
                access_key_id=access_key_id,
                secret_access_key=secret_access_key,
                max_attempts=4,
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
        """Look for a newer set now; True when there was one.

        Never raises: what goes wrong is an alarm.
        """
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
    point = unit_interval(key) * sum(row["propensity"] for row in rows)
    for row in rows:
        point -= row["propensity"]
        if point < 0:
            return row
    return rows[-1]
