"""Poster files: each is composed and stored once for everybody who has the picture with this title.

A composition is known by all that `compose` takes. Its row names its file before the file is stored, so that no poster is in
the bucket without a row; the file of a row that was found is looked for once per process.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert

from generator.nightly.compose import NotComposable, compose, version_of
from generator.nightly.frozen_prompt import RECIPE_VERSION
from generator.nightly.ledger import Ledger, waits_out
from generator.nightly.pictures import Pixels
from generator.nightly.rows import PictureRow, Rendition
from generator.storage.objects import Store
from schemas.faultpoints import reach
from schemas.manifest_files import poster_key
from schemas.settings import NightSettings
from schemas.tables import Composition
from schemas.typefaces import Typefaces

REMEMBERED = 20_000
"""Compositions that one process keeps in memory; some hundred bytes each."""
LOCKS = 64
"""Compositions that are made at the same time, at most; two of one kind never are."""


@dataclass(frozen=True)
class Lettering:
    """What is written on a poster."""

    title: str
    year: str | None


class Compositions:
    """The compositions of one process; safe to use from several threads.

    `pixels` gives a drawn picture's, or raises PictureGone.
    """

    def __init__(
        self, ledger: Ledger, store: Store, settings: NightSettings, pixels: Callable[[PictureRow], Pixels]
    ) -> None:
        self._ledger = ledger
        self.outages = ledger.outages
        self._store = store
        self._settings = settings
        self._faces = Typefaces(settings.font, settings.fonts)
        self._pixels = pixels
        self._sizes = [width_and_height(size) for size in settings.sizes]
        self._known: OrderedDict[str, Rendition | str] = OrderedDict()
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._lock = threading.Lock()
        self.composed = 0
        """Files that were composed."""
        self.reused = 0
        """Files that somebody had composed before."""
        self.uploaded_bytes = 0

    def renditions(self, picture: PictureRow, lettering: Lettering) -> tuple[Rendition, ...]:
        """The poster of a drawn picture in all sizes; every file is in the bucket.

        Raises:
            NotComposable: the title cannot be set.
            PictureGone: the picture must be drawn again.
        """
        return tuple(self._rendition(picture, lettering, size) for size in self._sizes)

    def forget(self) -> None:
        """Look at the compositions again before the next task gets them."""
        with self._lock:
            self._known.clear()

    def key(self, picture: PictureRow, lettering: Lettering, size: tuple[int, int]) -> str:
        """What a composition is known by."""
        try:
            writing = version_of(lettering.title, self._faces)
        except NotComposable as error:
            writing = f"{error} {self._faces.files}"
        parts: tuple[object, ...] = (
            RECIPE_VERSION,
            picture.picture_key,
            picture.art_sha256,
            lettering.title,
            lettering.year,
            size,
            self._settings.webp_quality,
            str(self._settings.font or ""),
        )
        if writing:  # else the key of the files that are there already
            parts += (writing,)
        return hashlib.sha256(repr(("composition", *parts)).encode()).hexdigest()[:32]

    def _rendition(self, picture: PictureRow, lettering: Lettering, size: tuple[int, int]) -> Rendition:
        key = self.key(picture, lettering, size)
        with self._locks[int(key[:8], 16) % LOCKS]:
            with self._lock:
                known = self._known.get(key)
            found = known if known is not None else self._stored(key)
            is_new = found is None
            if found is None:
                found = self._composed(key, picture, lettering, size)
            with self._lock:
                self.reused += not is_new
                self._known[key] = found
                self._known.move_to_end(key)
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        if isinstance(found, str):
            raise NotComposable(found)
        return found

    @waits_out
    def _stored(self, key: str) -> Rendition | str | None:
        """What an earlier task or night has composed, or why it cannot be; None where the file is gone, too."""
        with self._ledger.reading() as session:
            row = session.get(Composition, key)
        if row is None or (row.image_key is not None and not self._store.exists(row.image_key)):
            return None
        with self._ledger.writing() as session:
            session.execute(
                update(Composition).where(Composition.composition_key == key).values(last_used_at=func.now())
            )
        if row.image_key is None or row.image_sha256 is None:
            return row.reason or "not composable"
        return Rendition(row.width, row.height, row.image_key, row.image_sha256)

    def _composed(self, key: str, picture: PictureRow, lettering: Lettering, size: tuple[int, int]) -> Rendition | str:
        settings = self._settings
        try:
            body = compose(
                self._pixels(picture),
                lettering.title,
                year=lettering.year,
                size=size,
                quality=settings.webp_quality,
                faces=self._faces,
            )
        except NotComposable as error:
            self._save(key, picture, size, None, str(error))
            return str(error)
        sha = hashlib.sha256(body).hexdigest()
        made = Rendition(*size, poster_key(sha), sha)
        self._save(key, picture, size, made, None)
        reach("composed")
        new = self._store.create_content(made.image_key, body, "image/webp")
        with self._lock:
            self.composed += 1
            self.uploaded_bytes += len(body) if new else 0
        reach("composition stored")
        return made

    @waits_out
    def _save(
        self, key: str, picture: PictureRow, size: tuple[int, int], made: Rendition | None, reason: str | None
    ) -> None:
        """Write the row, in place of one whose file is gone."""
        values = {
            "picture_key": picture.picture_key,
            "image_key": made.image_key if made else None,
            "image_sha256": made.image_sha256 if made else None,
            "width": size[0],
            "height": size[1],
            "reason": reason,
        }
        statement = insert(Composition).values(composition_key=key, **values)
        with self._ledger.writing() as session:
            session.execute(
                statement.on_conflict_do_update(
                    index_elements=[Composition.composition_key], set_={**values, "last_used_at": func.now()}
                )
            )


def width_and_height(size: str) -> tuple[int, int]:
    """A size of the settings in pixels."""
    width, height = size.split("x")
    return int(width), int(height)
