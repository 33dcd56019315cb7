"""A manifest's objects in the bucket: reading them, verified, into memory-mapped sets."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from schemas.errors import ServerUnavailable
from schemas.manifest_cache import FileCache
from schemas.manifest_files import (
    ITEM_SCHEMA_V1,
    POSTER_SCHEMA_V1,
    ManifestRef,
    ShardRef,
    from_parquet,
)
from schemas.manifest_shards import ITEM_SHARD_SCHEMA, SHARD_SCHEMA, Shard, stable_hash, with_hashes, write_shard
from schemas.s3_errors import ABSENT, DENIED, code_of, from_response

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

CHUNK_BYTES = 1 << 18
ATTEMPTS = 3
PAUSE_SECONDS = 1e-4
"""Seconds between two shards in which other threads get the interpreter: callers wait for a shard's mapping at most."""


class ObjectMissing(Exception):
    """A named object is not in the bucket."""


class ObjectDenied(ObjectMissing):
    """A named object is refused to these keys.

    It may be missing: keys that may not list the bucket are not told.
    """


class ObjectCorrupt(Exception):
    """A named object is not what its name says."""


class ManifestSet:
    """One whole set; replaced as a whole, so that a caller never sees two nights mixed."""

    def __init__(
        self, ref: ManifestRef, shards: dict[str, Shard], *, is_previous: bool = False, etag: str = ""
    ) -> None:
        """Take shards by their place and name, in the order of the users' hashes.

        `etag` is the pointer's that led here; empty when another set had to be read than the pointer's.
        """
        self.ref = ref
        self.shards = shards
        self.items: dict[str, Shard] = {}
        """The items' file by its name; empty when it could not be read."""
        self.is_previous = is_previous
        self.etag = etag
        self._in_order = tuple(shards.values())
        self._shift = 64 - (len(shards).bit_length() - 1)

    @property
    def files(self) -> set[str]:
        """Names of its files in the cache."""
        return {name.rpartition("/")[2] for name in (*self.shards, *self.items)}

    def posters_of(self, user_id: str) -> tuple[Shard, int, int]:
        """The shard of a user, and which of its rows are the user's."""
        hashed = stable_hash(user_id)
        shard = self._in_order[hashed >> self._shift]
        start, end = shard.span(np.uint64(hashed), user_id)
        return shard, start, end

    def image_uri(self, item_id: str) -> str | None:
        """The catalogue's own picture of an item."""
        for items in self.items.values():
            start, end = items.span(np.uint64(stable_hash(item_id)), item_id)
            if start < end:
                uri: str | None = items.columns["image_uri"][start].as_py()
                return uri
        return None


class ManifestSource:
    """Reads one bucket.

    Every method may raise InputError (wrong bucket, keys), ServerUnavailable, or OSError of the cache.
    """

    def __init__(
        self, s3: S3Client, bucket: str, cache: FileCache, reconnect: Callable[[], S3Client] | None = None
    ) -> None:
        """`reconnect` made the client, which is then ours to close."""
        self._s3: S3Client | None = s3
        self._bucket = bucket
        self._reconnect = reconnect
        self.cache = cache

    def close(self) -> None:
        """Close our own client's connections; it makes new ones when it is used again."""
        if self._reconnect and self._s3:
            self._s3.close()

    def after_fork(self) -> None:
        """Two processes on one connection would read each other's answers: this one gets its own."""
        if self._reconnect:
            self._s3 = None
        elif self._s3:
            self._s3.close()

    def _client(self) -> S3Client:
        if self._s3 is None:
            assert self._reconnect is not None  # noqa: S101 - `after_fork` looked
            self._s3 = self._reconnect()
        return self._s3

    def get(self, key: str, *, none_match: str | None = None) -> tuple[bytes, str] | None:
        """Body and ETag; an empty body when the tag still matches; None when there is no such object.

        Raises:
            ObjectDenied: the store does not tell these keys whether there is one.
        """
        chunks = self._chunks(key, none_match)
        try:
            etag = next(chunks).decode()
            return b"".join(chunks), etag
        except ObjectDenied:
            raise
        except ObjectMissing:
            return None

    def open_set(
        self, ref: ManifestRef, *, is_previous: bool = False, etag: str = "", known: ManifestSet | None = None
    ) -> ManifestSet:
        """Map all shards of a set; those that `known` has open are used again. `open_items` adds the items.

        Raises:
            ObjectMissing, ObjectCorrupt: the message names the object.
        """
        wanted = ref.shards or (ShardRef(ref.manifest_key, ref.manifest_sha256, ref.posters, 0),)
        have = known.shards if known else {}
        shards: dict[str, Shard] = {}
        for number, shard in enumerate(wanted):
            # Empty shards are alike: each keeps its place.
            name = f"{number}/{_name(shard.sha256, ref.version)}"
            if name in have:
                shards[name] = have[name]
                continue
            shards[name] = self._shard(shard.key, shard.sha256, ref.version)
            time.sleep(PAUSE_SECONDS)
        return ManifestSet(ref, shards, is_previous=is_previous, etag=etag)

    def shards(self, ref: ManifestRef) -> Iterator[Shard]:
        """The shards of a set one after the other; none is kept open.

        Raises:
            ObjectMissing, ObjectCorrupt: the message names the object.
        """
        for shard in ref.shards or (ShardRef(ref.manifest_key, ref.manifest_sha256, ref.posters, 0),):
            yield self._shard(shard.key, shard.sha256, ref.version)
            self.cache.remove(_name(shard.sha256, ref.version))

    def open_items(self, ref: ManifestRef, known: ManifestSet | None = None) -> dict[str, Shard]:
        """The items' file of a set.

        Raises:
            ObjectMissing, ObjectCorrupt: the message names the object.
        """
        name = _name(ref.items_sha256, ref.version, "items")
        if known and name in known.items:
            return {name: known.items[name]}
        return {name: self._shard(ref.items_key, ref.items_sha256, ref.version, items=True)}

    def _shard(self, key: str, sha256: str, version: int, *, items: bool = False) -> Shard:
        def make(path: Path) -> None:
            self._download(key, sha256, path)
            if version == 1:
                _convert(path, key, items=items)

        file = self.cache.open(_name(sha256, version, "items" if items else "shard"), make)
        try:
            return Shard(file, ITEM_SHARD_SCHEMA if items else SHARD_SCHEMA)
        except ValueError as error:
            raise ObjectCorrupt(f"{key}: {error}") from error
        finally:
            os.close(file)

    def _download(self, key: str, sha256: str, path: Path) -> None:
        for attempt in range(ATTEMPTS):
            digest = hashlib.sha256()
            try:
                with path.open("wb") as file:
                    chunks = self._chunks(key)
                    next(chunks)
                    for chunk in chunks:
                        digest.update(chunk)
                        file.write(chunk)
            except ServerUnavailable:
                if attempt + 1 == ATTEMPTS:
                    raise
                continue
            break
        if digest.hexdigest() != sha256:
            raise ObjectCorrupt(f"{key} is not what the pointer says")

    def _chunks(self, key: str, none_match: str | None = None) -> Iterator[bytes]:
        """The ETag, then the body piece by piece; nothing after the ETag when it still matches."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            condition = {"IfNoneMatch": none_match} if none_match else {}
            answer = self._client().get_object(Bucket=self._bucket, Key=key, **condition)  # type: ignore[arg-type]
            yield answer["ETag"].encode()
            yield from answer["Body"].iter_chunks(CHUNK_BYTES)
        except ClientError as error:
            code = code_of(error.response)
            if code in {"304", "NotModified"}:
                yield (none_match or "").encode()
                return
            if code in ABSENT:
                raise ObjectMissing(key) from error
            if code in DENIED:
                raise ObjectDenied(
                    f"{key}: {code}: not there yet, which these keys are not told without s3:ListBucket, or they lack "
                    "s3:GetObject"
                ) from error
            # A reader starts once and then runs for months: only what waiting never mends ends it.
            raise from_response(error.response, f"bucket {self._bucket}, {key}") from error
        except BotoCoreError as error:
            raise ServerUnavailable(f"S3 bucket {self._bucket}: {error}") from error


def _name(sha256: str, version: int, kind: str = "shard") -> str:
    """A file's name in the cache; files of version 1 are kept as shards of version 2."""
    return f"{sha256}.{kind}.arrow" if version == 1 else f"{sha256}.arrow"


def _convert(path: Path, key: str, *, items: bool) -> None:
    """Make a shard of a verified file of version 1, in its place."""
    schema = ITEM_SHARD_SCHEMA if items else SHARD_SCHEMA
    try:
        rows = from_parquet(path.read_bytes(), ITEM_SCHEMA_V1 if items else POSTER_SCHEMA_V1)
    except ValueError as error:
        raise ObjectCorrupt(f"{key}: {error}") from error
    if not items:
        rows = rows.append_column("explored", pa.array([False] * len(rows)))
        rows = rows.append_column("choice_propensity", pa.array([1.0] * len(rows), pa.float32()))
        rows = rows.append_column("picture_key", pa.nulls(len(rows), pa.string()))
    write_shard(with_hashes(rows, schema), path)
