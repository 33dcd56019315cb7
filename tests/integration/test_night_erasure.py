"""Erasure and retention of what nights keep, on real Postgres and S3; the model is a test double."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from generator.nightly.ledger import run_id_of
from generator.nightly.plan import Scope
from generator.serving.api import AnswerRequest
from generator.storage.objects import Store
from generator.storage.postgres import connect
from generator.upkeep.erase import erase_users
from generator.upkeep.retention import upkeep
from schemas.manifest import POINTER_KEY
from schemas.settings import Settings
from schemas.tables import (
    AnswerSet,
    Composition,
    CurrentPosters,
    Erasure,
    IndexedDeadLetter,
    NightRun,
    NightSkip,
    NightTask,
    Picture,
    PlannedUser,
    Poster,
)
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, Announcements, build, night, reader, set_user

pytestmark = pytest.mark.integration
TOMORROW = date(2026, 3, 2)


def dead_letter(number: int, *users: str) -> IndexedDeadLetter:
    return IndexedDeadLetter(
        **{
            "topic": "user.interactions.v1.dlq",
            "topic_id": "",
            "partition": 0,
            "offset": number,
            "source": f"t/0/{number}",
        },
        **{"source_timestamp": -1, "reason": "invalid", "detail": "", "user_ids": list(users)},
        written_at=datetime(2026, 3, number, tzinfo=UTC),
    )


def test_an_erased_user_is_gone_from_rows_images_manifests_and_reports(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=1)
    trial = Scope(users=("u0", "u1"))
    night(settings).run(trial, publish=True)
    night(settings, on=TOMORROW).run(Scope())
    before = reader(settings).rows().to_pylist()
    mine = {row["image_key"] for row in before if row["user_id"] == "u1"}
    assert mine
    live = reader(settings)
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        session.add(Erasure(user_id="u1", requested_at=datetime(2026, 3, 2, tzinfo=UTC)))
        session.add_all([dead_letter(1, "u1"), dead_letter(2), dead_letter(3, "u2")])
    assert "1 user erased" in erase_users(settings)

    store = Store(settings.s3)
    for key in store.keys(""):
        stored = store.get(key)
        assert stored
        assert key not in mine
        assert b">u1<" not in stored.body  # no report names the user
        assert b"u1" not in stored.body or not key.endswith((".arrow", ".json"))
    live.refresh()
    choice = live.poster_for("u1", "item9")
    assert choice
    assert choice.source == "item"
    assert live.rows().to_pylist() == [row for row in before if row["user_id"] != "u1"]
    assert live.alarms == {}
    with Session(engine) as session:
        for table in (CurrentPosters, Poster, NightTask, NightSkip, AnswerSet, PlannedUser):
            assert session.scalars(select(table).where(table.user_id == "u1")).all() == []
        # Pictures and posters of others stay, with their rows; no row is left of a deleted file.
        assert {row.art_key for row in session.scalars(select(Picture))} == set(store.keys("art/"))
        assert {row.image_key for row in session.scalars(select(Composition))} == set(store.keys("posters/"))
        erasure = session.get(Erasure, "u1")
        assert erasure
        assert erasure.completed_at
        assert erasure.proof["dead_letters"] == {
            "of_user": 1,
            "of_user_gone_by": "2026-03-09T00:00:00+00:00",
            "of_nobody": 1,
            "of_nobody_gone_by": "2026-03-10T00:00:00+00:00",
            "index_compared_at": None,
        }
        assert erasure.proof["night"]["pictures_deleted"] == 4  # two posters, two pieces of art
        assert len(erasure.proof["night"]["manifests_rewritten"]) == 2
        run = session.get(NightRun, run_id_of(NIGHT, trial.name))
        assert run
        assert run.settings["scope"]["users"] == ["u0"]
    assert erase_users(settings) == "erasure: no open requests"
    engine.dispose()


def test_a_request_during_the_night_keeps_the_user_out_of_its_manifest(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    engine = connect(settings.database)

    def erased_meanwhile(request: AnswerRequest, attempt: int) -> None:
        if "/u0/" not in request.task_id:
            return
        with Session(engine) as session, session.begin():
            session.merge(Erasure(user_id="u0", requested_at=datetime(2026, 3, 1, tzinfo=UTC)))

    announced = Announcements()
    night(settings, FakePigeon(erased_meanwhile), announced).run(Scope())
    assert {row["user_id"] for row in reader(settings).rows().to_pylist()} == {"u1"}
    assert {event.user_id for event in announced.events} == {"u1"}
    erase_users(settings)
    assert len(list(Store(settings.s3).keys("posters/"))) == 2
    engine.dispose()


def test_old_manifests_are_dropped_but_never_what_readers_see(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    few = settings.model_copy(update={"night": settings.night.model_copy(update={"keep_manifests": 2})})
    for day in range(1, 5):
        with Session(connect(settings.database)) as session, session.begin():
            set_user(session, "u0", [f"item{day}", "item5", "item6", "item7"])
        night(settings, on=date(2026, 3, day)).run(Scope())
    list(upkeep(few))
    nights = {key.split("/")[1] for key in Store(settings.s3).keys("manifests/") if key != POINTER_KEY}
    assert nights == {"2026-03-03", "2026-03-04"}
    assert len(reader(settings).rows()) == 2


def test_a_picture_that_others_have_stays_when_one_of_them_is_erased(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        set_user(session, "u1", ["item4", "item5", "item6"], ["item8"])
        session.add(Erasure(user_id="u1", requested_at=datetime(2026, 3, 2, tzinfo=UTC), completed_at=func.now()))
    narrow = FakePigeon()
    narrow.looks = 1
    night(settings, narrow).run(Scope())
    with Session(engine) as session, session.begin():
        session.execute(update(Erasure).values(completed_at=None))
    erase_users(settings)
    store = Store(settings.s3)
    left = reader(settings).rows().to_pylist()
    assert {row["user_id"] for row in left} == {"u0"}
    assert all(store.exists(row["image_key"]) for row in left)
    with Session(engine) as session:
        erasure = session.get(Erasure, "u1")
        assert erasure
        assert erasure.proof["night"]["pictures_deleted"] == 0
        assert erasure.proof["night"]["pictures_shared_with_others"] == 2
    engine.dispose()
