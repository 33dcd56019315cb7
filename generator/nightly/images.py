"""Catalogue images: fetched from file, http(s) or s3 addresses within limits, decoded and hashed."""

from __future__ import annotations

import functools
import hashlib
import io
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from generator.storage.objects import Store
from schemas.errors import InputError
from schemas.settings import NightSettings

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 64 * 10**6
MIN_SIDE = 8


class UnreadableImage(Exception):
    """An image cannot be fetched or decoded; the text says why."""


@dataclass(frozen=True)
class Probe:
    """Outcome of fetching and decoding an image: its hash, or why it is unreadable."""

    sha256: str | None
    problem: str | None


def decode(data: bytes) -> Pixels:
    """(H, W, 3) RGB pixels; transparent images are laid on white.

    Raises:
        UnreadableImage: not an image, too large or too small.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE:
                    raise UnreadableImage(f"{image.width}x{image.height} pixels is out of range")
                if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
                    rgba = image.convert("RGBA")
                    white = Image.new("RGBA", rgba.size, "white")
                    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
                return np.asarray(image.convert("RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ) as error:
        raise UnreadableImage(f"not a readable picture: {error}"[:200]) from error


class CatalogImages:
    """Fetches images and keeps their bytes in a folder, so that drawing does not fetch again.

    Safe to use from several threads.
    """

    def __init__(self, settings: NightSettings, store: Store, cache_dir: Path) -> None:
        self._limit = settings.max_image_bytes
        self._timeout = settings.image_timeout_seconds
        self._store = store
        self._cache = cache_dir
        self._cache.mkdir(parents=True, exist_ok=True)
        self._pixels = functools.lru_cache(maxsize=32)(self._decoded)

    def probe_all(self, uris: Iterable[str], *, threads: int = 8) -> dict[str, Probe]:
        """Probe each address once."""
        unique = sorted(set(uris))
        with ThreadPoolExecutor(threads, thread_name_prefix="fetch") as pool:
            return dict(zip(unique, pool.map(self.probe, unique), strict=True))

    def probe(self, uri: str) -> Probe:
        """Fetch and decode one image, keeping its bytes."""
        try:
            data = self._fetch(uri)
            decode(data)
        except UnreadableImage as error:
            return Probe(None, str(error))
        sha256 = hashlib.sha256(data).hexdigest()
        self._keep(sha256, data)
        return Probe(sha256, None)

    def pixels(self, uri: str, sha256: str) -> Pixels:
        """(H, W, 3) RGB pixels of the image that the plan saw.

        Raises:
            UnreadableImage: it is gone, or its bytes have changed since the plan.
        """
        return self._pixels(uri, sha256)

    def _decoded(self, uri: str, sha256: str) -> Pixels:
        path = self._cache / sha256
        data = path.read_bytes() if path.is_file() else self._fetch(uri)
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink(missing_ok=True)
            data = self._fetch(uri)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise UnreadableImage(f"{uri} has changed since the night was planned")
        return decode(data)

    def _keep(self, sha256: str, data: bytes) -> None:
        path = self._cache / sha256
        if not path.is_file():
            draft = self._cache / f".{sha256}.{threading.get_ident()}"
            draft.write_bytes(data)
            draft.replace(path)

    def _fetch(self, uri: str) -> bytes:
        parts = urlsplit(uri)
        if parts.scheme in {"", "file"}:
            data = self._read_file(Path(unquote(parts.path)) if parts.scheme else Path(uri))
        elif parts.scheme in {"http", "https"}:
            data = self._read_http(uri)
        elif parts.scheme == "s3":
            data = self._read_s3(parts.netloc, unquote(parts.path).lstrip("/"))
        else:
            raise UnreadableImage(f"{parts.scheme}: is not file, http, https or s3")
        if not data:
            raise UnreadableImage("is empty")
        if len(data) > self._limit:
            raise UnreadableImage(f"is larger than {self._limit} bytes (setting night.max_image_bytes)")
        return data

    def _read_file(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(self._limit + 1)
        except OSError as error:
            raise UnreadableImage(f"cannot read {path}: {error.strerror}") from error

    def _read_http(self, uri: str) -> bytes:
        try:
            with urllib.request.urlopen(uri, timeout=self._timeout) as answer:  # noqa: S310 - the scheme is http(s)
                data: bytes = answer.read(self._limit + 1)
                return data
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise UnreadableImage(f"cannot fetch {uri}: {error}"[:200]) from error

    def _read_s3(self, bucket: str, key: str) -> bytes:
        try:
            stored = self._store.get(key, bucket=bucket)
        except InputError as error:  # somebody else's bucket: this image's failure, not the night's
            raise UnreadableImage(str(error)) from error
        if stored is None:
            raise UnreadableImage(f"no such object s3://{bucket}/{key}")
        return stored.body
