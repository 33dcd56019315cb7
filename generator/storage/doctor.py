"""What is asked of S3 for `pigeon doctor`: bucket, rights, clock, conditional writes.

What it writes is under `doctor/`, and deleted again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from botocore.exceptions import ClientError

from generator.storage.objects import Store
from schemas.errors import InputError, PigeonError, ServerUnavailable
from schemas.runtime.checkup import Finding, Probe, ok, warn, wrong
from schemas.settings import Settings
from schemas.settings_s3 import S3Settings

AREA = "s3"
PREFIX = "checks/"
"""Where probe objects are, for as long as the probe takes."""
CLOCK_SECONDS = 60.0
"""Seconds by which clocks may differ: S3 refuses what was signed 15 minutes ago or ahead."""
PATIENCE_SECONDS = 5.0
_NOT_IMPLEMENTED = frozenset({400, 405, 501})
NO_ETAG = '"00000000000000000000000000000000"'


def _bucket(settings: Settings) -> Iterator[Finding]:
    store = _store(settings.s3)
    try:
        store.check()
        where = settings.s3.endpoint_url or f"AWS, region {settings.s3.region}"
        yield ok(AREA, "bucket", f"{settings.s3.bucket} at {where}")
        yield from _clock(store)
        if store.versioning == "on":
            yield warn(
                AREA,
                "versions",
                "the bucket keeps versions: erasures must be allowed to delete them (s3:DeleteObjectVersion)",
            )
    finally:
        store.s3.close()


def _clock(store: Store) -> Iterator[Finding]:
    answer = store.s3.list_objects_v2(Bucket=store.bucket, MaxKeys=1)
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    if not told:
        return
    apart = abs((datetime.now(UTC) - parsedate_to_datetime(told)).total_seconds())
    if apart > CLOCK_SECONDS:
        mend = "let both follow a time server (NTP); from 15 minutes on S3 refuses our signatures"
        yield warn(AREA, "clock", f"differs from ours by {apart:.0f} s", mend)
    else:
        yield ok(AREA, "clock", "agrees with ours")


def _writes(settings: Settings) -> Iterator[Finding]:
    store = _store(settings.s3)
    key = f"{PREFIX}{uuid.uuid4().hex}"
    try:
        store.put(key, b"pigeon doctor", "text/plain")
        yield from _conditions(store, key)
        read = store.get(key)
        if read is None:
            mend = "another one; a store must show what it has acknowledged"
            yield wrong(AREA, "reads", "what was written a moment ago is not there", mend)
        store.delete(key)
        if store.exists(key):
            yield wrong(AREA, "rights", f"{key} cannot be deleted: erasures would leave files", "allow s3:DeleteObject")
        else:
            yield ok(AREA, "rights", "writing, reading and deleting are allowed")
    finally:
        _take_away(store, key)
        store.s3.close()


def _conditions(store: Store, key: str) -> Iterator[Finding]:
    """Whether the store refuses what If-None-Match and If-Match forbid: of two publishers one must win."""
    forbidden: dict[str, Callable[[], bool]] = {
        "If-None-Match": lambda: not store.replace(key, b"second", "text/plain", etag=None),
        "If-Match": lambda: not store.replace(key, b"third", "text/plain", etag=NO_ETAG),
    }
    for header, refused in forbidden.items():
        mend = "use a store that has conditional writes (AWS S3, MinIO, SeaweedFS 3.8x or newer)"
        try:
            if refused():
                yield ok(AREA, "conditional writes", f"{header} is obeyed")
            else:
                yield wrong(AREA, "conditional writes", f"{header} is ignored: two publishers would both win", mend)
        except PigeonError as error:
            if isinstance(error, ServerUnavailable) and not _is_refusal(error):
                raise
            yield wrong(AREA, "conditional writes", f"{header} is refused: {error}", mend, InputError)


def _is_refusal(error: PigeonError) -> bool:
    """Whether the store said that it cannot do it, and not that it is away."""
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return False
    return cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _NOT_IMPLEMENTED


def _take_away(store: Store, key: str) -> None:
    try:
        store.delete(key)
    except PigeonError:
        return  # it was told of above


def _store(settings: S3Settings) -> Store:
    """A store that gives up soon: a doctor does not wait an outage out."""
    impatient = {
        "connect_timeout_seconds": min(settings.connect_timeout_seconds, PATIENCE_SECONDS),
        "read_timeout_seconds": min(settings.read_timeout_seconds, PATIENCE_SECONDS),
        "max_attempts": 1,
    }
    return Store(settings.model_copy(update=impatient))


PROBES = (
    Probe(AREA, "bucket", _bucket, seconds=20.0),
    Probe(AREA, "writes", _writes, seconds=30.0),
)
