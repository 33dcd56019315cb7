"""Exporting a night's posters to a store of the Redis protocol, for teams that read online.

    <prefix>:current                 JSON: which set is shown (`set`, `run_id`, `logical_date`, `manifest_key`, `posters`); set last
    <prefix>:<set>:<user id>         hash: item id -> JSON list of the user's variants, in the order of their numbers
    <prefix>:withdrawn               JSON: what nobody may be shown, as `manifests/withdrawn.json`
    <prefix>:sets                    sorted set: the sets that are there, by when they expire

A reader asks `HMGET <prefix>:<set>:<user> <item> ...` and draws one variant by `propensity`. A set is written before the
manifest's flip, whole before `current` leads to it, and expires by itself (`online.expire_hours`).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.storage.objects import client
from schemas.errors import InputError, ServerUnavailable
from schemas.manifest import ManifestRef, Withdrawn
from schemas.manifest_cache import FileCache
from schemas.manifest_shards import Shard
from schemas.manifest_source import ManifestSource, ObjectCorrupt, ObjectMissing
from schemas.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

USERS_PER_BATCH = 500
ROWS_PER_SLICE = 10_000
FLIP_ATTEMPTS = 10
FIELDS = (
    "poster_id",
    "image_key",
    "variant",
    "propensity",
    "model_version",
    "synthetic",
    "safety",
    "drawn_by_run",
    "picture_key",
    "width",
    "height",
)

User = tuple[str, dict[str, str]]


def set_name(ref: ManifestRef) -> str:
    """Name of a set in keys: the run, and which content, since an erasure rewrites a run's set."""
    return f"{ref.run_id}-{ref.manifest_sha256[:12]}"


def export(settings: Settings, ref: ManifestRef, *, turn_back: bool = False) -> str:
    """Write a stored set's posters by user, then lead online readers to it; a line in numbers.

    Readers stay with a later night's set unless `turn_back`. The same set again is written again: a store that lost its data
    is filled.

    Raises:
        InputError: `online.redis_url` is not set or wrong, or the package is not installed.
        ServerUnavailable: the store or S3 is away, or a shard is not there.
    """
    with _redis(settings) as redis:
        users, lifetime = 0, round(settings.online.expire_hours * 3600)
        _enter(redis, settings.online.prefix, ref, lifetime)
        for batch in _batches(_users(settings, ref), USERS_PER_BATCH):
            pipeline = redis.pipeline(transaction=True)
            for user_id, items in batch:
                key = f"{settings.online.prefix}:{set_name(ref)}:{user_id}"
                pipeline.delete(key)
                pipeline.hset(key, mapping=items)
                pipeline.expire(key, lifetime)
            pipeline.execute()
            users += len(batch)
        led = _lead(redis, settings.online.prefix, ref, turn_back=turn_back)
    words = "led to it" if led else "they stay with a later night"
    return f"online store: {ref.posters} posters of {users} users written, readers {words}"


def export_withdrawn(settings: Settings, withdrawn: Withdrawn) -> None:
    """Tell online readers what nobody may be shown.

    Raises:
        InputError, ServerUnavailable: as `export`.
    """
    with _redis(settings) as redis:
        redis.set(f"{settings.online.prefix}:withdrawn", withdrawn.to_json())


def forget(settings: Settings, users: Sequence[str]) -> int:
    """Delete users' posters of every set; how many keys went.

    Raises:
        InputError, ServerUnavailable: as `export`.
    """
    prefix = settings.online.prefix
    with _redis(settings) as redis:
        sets = [name.decode() for name in redis.zrange(f"{prefix}:sets", 0, -1)]
        keys = [f"{prefix}:{name}:{user}" for name in sets for user in users]
        return sum(redis.delete(*keys[start : start + 1000]) for start in range(0, len(keys), 1000))


def _users(settings: Settings, ref: ManifestRef) -> Iterator[User]:
    """Every user of a set with the hash that is stored; a shard at a time is on disk."""
    s3 = client(settings.s3)
    work = settings.state_dir / "work"
    work.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=work, prefix="online-") as folder:
            source = ManifestSource(s3, settings.s3.bucket, FileCache(Path(folder)))
            for shard in source.shards(ref):
                yield from _users_of(shard)
    except (ObjectMissing, ObjectCorrupt) as error:
        raise ServerUnavailable(f"online store: {error}: not whole in s3://{settings.s3.bucket}; try again") from error
    finally:
        s3.close()


def _users_of(shard: Shard) -> Iterator[User]:
    rows = shard.rows.select(["user_id", "item_id", *FIELDS])
    pages = (rows.slice(start, ROWS_PER_SLICE).to_pylist() for start in range(0, len(rows), ROWS_PER_SLICE))
    every = (row for page in pages for row in page)
    for user_id, posters in groupby(every, key=lambda row: row["user_id"]):
        items: dict[str, list[dict[str, Any]]] = {}
        for poster in posters:
            items.setdefault(poster["item_id"], []).append({name: poster[name] for name in FIELDS})
        yield user_id, {item: json.dumps(variants, separators=(",", ":")) for item, variants in items.items()}


def _batches(users: Iterator[User], size: int) -> Iterator[list[User]]:
    batch: list[User] = []
    for user in users:
        batch.append(user)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _enter(redis: Redis, prefix: str, ref: ManifestRef, lifetime: int) -> None:
    """List a set before anything of it is written, so that an erasure finds it.

    Those that have expired are taken off the list.
    """
    now = time.time()
    redis.zadd(f"{prefix}:sets", {set_name(ref): now + 2 * lifetime})
    redis.zremrangebyscore(f"{prefix}:sets", "-inf", now)


def _lead(redis: Redis, prefix: str, ref: ManifestRef, *, turn_back: bool) -> bool:
    """Replace `current` unless it leads to a later night; nobody else's change is overwritten unseen."""
    from redis import WatchError

    key = f"{prefix}:current"
    value = {
        "set": set_name(ref),
        "run_id": ref.run_id,
        "logical_date": ref.logical_date,
        "manifest_key": ref.manifest_key,
        "posters": ref.posters,
    }
    for _ in range(FLIP_ATTEMPTS):
        with redis.pipeline() as pipeline:
            pipeline.watch(key)
            there = pipeline.get(key)
            if there and not turn_back and json.loads(there)["logical_date"] > ref.logical_date:
                return False
            pipeline.multi()
            pipeline.set(key, json.dumps(value))
            try:
                pipeline.execute()
            except WatchError:
                continue
            return True
    raise ServerUnavailable(f"online store: {key} kept changing under us; try again")


@contextmanager
def _redis(settings: Settings) -> Iterator[Redis]:
    """A connection, and its errors in our words."""
    url = settings.online.redis_url
    if url is None:
        raise InputError("no online store: set PIGEON_ONLINE__REDIS_URL")
    try:
        from redis import Redis
        from redis.exceptions import AuthenticationError, RedisError
    except ImportError as error:
        raise InputError(
            "setting online.redis_url needs the extra `redis`: pip install 'pigeon-posters[redis]'"
        ) from error
    timeout = settings.online.timeout_seconds
    try:
        redis = Redis.from_url(url.get_secret_value(), socket_timeout=timeout, socket_connect_timeout=timeout)
    except ValueError as error:
        raise InputError(f"setting online.redis_url: {error}") from error
    try:
        yield redis
    except AuthenticationError as error:
        raise InputError(f"online store: {error}; check online.redis_url") from error
    except RedisError as error:
        raise ServerUnavailable(f"online store: {error} (setting online.redis_url)") from error
    finally:
        redis.close()
