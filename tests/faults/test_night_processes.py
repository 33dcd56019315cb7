"""Fault 10 on real Postgres and S3: processes that draw one night at the same time.

One of them may die. The model is a test double.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.nightly.frozen_prompt import ServedVersions, drawing_settings
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import Ledger, run_id_of
from generator.nightly.plan import Planner, Scope
from generator.storage.lease import Lease, lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.settings import Settings
from schemas.tables import Composition, Picture, Poster
from tests.support.consume_world import ROUNDS
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night, reader

pytestmark = [pytest.mark.integration, pytest.mark.faults]
CHECKOUT = Path(__file__).parents[2]


@contextmanager
def leading(settings: Settings) -> Iterator[Lease]:
    """The lease of a leader that has planned the night of six users and has others draw it."""
    engine = connect(settings.database)
    served = ServedVersions.of(FakePigeon())
    with lead(engine, "night") as lease:
        ledger = Ledger(engine, lease)
        images = CatalogImages(engine, settings)
        with ledger.reading() as session:
            planner = Planner(session, settings, images, served, NIGHT)
            recipe = {"recipe": drawing_settings(settings.night, served.drawing)}
            ledger.save_plan(NIGHT, "nano-1", recipe, planner.chunks(Scope()))
        images.close()
        yield lease
    engine.dispose()


class Drawer:
    """A process of `tests.support.night_drawer` that waits until it may begin."""

    def __init__(self, settings: Settings, lease: Lease, *point: str) -> None:
        own = {
            "PIGEON_STATE_DIR": str(settings.state_dir),  # its env file has the other addresses
            "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
            "PIGEON_S3__BUCKET": settings.s3.bucket,
            "PIGEON_IMAGES__ALLOWED_SCHEMES": json.dumps(settings.images.allowed_schemes),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.night_drawer", str(lease.token), lease.holder, *point],
            env={**os.environ, **own},
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def begin(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, list[str]]:
        """Exit code, and the keys of the pictures that it drew; none when it was killed."""
        printed, _ = self.process.communicate(timeout=120)
        return self.process.returncode, json.loads(printed or "[]")


def check_whole(settings: Settings, drawn: Counter[str]) -> None:
    """Every task is done, every row's file is there once, and no picture without a row was drawn."""
    engine = connect(settings.database)
    assert Ledger(engine).count_tasks(run_id_of(NIGHT)) == {"done": 18}
    with Session(engine) as session:
        pictures = {picture.picture_key: picture for picture in session.scalars(select(Picture))}
        files = {picture.art_key for picture in pictures.values()} | set(session.scalars(select(Composition.image_key)))
        variants = Counter(session.scalars(select(Poster.variant)))
    engine.dispose()
    assert {picture.status for picture in pictures.values()} == {"drawn"}
    assert set(drawn) <= set(pictures)
    assert variants == {0: 18, 1: 18}
    store = Store(settings.s3)
    assert {*store.keys("art/"), *store.keys("posters/")} == files
    store.s3.close()
    night(settings).resume()
    assert len(reader(settings).rows()) == 36


def test_two_processes_that_draw_one_night_draw_each_picture_once(settings: Settings, tmp_path: Path) -> None:
    """Fault 10: they meet at every answer, picture and poster file."""
    build(settings, tmp_path / "art", users=6, targets=3)
    with leading(settings) as lease:
        drawers = [Drawer(settings, lease) for _ in range(2)]
        for drawer in drawers:
            drawer.begin()
        ends = [drawer.end() for drawer in drawers]
    assert [code for code, _ in ends] == [0, 0]
    assert all(keys for _, keys in ends), "both of them drew"
    drawn = Counter(key for _, keys in ends for key in keys)
    assert set(drawn.values()) == {1}
    check_whole(settings, drawn)


POINTS = ("claimed picture", "intended", "composed", "answered", "drawn", "stored", "composition stored", "finished")


@pytest.mark.parametrize("point", POINTS[: max(3, ROUNDS)])
def test_one_of_two_processes_is_killed_and_the_other_does_the_rest(
    settings: Settings, tmp_path: Path, point: str
) -> None:
    """Fault 10: what it had claimed is drawn by the other when the claim is over."""
    build(settings, tmp_path / "art", users=6, targets=3)
    with leading(settings) as lease:
        victim, other = Drawer(settings, lease, point), Drawer(settings, lease)
        victim.begin()
        other.begin()
        assert victim.end()[0] == -signal.SIGKILL
        code, keys = other.end()
    assert code == 0
    drawn = Counter(keys)
    assert set(drawn.values()) == {1}
    check_whole(settings, drawn)
