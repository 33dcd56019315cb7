"""Faults 10, 13 and 14 on real Postgres and S3: the night is killed at named points.

Its model is a test double.
"""

from __future__ import annotations

import hashlib
import random
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from consumers.postgres import postgres_connection
from generator.nightly.pictures import picture_key
from generator.nightly.plan import Scope
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.faultpoints import NightPoint
from schemas.manifest import POINTER_KEY, Pointer, PosterManifest
from schemas.settings import Settings
from schemas.tables import Composition, Picture, Poster
from tests.support.night_world import NIGHT, Announcements, build, night, run_and_die, set_user
from tests.support.noisy_pigeon import NoisyPigeon

pytestmark = [pytest.mark.integration, pytest.mark.faults]

SEED = 20261123
POINTS: tuple[str, ...] = get_args(NightPoint)
MANY = set(POINTS[POINTS.index("answered") : POINTS.index("finished") + 1])
"""Points that a night passes for each task, picture or file."""


@pytest.fixture
def elsewhere(settings: Settings, tmp_path: Path) -> Settings:
    """A second, empty database and bucket: where the unbroken night runs."""
    url = settings.database.url.get_secret_value()
    name = f"{url.rpartition('/')[2]}_unbroken"
    connection = postgres_connection(settings.database, "pigeon-tests")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE pigeon_template")
    connection.close()
    bucket = f"{settings.s3.bucket}-unbroken"
    client = Store(settings.s3).s3
    client.create_bucket(Bucket=bucket)
    client.close()
    data = settings.model_dump()
    data["database"]["url"] = f"{url.rpartition('/')[0]}/{name}"
    data["s3"]["bucket"] = bucket
    return Settings.model_validate(data)


def manifest(settings: Settings) -> list[bytes]:
    store = Store(settings.s3)
    pointer = store.get(POINTER_KEY)
    assert pointer
    ref = Pointer.parse(pointer.body).current
    bodies = [store.get(key) for key in ref.keys]
    store.s3.close()
    return [body.body for body in bodies if body]


@pytest.mark.timeout(600)
def test_killed_at_every_point_and_resumed_equals_an_unbroken_night(
    settings: Settings, elsewhere: Settings, tmp_path: Path
) -> None:
    """Faults 10, 13: one night, killed once at each named point; readers see nothing or all of it."""
    print(f"seed {SEED}")  # noqa: T201 - a failure is reproduced by it
    rng = random.Random(SEED)
    art = tmp_path / "art"
    build(settings, art, users=4, targets=2)
    build(elsewhere, art, users=4, targets=2)
    night(elsewhere).run(Scope())
    unbroken = manifest(elsewhere)

    store = Store(settings.s3)
    deaths = []
    for point in POINTS:
        if run_and_die(settings, point, rng.randint(1, 2) if point in MANY else 1):
            deaths.append(point)
        pointer = store.get(POINTER_KEY)
        if pointer is None:
            assert POINTS.index(point) < POINTS.index("pointer flipped")
        else:  # whoever sees the pointer sees the whole set, and every picture in it
            assert manifest(settings) == unbroken
            rows = (
                PosterManifest.open(bucket=store.bucket, client=store.s3, cache_dir=tmp_path / "cache")
                .rows()
                .to_pylist()
            )
            assert rows
            assert all(store.exists(row["image_key"]) for row in rows)
    assert deaths == list(POINTS)

    announced = Announcements()
    night(settings, announcements=announced).resume()
    assert manifest(settings) == unbroken
    rows = PosterManifest.open(bucket=store.bucket, client=store.s3, cache_dir=tmp_path / "cache").rows().to_pylist()
    # The last death was between the broker's acknowledgement and our mark, so the events come again, once each.
    assert sorted(event.poster_id for event in announced.events) == sorted(row["poster_id"] for row in rows)
    again = Announcements()
    night(settings, announcements=again).resume()
    assert again.events == []
    store.s3.close()


def kept_first(settings: Settings, first: dict[str, str]) -> None:
    """Add the pictures whose files are in the bucket; those that were there before must be as they were."""
    store = Store(settings.s3)
    with Session(connect(settings.database)) as session:
        for picture in session.scalars(select(Picture)):
            stored = store.get(picture.art_key) if picture.art_key else None
            assert stored or picture.status != "drawn"
            if stored:
                sha = hashlib.sha256(stored.body).hexdigest()
                assert first.setdefault(picture.picture_key, sha) == sha == picture.art_sha256
    store.s3.close()


@pytest.mark.timeout(600)
def test_killed_and_resumed_where_pictures_come_out_otherwise(settings: Settings, tmp_path: Path) -> None:
    """Fault 10 (F8): the first bytes that were stored for a picture are it, whatever later calls give.

    Each process draws each picture with noise of its own.
    """
    build(settings, tmp_path / "art", users=4, targets=2)
    first: dict[str, str] = {}
    died = []
    for seed, point in enumerate(POINTS):
        if point in MANY and run_and_die(settings, point, 2, seed):
            died.append(point)
            kept_first(settings, first)
    assert died == [point for point in POINTS if point in MANY]
    assert first
    night(settings, NoisyPigeon(101)).resume()
    kept_first(settings, first)
    assert len(check_files(settings)) == 16
    again = NoisyPigeon(102)
    night(settings, again).run(Scope())
    assert again.drawn == []
    with Session(connect(settings.database)) as session, session.begin():
        for number in range(4):  # other histories, so other answers, some of them known
            set_user(session, f"late{number}", [f"item{(number + step) % 8}" for step in range(5)], ["item8", "item9"])
    later = NoisyPigeon(103)
    night(settings, later, on=NIGHT + timedelta(days=1)).run(Scope())
    before = set(first)
    kept_first(settings, first)
    drawn = {picture_key(later.drawing_version, request.tokens) for request in later.drawn}
    assert drawn == set(first) - before
    assert len(check_files(settings)) == 32


def check_files(settings: Settings) -> list[dict[str, Any]]:
    """The manifest's rows: what they and our tables name is in the bucket as named, and nothing else is."""
    store = Store(settings.s3)
    rows: list[dict[str, Any]] = PosterManifest.open(bucket=store.bucket, client=store.s3).rows().to_pylist()
    named = set()
    with Session(connect(settings.database)) as session:
        for picture in session.scalars(select(Picture)):
            stored = store.get(picture.art_key)
            assert stored
            assert hashlib.sha256(stored.body).hexdigest() == picture.art_sha256
            named.add(picture.art_key)
        for composition in session.scalars(select(Composition)):
            stored = store.get(composition.image_key)
            assert stored
            assert hashlib.sha256(stored.body).hexdigest() == composition.image_sha256
            named.add(composition.image_key)
        posters = {poster.poster_id: poster for poster in session.scalars(select(Poster))}
    assert {row["poster_id"] for row in rows} == set(posters), "no poster is left of a task that was started twice"
    for row in rows:
        stored = store.get(row["image_key"])
        assert stored
        assert hashlib.sha256(stored.body).hexdigest() == row["image_sha256"]
        assert {row["image_key"], posters[row["poster_id"]].art_key} <= named
    assert {*store.keys("art/"), *store.keys("posters/")} == named, "no file is in the bucket that no row names"
    store.s3.close()
    return rows
