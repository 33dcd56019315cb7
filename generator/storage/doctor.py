"""What is asked of S3 for `pigeon doctor`: bucket, rights, clock, conditional writes.

What it writes is under `checks/`, and deleted again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from generator.storage.objects import CONDITIONAL_STORES, PROBE_PREFIX, Store
from schemas.errors import PigeonError
from schemas.runtime.checkup import Finding, Probe, ok, warn, wrong
from schemas.settings import Settings
from schemas.settings_s3 import S3Settings

AREA = "s3"
CLOCK_SECONDS = 60.0
"""Seconds by which clocks may differ: S3 refuses what was signed 15 minutes ago or ahead."""
PATIENCE_SECONDS = 5.0


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
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    try:
        store.put(key, b"pigeon doctor", "text/plain")
        yield from _conditions(store)
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


def _conditions(store: Store) -> Iterator[Finding]:
    """Whether the store holds to If-None-Match and If-Match, as a night asks before it begins."""
    broken = store.broken_conditions()
    for words in broken:
        text = f"{words}: two publishers could both win"
        yield wrong(AREA, "conditional writes", text, f"use {CONDITIONAL_STORES}")
    if not broken:
        yield ok(AREA, "conditional writes", "If-None-Match and If-Match are obeyed")


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
