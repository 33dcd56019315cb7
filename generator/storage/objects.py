"""The object store: content-addressed puts, conditional replacement, clear errors."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from schemas import s3_keys
from schemas.connections import s3_client, s3_options
from schemas.errors import InputError, ServerUnavailable
from schemas.s3_errors import ABSENT, DENIED, code_of, from_response
from schemas.settings_s3 import S3Settings

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef


log = logging.getLogger("pigeon.storage")


class _Again(Exception):
    """The server asked for a retry that botocore does not do by itself."""


class _ConditionRefused(Exception):
    """The store answered that it has no such condition."""


_REFUSED = DENIED | {"MethodNotAllowed", "405", "NotImplemented", "501"}
PROBE_PREFIX = "checks/"
"""First part of the keys of what is written to learn what the store can do; each is deleted at once."""
CONDITIONAL_STORES = (
    "a store with conditional writes (AWS, MinIO, SeaweedFS, newer Ceph; a gateway in front must pass them on)"
)
_HEADERS = {"IfNoneMatch": "If-None-Match", "IfMatch": "If-Match"}
_NO_OBJECTS_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class Entry:
    """What the bucket's list tells of an object."""

    key: str
    modified_at: datetime
    bytes: int


@dataclass(frozen=True)
class Stored:
    """An object's bytes and the tag that a conditional replacement needs."""

    body: bytes
    etag: str


def client(settings: S3Settings) -> S3Client:
    """A boto3 client with the timeouts, retries and checksum policy of the settings."""
    return s3_client(**s3_options(settings))


class Store:
    """One bucket; every method may raise InputError (wrong bucket, secret) or ServerUnavailable."""

    def __init__(self, settings: S3Settings, s3: S3Client | None = None) -> None:
        self.bucket = settings.bucket
        self.s3 = s3 or client(settings)
        self.uri = settings.uri
        self._where = f"{settings.endpoint_url or 'AWS'}, bucket {settings.bucket}"
        self._keys_end = settings.session_token is not None
        self._attempts = settings.max_attempts
        self._versioning: str | None = None
        self.versions_left: list[str] = []
        """Keys whose older versions we were not allowed to delete."""

    def check(self, *, writes: bool = False) -> None:
        """Fail early when the bucket is missing, the keys, the region or the clock are wrong.

        With `writes` also when the store does not hold to the conditions of a write, which keep two nights from overwriting
        each other.
        """
        if self._keys_end and not s3_keys.key_files():
            log.warning(
                "s3.session_token is fixed: its keys end with it, and nothing renews them; leave s3's keys to boto3"
            )
        try:
            self.s3.list_objects_v2(Bucket=self.bucket, MaxKeys=1)
        except (ClientError, BotoCoreError) as error:
            raise self._plain(error, starting=True) from error
        if writes and (broken := self.broken_conditions()):
            raise InputError(
                f"S3 ({self._where}): {broken[0]}, so two nights could overwrite each other; "
                f"set PIGEON_S3__ENDPOINT_URL to {CONDITIONAL_STORES}"
            )

    def broken_conditions(self) -> list[str]:
        """What the store does not hold to of the conditions of a write, in words; none where it holds to all.

        What is written to learn it is deleted again.
        """
        key = f"{PROBE_PREFIX}{uuid.uuid4()}"
        try:
            etag, none_match = self._try_none_match(key)
            match = self._try_match(key, etag or self._probe(key))
            return [words for words in (none_match, match) if words]
        finally:
            with contextlib.suppress(InputError, ServerUnavailable):
                self.delete(key)

    def _try_none_match(self, key: str) -> tuple[str | None, str]:
        """The tag of a new object, None where it may not be there, and what is wrong."""
        try:
            # Where the answer to the first one was lost, its second try finds what it wrote.
            etag = self._probe(key, IfNoneMatch="*") or self._etag(key)
            if self._probe(key, IfNoneMatch="*"):
                return None, "If-None-Match is ignored"
        except _ConditionRefused as refusal:
            return None, str(refusal)
        return etag, "" if etag else "If-None-Match refuses a new object"

    def _try_match(self, key: str, etag: str | None) -> str:
        try:
            if self._probe(key, IfMatch=_NO_OBJECTS_ETAG):
                return "If-Match is ignored"
            # Where the answer was lost, the second try may find another tag.
            if not self._probe(key, IfMatch=etag) and self._etag(key) == etag:
                return "If-Match refuses the object's own tag"
        except _ConditionRefused as refusal:
            return str(refusal)
        return ""

    def _etag(self, key: str) -> str | None:
        there = self._head(key)
        return there["ETag"] if there else None

    def _probe(self, key: str, **condition: Any) -> str | None:
        """The tag of what was written under a condition; None when the condition did not hold."""
        try:
            for attempt in self._retrying():
                with attempt:
                    try:
                        return self.s3.put_object(Bucket=self.bucket, Key=key, Body=b"probe", **condition)["ETag"]
                    except ClientError as error:
                        if _code(error) in {"ConditionalRequestConflict", "409"}:
                            raise _Again("conditional request conflict") from error
                        raise
        except ClientError as error:
            code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code in {"PreconditionFailed", "412"}:
                return None
            if condition and (code in {"NotImplemented", "InvalidArgument", "InvalidRequest"} or status in {405, 501}):
                raise _ConditionRefused(f"{_HEADERS[next(iter(condition))]} is answered {code}") from error
            raise self._plain(error, starting=True) from error
        except (BotoCoreError, _Again) as error:
            raise self._plain(error) from error
        raise AssertionError("unreachable")

    def get(self, key: str, *, bucket: str | None = None) -> Stored | None:
        """The object, or None when there is none."""
        try:
            for attempt in self._retrying():
                with attempt:
                    answer = self.s3.get_object(Bucket=bucket or self.bucket, Key=key)
                    try:
                        body = answer["Body"].read()
                    except BotoCoreError as error:  # cut off in the middle: botocore does not retry the body
                        raise _Again(str(error)) from error
                    return Stored(body, answer["ETag"])
        except ClientError as error:
            if _code(error) in ABSENT:
                return None
            raise self._plain(error) from error
        except (BotoCoreError, _Again) as error:
            raise self._plain(error) from error
        raise AssertionError("unreachable")

    def create(self, key: str, body: bytes, content_type: str) -> bool:
        """Put `body` under `key` if there is nothing yet; False when these very bytes were there already.

        Raises:
            FileExistsError: the key holds other bytes; they are left as they are.
        """
        if self._put(key, body, content_type, IfNoneMatch="*"):
            return True
        there = self.get(key)
        if there is None:  # deleted between the two calls
            return self.create(key, body, content_type)
        if hashlib.sha256(there.body).digest() != hashlib.sha256(body).digest():
            raise FileExistsError(key)
        return False

    def create_file(self, key: str, path: Path, content_type: str, *, sha256: str) -> bool:
        """As `create_content`, of a file of any size whose hash is known; it is not read back.

        Other bytes are known by their length, or by the hash that they were stored with.
        """
        if self._put_file(key, path, content_type, sha256, IfNoneMatch="*"):
            return True
        there = self._head(key)
        if there is not None and (there["ContentLength"], there["Metadata"].get("sha256")) == (
            path.stat().st_size,
            sha256,
        ):
            return False
        self._put_file(key, path, content_type, sha256)
        return True

    def _put_file(self, key: str, path: Path, content_type: str, sha256: str, **condition: Any) -> bool:
        with path.open("rb") as body:
            return self._put(key, body, content_type, Metadata={"sha256": sha256}, **condition)

    def create_content(self, key: str, body: bytes, content_type: str) -> bool:
        """Put `body` under a key that is made of its hash; False when it was there already.

        Other bytes under such a key are damaged, and are replaced.
        """
        try:
            return self.create(key, body, content_type)
        except FileExistsError:
            self.put(key, body, content_type)
            return True

    def replace(self, key: str, body: bytes, content_type: str, *, etag: str | None) -> bool:
        """Put `body` if the object still has `etag` (None: if there is none); False when somebody was first."""
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        return self._put(key, body, content_type, **condition)

    def put(self, key: str, body: bytes, content_type: str) -> None:
        """Put `body`, whatever was there."""
        self._put(key, body, content_type)

    def delete(self, key: str) -> None:
        """Delete the object for good, older versions included; one that is not there is fine.

        Versions that we may not delete are named in `versions_left`.
        """
        try:
            self.s3.delete_object(Bucket=self.bucket, Key=key)
        except (ClientError, BotoCoreError) as error:
            raise self._plain(error) from error
        self._delete_versions(key, current=True)

    def delete_older_versions(self, key: str) -> None:
        """Delete all versions of an object but the one that is read; where we may not, as `delete`."""
        self._delete_versions(key, current=False)

    @property
    def versioning(self) -> str:
        """Whether the bucket keeps versions: "off", "on", or "unknown: " and the code of the refusal."""
        if self._versioning is None:
            try:
                answer = self.s3.get_bucket_versioning(Bucket=self.bucket)
                # A suspended bucket keeps the versions it has.
                self._versioning = "on" if answer.get("Status") else "off"
            except ClientError as error:
                if _code(error) not in _REFUSED:
                    raise self._plain(error) from error
                self._versioning = f"unknown: {_code(error)}"
            except BotoCoreError as error:
                raise self._plain(error) from error
        return self._versioning

    def _delete_versions(self, key: str, *, current: bool) -> None:
        if self.versioning != "on":
            return
        try:
            for version in [one for one in self._versions(key) if current or not one[1]]:
                self.s3.delete_object(Bucket=self.bucket, Key=key, VersionId=version[0])
        except ClientError as error:
            if _code(error) not in _REFUSED:
                raise self._plain(error) from error
            self.versions_left.append(key)
        except BotoCoreError as error:
            raise self._plain(error) from error

    def _versions(self, key: str) -> Iterator[tuple[str, bool]]:
        """Versions of a key, deletion marks included, and whether each is the one that is read."""
        for page in self.s3.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=key):
            for entry in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
                if entry["Key"] == key:
                    yield entry["VersionId"], entry["IsLatest"]

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._head(key) is not None

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key under `prefix`, in order."""
        return (entry.key for page in self.pages(prefix) for entry in page)

    def pages(self, prefix: str) -> Iterator[list[Entry]]:
        """Every object under `prefix`, in the order of keys, as many at a time as the server gives."""
        page, is_last = self._page(prefix, "")
        yield page
        while not is_last:
            page, is_last = self._page(prefix, page[-1].key)
            yield page

    def _head(self, key: str) -> HeadObjectOutputTypeDef | None:
        try:
            return self.s3.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if _code(error) in ABSENT:
                return None
            raise self._plain(error) from error
        except BotoCoreError as error:
            raise self._plain(error) from error

    def _page(self, prefix: str, after: str) -> tuple[list[Entry], bool]:
        """Objects under `prefix` whose keys follow `after`, and whether these are all."""
        try:
            answer = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix, StartAfter=after)
        except (ClientError, BotoCoreError) as error:
            raise self._plain(error) from error
        page = [Entry(one["Key"], one["LastModified"], one["Size"]) for one in answer.get("Contents", [])]
        return page, not (answer.get("IsTruncated") and page)

    def _put(self, key: str, body: bytes | BinaryIO, content_type: str, **condition: Any) -> bool:
        try:
            for attempt in self._retrying():
                with attempt:
                    if not isinstance(body, bytes):
                        body.seek(0)
                    try:
                        self.s3.put_object(
                            Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, **condition
                        )
                    except ClientError as error:
                        if _code(error) in {"PreconditionFailed", "412"}:
                            return False
                        if _code(error) in {"ConditionalRequestConflict", "409"}:
                            raise _Again("conditional request conflict") from error
                        raise
        except (ClientError, BotoCoreError, _Again) as error:
            raise self._plain(error) from error
        return True

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_attempt(self._attempts),
            wait=wait_exponential_jitter(multiplier=0.1, max=5),
            reraise=True,
        )

    def _plain(self, error: Exception, *, starting: bool = False) -> Exception:
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return InputError("no S3 keys: set PIGEON_S3__ACCESS_KEY_ID and PIGEON_S3__SECRET_ACCESS_KEY")
        if isinstance(error, ClientError):
            return from_response(error.response, self._where, starting=starting)
        return ServerUnavailable(f"S3 ({self._where}): {error} (setting s3.endpoint_url)")


def _code(error: ClientError) -> str:
    return code_of(error.response)
