"""Addresses of S3 objects that carry our signature.

Pictures there are read under the same limits as others.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from schemas.connections import s3_client, s3_options

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

    from schemas.settings_s3 import S3Settings

EXPIRE_SECONDS = 3600

KEYS_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed")
"""Codes of S3 that tell of our keys or clock, not of the picture."""


class NoKeys(Exception):
    """There is nothing to sign with."""


class Signer:
    """Signs for any region; safe to use from several threads."""

    def __init__(self, settings: S3Settings) -> None:
        # Keys of pictures are whole: s3.prefix is for what is ours.
        self._options = {**s3_options(settings), "prefixed": ("", "")}
        self._lock = threading.Lock()
        self._clients: dict[str, S3Client] = {}

    def sign(self, bucket: str, key: str, region: str) -> str:
        """An http(s) address at which the object can be read for an hour.

        Raises:
            NoKeys: no keys are set, and boto3 finds none.
        """
        client = self._client(region)
        from botocore.exceptions import BotoCoreError

        try:
            url: str = client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=EXPIRE_SECONDS
            )
        except BotoCoreError as error:
            raise NoKeys(str(error)) from error
        return url

    def close(self) -> None:
        """Close all clients."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def _client(self, region: str) -> S3Client:
        with self._lock:
            if region not in self._clients:
                self._clients[region] = s3_client(**{**self._options, "region": region})
            return self._clients[region]
