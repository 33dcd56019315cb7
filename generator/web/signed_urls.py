"""Addresses of images that a browser can open: public ones, or signed by AWS Signature Version 4.

botocore signs with the present second, so that every page would have other addresses and no browser could keep a picture. These
are dated at the beginning of a span, half of their lifetime long, and are the same for all processes and pages of that span.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from schemas.errors import InputError
from schemas.settings_s3 import S3Settings
from schemas.settings_web import WebSettings

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

ALGORITHM = "AWS4-HMAC-SHA256"


class ImageAddresses:
    """Addresses of the bucket's objects and of catalogue pictures."""

    def __init__(self, web: WebSettings, s3: S3Settings, client: S3Client) -> None:
        """`client` tells the endpoint and, where the settings have none, the keys."""
        self._public = web.images_url
        self._seconds = web.image_seconds
        self._bucket, self._region = s3.bucket, s3.region
        self._client = client
        parts = urlsplit(client.meta.endpoint_url)
        # With an endpoint of one's own the bucket is in the path; at AWS it is in the host.
        self._host = parts.netloc if s3.endpoint_url else f"{s3.bucket}.{parts.netloc}"
        self._path = f"{parts.path.rstrip('/')}/{s3.bucket}" if s3.endpoint_url else ""
        self._base = f"{parts.scheme}://{self._host}"
        self._signing: tuple[int, _Signing] | None = None

    @property
    def origin(self) -> str:
        """Scheme and host of the bucket's addresses."""
        parts = urlsplit(self._public or self._base)
        return f"{parts.scheme}://{parts.netloc}"

    def span(self, now: float) -> int:
        """The number of the span in which addresses stay the same; 0 where they never change."""
        return 0 if self._public else int(now // (self._seconds / 2))

    def of_key(self, key: str, now: float | None = None) -> str:
        """The address of an object of the bucket."""
        if self._public:
            return f"{self._public}/{quote(key)}"
        span = self.span(time.time() if now is None else now)
        if self._signing is None or self._signing[0] != span:
            self._signing = span, self._make(span)
        return self._signing[1].address(self._base, f"{self._path}/{quote(key)}")

    def of_uri(self, uri: str | None, now: float | None = None) -> str | None:
        """The address of a catalogue picture; None where a browser cannot open it."""
        if not uri:
            return None
        parts = urlsplit(uri)
        if parts.scheme in {"http", "https"}:
            return uri
        own = parts.scheme == "s3" and parts.netloc == self._bucket
        return self.of_key(parts.path.lstrip("/"), now) if own else None

    def _make(self, span: int) -> _Signing:
        start = datetime.fromtimestamp(span * self._seconds / 2, UTC)
        found = self._client._request_signer._credentials  # type: ignore[attr-defined] # where boto3 found them
        if found is None:
            raise InputError(
                "no keys to sign addresses of images with: set PIGEON_S3__ACCESS_KEY_ID and PIGEON_S3__SECRET_ACCESS_KEY, or "
                "web.images_url where the bucket is public"
            )
        keys = found.get_frozen_credentials()
        return _Signing(
            self._host, self._region, start, int(self._seconds), keys.access_key, keys.secret_key, keys.token or ""
        )


class _Signing:
    """What all addresses of a span have in common."""

    def __init__(
        self, host: str, region: str, at: datetime, seconds: int, key_id: str, secret: str, token: str
    ) -> None:
        self._host = host
        self._stamp = at.strftime("%Y%m%dT%H%M%SZ")
        self._scope = f"{self._stamp[:8]}/{region}/s3/aws4_request"
        query = {
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{key_id}/{self._scope}",
            "X-Amz-Date": self._stamp,
            "X-Amz-Expires": str(seconds),
            **({"X-Amz-Security-Token": token} if token else {}),
            "X-Amz-SignedHeaders": "host",
        }
        self._query = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(query.items()))
        key = f"AWS4{secret}".encode()
        for part in self._scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        self._key = key

    def address(self, base: str, path: str) -> str:
        request = f"GET\n{path}\n{self._query}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        text = f"{ALGORITHM}\n{self._stamp}\n{self._scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        return f"{base}{path}?{self._query}&X-Amz-Signature={signature}"
