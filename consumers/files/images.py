"""Local pictures of a catalogue file: checked, then uploaded to S3 under their content's hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from schemas.connections import s3_client, s3_options
from schemas.errors import InputError, ServerUnavailable
from schemas.fetched import Fetched, HostUnavailable
from schemas.image_files import read_file
from schemas.images import FORMATS, FileKind, ImageProblem, read
from schemas.s3_errors import from_response
from schemas.settings_s3 import S3Settings


def local_path(uri: str, base: Path) -> Path | None:
    """The file that a URI means, relative to `base`; None when it is not a local file.

    Raises:
        ImageProblem: the scheme is not one of file, http, https and s3.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https", "s3"):
        return None
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme and "://" in uri:
        raise ImageProblem(f"image_uri {uri!r}: {parts.scheme}:// is not supported; use a path, http(s):// or s3://")
    return base / uri


@dataclass(frozen=True)
class CheckedImage:
    """A picture file's bytes, what kind of file it is, and whether it has one colour only."""

    content: bytes
    kind: FileKind
    blank: bool


def check(path: Path, limit_bytes: int) -> CheckedImage:
    """Read a picture file and decode it once by the night's rule, to be sure that it can be used.

    Raises:
        ImageProblem: it is missing, too large, damaged, or no picture.
    """
    try:
        answer = read_file(path, limit_bytes)
        assert isinstance(answer, Fetched)  # noqa: S101 - asked without a condition
        decoded = read(answer.body)
    except (ImageProblem, HostUnavailable) as error:
        raise ImageProblem(f"image {path}: {error}") from None
    return CheckedImage(answer.body, FORMATS[decoded.format], decoded.blank)


class Uploader:
    """Puts pictures under `catalog/<sha256>.<ext>`, each content once."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._client = s3_client(**s3_options(settings))
        self.uploaded = 0

    def upload(self, content: bytes, kind: FileKind) -> str:
        """Store a picture unless its content is there already; returns its s3:// URI.

        May be called from several threads.

        Raises:
            InputError: the bucket does not exist, or keys, region or clock are wrong.
            ServerUnavailable: the store does not answer.
        """
        key = f"catalog/{hashlib.sha256(content).hexdigest()}.{kind.extension}"
        put = {"Bucket": self._settings.bucket, "Key": key, "Body": content, "ContentType": kind.media_type}
        try:
            self._put(put)
        except ClientError as error:
            raise from_response(
                error.response, f"{self._settings.endpoint_url or 'AWS'}, bucket {self._settings.bucket}", starting=True
            ) from None
        except NoCredentialsError:
            raise InputError(
                "s3.access_key_id is empty: set PIGEON_S3__ACCESS_KEY_ID and PIGEON_S3__SECRET_ACCESS_KEY"
            ) from None
        except BotoCoreError as error:
            raise ServerUnavailable(f"s3.endpoint_url {self._settings.endpoint_url}: {error}") from None
        return self._settings.uri(key)

    def _put(self, put: dict[str, Any]) -> None:
        try:
            self._client.put_object(**put, IfNoneMatch="*")
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in (409, 412):  # there already, or being put at this moment: the same content either way
                return
            if status != 501:
                raise
            self._client.put_object(**put)  # a store without conditions: the key says what the content is
        self.uploaded += 1

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
