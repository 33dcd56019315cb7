"""Pictures as small data URIs: a page without links stays small however large the posters are."""

from __future__ import annotations

import base64
import io
import logging

from PIL import Image

from generator.nightly.frozen_prompt import FrozenImage
from generator.nightly.images import CatalogImages
from generator.storage.objects import Store
from schemas.manifest_files import art_key

log = logging.getLogger("pigeon.night")

POSTER_WIDTH = 220
SMALL_WIDTH = 88
QUALITY = 78


class Thumbs:
    """Small copies of stored files and of catalogue pictures.

    What cannot be had is None, and nobody waits for a host.
    """

    def __init__(self, store: Store, images: CatalogImages) -> None:
        self._store = store
        self._images = images
        self._made: dict[str, str | None] = {}

    def stored(self, key: str | None, width: int = POSTER_WIDTH) -> str | None:
        """A file of the bucket."""
        if not key:
            return None
        if key not in self._made:
            found = self._store.get(key)
            self._made[key] = _small(found.body, width, key) if found else None
        return self._made[key]

    def of(self, image: FrozenImage) -> str | None:
        """A picture of a prompt: one of the catalogue, or a drawn one that its user clicked."""
        return self.stored(art_key(image.sha256), SMALL_WIDTH) if image.picture_key else self.catalog(image.sha256)

    def catalog(self, sha256: str) -> str | None:
        """A catalogue picture that is on this machine's disk."""
        if sha256 not in self._made:
            body = self._images.cached(sha256)
            self._made[sha256] = _small(body, SMALL_WIDTH, sha256) if body else None
        return self._made[sha256]


def _small(body: bytes, width: int, name: str) -> str | None:
    try:
        with Image.open(io.BytesIO(body)) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
        log.warning("report: %s cannot be shown: %s", name, error)
        return None
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
