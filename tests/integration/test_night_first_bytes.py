"""Two writers of one picture, each with noise of its own: the first bytes are kept.

On real Postgres and S3; the model is a test double.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.picture_rows import PictureTable
from generator.nightly.pictures import Pictures, Waiting, decoded, picture_key
from generator.storage.lease import Lease, lead
from generator.storage.objects import Store
from schemas import faultpoints
from schemas.settings import Settings
from schemas.tables import Picture
from tests.support.noisy_pigeon import NoisyPigeon

pytestmark = pytest.mark.integration

TOKENS = (3, 1, 4, 1, 5)
KEY = picture_key(NoisyPigeon.drawing_version, TOKENS)
NO_TIME = 0.001
"""Seconds of a claim that is over before its claimant has drawn."""


@pytest.fixture
def lease(engine: Engine) -> Iterator[Lease]:
    with lead(engine, "night") as held:
        yield held
    faultpoints.handler = None


class Writer:
    """A process' pictures, and a task that asks it for one of them."""

    def __init__(self, settings: Settings, engine: Engine, lease: Lease, seed: int, claim_seconds: float) -> None:
        self.model = NoisyPigeon(seed)
        self.asker = Waiting()
        version = self.model.drawing_version
        self.pictures = Pictures(
            PictureTable(Ledger(engine, lease), version, claim_seconds),
            Store(settings.s3),
            lambda request: self.model.draw_pictures([request])[0],
            version,
            blank_stddev=1.0,
            claim_seconds=claim_seconds,
        )

    def draw(self) -> None:
        """Ask for the picture, draw it, and look after it where another process draws it."""
        orders, _ = self.pictures.want(self.asker, {KEY: TOKENS})
        for order in orders:
            self.pictures.draw(order)

    def check(self, settings: Settings) -> str:
        """Hash of what the asker got, which is what the row says and what lies in the bucket."""
        self.pictures.poll()
        got = self.asker.pictures[KEY]
        stored = Store(settings.s3).get(got.art_key)
        assert stored
        assert hashlib.sha256(stored.body).hexdigest() == got.art_sha256
        assert np.array_equal(self.pictures.pixels(got), decoded(stored.body))
        return got.art_sha256


def stored_hash(engine: Engine) -> str | None:
    with Session(engine) as session:
        row = session.scalars(select(Picture)).one()
    assert row.status == "drawn"
    return row.art_sha256


@pytest.mark.parametrize("point", ["drawn", "intended"])
def test_a_writer_that_is_overtaken_gets_the_bytes_of_the_other(
    settings: Settings, engine: Engine, lease: Lease, point: str
) -> None:
    """Its claim ends while it draws, or before it stores what it drew; the other one has stored by then."""
    slow, quick = Writer(settings, engine, lease, 1, NO_TIME), Writer(settings, engine, lease, 2, 60.0)

    def overtaken(reached: str) -> None:
        if reached == point and not quick.model.drawn:
            quick.draw()

    faultpoints.handler = overtaken
    slow.draw()
    assert (len(slow.model.drawn), len(quick.model.drawn)) == (1, 1)
    assert slow.check(settings) == quick.check(settings) == stored_hash(engine)


def test_what_a_slow_writer_stores_while_the_next_one_draws_is_kept(
    settings: Settings, engine: Engine, lease: Lease
) -> None:
    """The next one has its claim, but its bytes would be the second ones of this key."""
    first, second = Writer(settings, engine, lease, 1, NO_TIME), Writer(settings, engine, lease, 2, 60.0)
    drawn, stored = threading.Event(), threading.Event()
    other = threading.Thread(target=second.draw)

    def meet(reached: str) -> None:
        if threading.current_thread() is other and reached == "drawn":
            drawn.set()
            assert stored.wait(60)
        elif threading.current_thread() is not other and reached == "intended":
            other.start()
            assert drawn.wait(60)

    faultpoints.handler = meet
    first.draw()
    stored.set()
    other.join(60)
    assert (len(first.model.drawn), len(second.model.drawn)) == (1, 1)
    assert first.check(settings) == second.check(settings) == stored_hash(engine)
    (only,) = Store(settings.s3).keys("art/")
    assert only == first.asker.pictures[KEY].art_key
