"""Pictures: each distinct one is drawn once, whoever asks for it.

A picture is known by what draws it and by its codes; no user and no item is in its key. `Pictures.want` says which pictures
are there and which must be drawn first; tasks that wait are parked here and hold no thread. `draw` claims a picture, draws,
judges and stores it; one that another process is drawing is looked after by `poll`.

The first bytes that are stored for a key are the picture, whoever draws it again: a GPU may give others each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.nightly.compose import png
from generator.nightly.picture_rows import CORRUPT, Claim, ClaimLost, PictureTable
from generator.nightly.rows import PictureRow
from generator.nightly.select import BLANK, image_hash
from generator.safety.judge import CLEARED, SafetyCheck, Verdict
from generator.serving.api import InferenceCorrupt, InferenceRejected, Picture, PictureRequest
from generator.storage.objects import Store
from schemas.errors import PigeonError
from schemas.faultpoints import reach
from schemas.manifest_files import art_key

log = logging.getLogger("pigeon.night")

Pixels = npt.NDArray[np.uint8]

MIN_SIDE = 8
REMEMBERED = 10_000
"""Pictures whose rows one process keeps in memory; a KiB or so each."""
OPEN_IMAGES = 64
"""Pictures whose pixels one process keeps in memory."""
RENEWALS = 3
"""Times that a claim is renewed before it would end."""


class PictureGone(Exception):
    """A drawn picture's file is not in the bucket any more."""


def picture_key(drawing_version: str, tokens: Sequence[int]) -> str:
    """What a picture is known by: a hash of what draws it and of its codes."""
    return _digest(drawing_version, tokens)[:32]


def picture_seed(drawing_version: str, tokens: Sequence[int]) -> int:
    """The seed of a picture's noise, in 0..2^53-1: of the same hash as its key."""
    return int(_digest(drawing_version, tokens)[32:48], 16) >> 11


def _digest(drawing_version: str, tokens: Sequence[int]) -> str:
    codes = ",".join(str(int(token)) for token in tokens)
    return hashlib.sha256(f"picture {len(drawing_version)} {drawing_version} {codes}".encode()).hexdigest()


@dataclass(eq=False)
class Waiting:
    """A task that asks for pictures: those it has and those it waits for."""

    pictures: dict[str, PictureRow] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    failed: bool = False
    """Waits no longer, whatever comes."""
    draw_seconds: float = 0.0
    """Time that the model took for pictures that were drawn because of this task."""


@dataclass(frozen=True)
class Order:
    """A picture to be drawn."""

    key: str
    tokens: tuple[int, ...]
    lost: str | None = None
    """Key of the drawn picture's file, where that is not in the bucket any more."""


class Pictures:
    """The pictures of one process; safe to use from several threads.

    `call` makes a model call with retries; `model` draws, and its version is part of every key.
    """

    def __init__(
        self,
        table: PictureTable,
        store: Store,
        draw: Callable[[PictureRequest], Picture],
        drawing_version: str,
        *,
        blank_stddev: float,
        claim_seconds: float,
        safety: SafetyCheck | None = None,
    ) -> None:
        self._table = table
        self._store = store
        self._draw_picture = draw
        self._drawing_version = drawing_version
        self._blank_stddev = blank_stddev
        self._renew_after = claim_seconds / RENEWALS
        self._safety = safety
        self._settled: OrderedDict[str, PictureRow] = OrderedDict()
        self._pixels: OrderedDict[str, Pixels] = OrderedDict()
        """By the hash of their file."""
        self._waiters: dict[str, list[Waiting]] = {}
        self._elsewhere: dict[str, Order] = {}
        self._claims: dict[str, tuple[Claim, float]] = {}
        self._lock = threading.Lock()
        self.parked = 0
        """Tasks that wait for a picture."""
        self.drawn = 0
        """Pictures that the model drew for us."""
        self.reused = 0
        """Times that a task found its picture drawn, or being drawn, already."""
        self.uploaded_bytes = 0
        self.judged = 0
        """Pictures that the safety model was asked about."""
        self.judge_seconds = 0.0

    # --- asking ---

    def want(self, asker: Waiting, wanted: Mapping[str, tuple[int, ...]]) -> tuple[list[Order], bool]:
        """Give the asker the pictures that are there, and park it while there are others.

        Returns:
            Pictures that must be drawn first, and whether the asker waits for none.
        """
        with self._lock:
            unknown = [key for key in wanted if key not in self._settled]
        stored = self._stored(unknown)
        orders = []
        with self._lock:
            for key, tokens in wanted.items():
                row = self._settled.get(key) or stored.get(key)
                if isinstance(row, PictureRow):
                    self._remember(row)
                    asker.pictures[key] = row
                    self.reused += 1
                    continue
                asker.missing.add(key)
                self.reused += key in self._waiters
                if key not in self._waiters:
                    orders.append(Order(key, tokens, row))
                self._waiters.setdefault(key, []).append(asker)
            self.parked += bool(asker.missing)
            return orders, not asker.missing

    def _stored(self, keys: Sequence[str]) -> dict[str, PictureRow | str]:
        """Rows of pictures that are settled; where a drawn one's file is gone, the file's key."""
        found: dict[str, PictureRow | str] = {}
        for key, row in self._table.read(keys).items():
            if isinstance(row, PictureRow):
                there = row.status == "refused" or self._store.exists(row.art_key)
                found[key] = self._judged_today(row) if there else row.art_key
        used = [key for key, row in found.items() if isinstance(row, PictureRow)]
        if used:
            self._table.touch(used)
        return found

    def _judged_today(self, row: PictureRow) -> PictureRow | str:
        """A drawn picture with today's verdict; the key of its file where that cannot be judged any more."""
        if row.status == "refused" or self._safety is None:
            return row
        stored = row.verdict
        try:
            verdict = self._safety.of_stored(stored) or self._ask(self._safety, self.pixels(row))
        except PictureGone:
            return row.art_key
        if verdict == stored:
            return row
        self._table.record_verdict(row.picture_key, verdict, self._safety.threshold)
        return row.with_verdict(verdict)

    def forget(self, keys: Sequence[str]) -> None:
        """Look at these pictures again before the next task gets them."""
        with self._lock:
            for key in keys:
                self._settled.pop(key, None)

    def pixels(self, picture: PictureRow) -> Pixels:
        """(H, W, 3) RGB pixels of a drawn picture.

        Raises:
            PictureGone: its file is gone, or is not what the row says.
        """
        with self._lock:
            known = self._pixels.get(picture.art_sha256)
        if known is not None:
            return known
        stored = self._store.get(picture.art_key)
        if stored is None or hashlib.sha256(stored.body).hexdigest() != picture.art_sha256:
            raise PictureGone(picture.art_key)
        pixels = decoded(stored.body)
        self._keep_pixels(picture.art_sha256, pixels)
        return pixels

    # --- drawing ---

    def draw(self, order: Order) -> list[Waiting]:
        """Draw a picture unless another process does; returns the tasks that wait for nothing more.

        Raises:
            InferenceError: the model does not answer for this picture; `give_up` tells who waits for it.
            Stopped: the night is being stopped; the picture is anybody's again.
        """
        start = time.monotonic()
        # Another process may have drawn a lost picture again since it was missed.
        lost = order.lost if order.lost and not self._store.exists(order.lost) else None
        claim = self._table.claim(order.key, order.tokens, lost=lost)
        if claim is None:
            row = self._table.read([order.key])[order.key]
            if isinstance(row, PictureRow):
                return self._settle(row)
            with self._lock:
                self._elsewhere[order.key] = order
            return []
        reach("claimed picture")
        with self._lock:
            self._claims[order.key] = (claim, time.monotonic())
        try:
            drawn = self._finished(claim) or self._drawn(claim, order)
        except ClaimLost:
            self.forget([order.key])
            with self._lock:
                self._elsewhere[order.key] = order
            return []
        except BaseException:
            with contextlib.suppress(ClaimLost, PigeonError):
                self._table.release(claim)
            raise
        finally:
            with self._lock:
                self._claims.pop(order.key, None)
        return self._settle(drawn, time.monotonic() - start)

    def _finished(self, claim: Claim) -> PictureRow | None:
        """What an earlier claimant has stored without saying so."""
        intended = claim.intended
        if intended is None or not self._store.exists(intended.art_key):
            return None
        try:
            row = self._judged(intended, lambda: self.pixels(intended))
        except PictureGone:
            return None
        self._table.settle(claim, row)
        return row

    def _drawn(self, claim: Claim, order: Order) -> PictureRow:
        row = PictureRow(order.key, order.tokens, "refused", CORRUPT, claim.safety)
        try:
            picture = self._draw_picture(
                PictureRequest(order.tokens, picture_seed(self._drawing_version, order.tokens))
            )
        except (InferenceCorrupt, InferenceRejected) as error:
            log.warning("night: picture %s: %s", order.key, error)
            self._table.settle(claim, row)
            return row
        with self._lock:
            self.drawn += 1
        reach("drawn")
        reason = flaw(picture, self._blank_stddev)
        if reason != CORRUPT:
            row = replace(row, reason=reason, look=str(image_hash(picture.image)), embedding=picture.embedding)
        if reason is None:
            row = self._judged(replace(row, status="drawn"), lambda: picture.image)
        if row.status == "drawn":  # nothing unsafe comes into the bucket
            if first := self._finished(claim):  # an earlier claimant was slow, not dead
                return first
            row = self._keep(claim, row, picture.image)
        self._table.settle(claim, row)
        reach("stored")
        return row

    def _judged(self, row: PictureRow, image: Callable[[], Pixels]) -> PictureRow:
        """A drawn picture with its verdict, refused when that is unsafe."""
        if self._safety is None or row.safety == CLEARED:
            return row
        return row.with_verdict(self._safety.of_stored(row.verdict) or self._ask(self._safety, image()))

    def _ask(self, safety: SafetyCheck, image: Pixels) -> Verdict:
        start = time.monotonic()
        verdict = safety.judged(image)
        with self._lock:
            self.judged += 1
            self.judge_seconds += time.monotonic() - start
        return verdict

    def _keep(self, claim: Claim, row: PictureRow, image: Pixels) -> PictureRow:
        """Name the picture's file in its row, then store it."""
        body = png(image)
        sha = hashlib.sha256(body).hexdigest()
        row = replace(row, art_key=art_key(sha), art_sha256=sha)
        self._table.intend(claim, row)
        reach("intended")
        new = self._store.create_content(row.art_key, body, "image/png")
        with self._lock:
            self.uploaded_bytes += len(body) if new else 0
        self._keep_pixels(sha, image)
        return row

    def _settle(self, row: PictureRow, seconds: float = 0.0) -> list[Waiting]:
        released = []
        with self._lock:
            self._remember(row)
            self._elsewhere.pop(row.picture_key, None)
            waiters = self._waiters.pop(row.picture_key, [])
            for number, one in enumerate(waiters):
                one.draw_seconds += seconds if number == 0 else 0.0
                one.pictures[row.picture_key] = row
                one.missing.discard(row.picture_key)
                self.parked -= not one.missing
                if not one.missing and not one.failed:
                    released.append(one)
        return released

    def give_up(self, key: str) -> list[Waiting]:
        """Nobody waits for this picture any more; returns the tasks that did, for which it has failed."""
        with self._lock:
            waiters = [one for one in self._waiters.pop(key, []) if not one.failed]
            for one in waiters:
                one.failed = True
            for others in self._waiters.values():
                others[:] = [one for one in others if not one.failed]
            self.parked -= len(waiters)
        return waiters

    # --- others' claims, and ours ---

    def poll(self) -> tuple[list[Order], list[Waiting]]:
        """Look after what other processes draw, and renew our claims.

        Returns:
            Pictures that must be drawn here after all, and tasks that wait for nothing more.
        """
        self._renew()
        with self._lock:
            elsewhere = dict(self._elsewhere)
        orders, released = [], []
        for key, row in self._table.read(list(elsewhere)).items():
            if isinstance(row, PictureRow):
                released += self._settle(row)
            elif row == "free":
                orders.append(elsewhere[key])
        with self._lock:
            for order in orders:
                self._elsewhere.pop(order.key, None)
        return orders, released

    def _renew(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [claim for claim, since in self._claims.values() if now - since >= self._renew_after]
        for claim in due:
            try:
                self._table.renew(claim)
            except ClaimLost:  # noticed again when the picture is written
                continue
            with self._lock:
                if claim.picture_key in self._claims:
                    self._claims[claim.picture_key] = (claim, now)

    def _remember(self, row: PictureRow) -> None:
        self._settled[row.picture_key] = row
        self._settled.move_to_end(row.picture_key)
        while len(self._settled) > REMEMBERED:
            self._settled.popitem(last=False)

    def _keep_pixels(self, sha256: str, pixels: Pixels) -> None:
        with self._lock:
            self._pixels[sha256] = pixels
            while len(self._pixels) > OPEN_IMAGES:
                self._pixels.popitem(last=False)


def decoded(body: bytes) -> Pixels:
    """(H, W, 3) RGB pixels of a stored file."""
    with Image.open(io.BytesIO(body)) as image:
        return np.asarray(image.convert("RGB"))


def flaw(picture: Picture, blank_stddev: float) -> str | None:
    """Why nobody is shown a picture: it is no image, or blank."""
    image, embedding = picture.image, picture.embedding
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < MIN_SIDE:
        return CORRUPT
    if not np.isfinite(embedding).all():
        return CORRUPT
    if float(image.std(axis=(0, 1)).max()) < blank_stddev:
        return BLANK
    return None
