"""Runs by scope, cancelled, retried, backfilled, on real Postgres and S3; the model is a double."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.nightly import runs
from generator.nightly.backfill import backfill
from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.run import Night, NightContext, find_open
from generator.nightly.status import status_of, words
from generator.serving.api import DrawRequest, InferenceRejected
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import InputError, ModelError, PartialFailure, Refused
from schemas.manifest import POINTER_KEY
from schemas.settings import Settings
from schemas.tables import NightRun, NightTask
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, Announcements, build, night, reader, set_user

pytestmark = pytest.mark.integration
TOMORROW = date(2026, 3, 2)


def users_drawn(settings: Settings, run_id: str) -> set[str]:
    with Ledger(connect(settings.database)).reading() as session:
        return set(session.scalars(select(NightTask.user_id).where(NightTask.run_id == run_id)))


def status(settings: Settings, run_id: str) -> str | None:
    run = runs.get_by_id(Ledger(connect(settings.database)), run_id)
    return run.status if run else None


def test_a_trial_is_shown_to_nobody_and_never_stands_in_for_the_night(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=1)
    trial = Scope(limit=1)
    run_id = f"trial-20260301-{trial.name.removeprefix('trial-')}"
    echoed: list[str] = []
    announced = Announcements()
    night(settings, announcements=announced, echo=echoed.append).run(trial)
    assert "drawn and shown to nobody" in echoed[-1]
    assert status(settings, run_id) == "drawn"
    assert len(users_drawn(settings, run_id)) == 1
    assert (Store(settings.s3).get(POINTER_KEY), announced.events) == (None, [])
    assert Store(settings.s3).exists(f"manifests/2026-03-01/{run_id}.report.html"), "its report shows the posters"
    night(settings, echo=echoed.append).run(trial)
    assert "drawn already" in echoed[-1]

    night(settings, announcements=announced, echo=echoed.append).run(Scope())
    assert users_drawn(settings, "night-20260301") == {"u0", "u1", "u2"}
    assert {row["user_id"] for row in reader(settings).rows().to_pylist()} == {"u0", "u1", "u2"}
    assert len(announced.events) == 6
    found = status_of(settings, NIGHT)
    assert found["other_runs"] == {run_id: "drawn"}
    assert f"also     {run_id}: drawn" in words(found)
    assert status_of(settings, None, run_id)["status"] == "drawn"


def test_a_trial_that_was_looked_at_can_be_published(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=1)
    model, announced = FakePigeon(), Announcements()
    night(settings, model).run(Scope(users=("u1",)))
    night(settings, model, announced).run(Scope(users=("u1",)), publish=True)
    assert len(model.answered) == 1
    assert {row["user_id"] for row in reader(settings).rows().to_pylist()} == {"u1"}
    assert len(announced.events) == 2
    night(settings, model).run(Scope())
    assert len(model.answered) == 3, "what the trial published is not drawn again"
    assert {row["user_id"] for row in reader(settings).rows().to_pylist()} == {"u0", "u1", "u2"}


def test_the_nights_report_its_runs_and_rates(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    echoed: list[str] = []
    night(settings, echo=echoed.append).dry_run(Scope())
    assert "estimate: none" in echoed[0]
    night(settings).run(Scope())
    run = Ledger(connect(settings.database)).get_run(NIGHT)
    assert run
    (session,) = run.figures["sessions"]
    assert (session["tasks"], session["pictures_drawn"]) == (2, 4)
    with Session(connect(settings.database)) as writing, writing.begin():
        set_user(writing, "u9", ["item1", "item2", "item3"], ["item8"])
    night(settings, on=TOMORROW, echo=echoed.append).dry_run(Scope())
    assert "estimate: about 2 pictures in" in echoed[-2]
    assert "in the last 1 night)" in echoed[-2]


def test_users_of_a_limited_night_take_turns(settings: Settings, tmp_path: Path) -> None:
    """F22: with `night.max_users` the same users first, every night."""
    build(settings, tmp_path / "art", users=7, targets=1)
    limited = settings.model_copy(update={"night": settings.night.model_copy(update={"max_users": 2})})
    drawn: dict[str, int] = {}
    for number in range(4):
        day = NIGHT + timedelta(days=number)
        with Session(connect(settings.database)) as session, session.begin():
            for user in range(7):  # everybody clicks on, every day
                liked = [f"item{(user + number + step) % 8}" for step in range(4)]
                set_user(session, f"u{user}", liked, ["item8"])
        night(limited, on=day).run(Scope())
        for user_id in users_drawn(settings, f"night-{day:%Y%m%d}"):
            drawn[user_id] = drawn.get(user_id, 0) + 1
    assert sum(drawn.values()) == 8
    assert set(drawn) == {f"u{n}" for n in range(7)}, "seven users, two a night: all had their turn after four nights"


def test_a_cancelled_night_stops_keeps_what_is_done_and_can_be_resumed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.nightly.cancelled.LOOK_EVERY_SECONDS", 0.0)
    build(settings, tmp_path / "art", users=6, targets=2)
    engine = connect(settings.database)

    def fault(request: DrawRequest, attempt: int) -> None:
        if len(model.answered) == 2:
            runs.cancel(engine, "night-20260301")

    model = FakePigeon(fault)
    one = settings.model_copy(update={"triton": settings.triton.model_copy(update={"max_in_flight": 1})})
    with pytest.raises(Refused, match="was cancelled"):
        night(one, model).run(Scope())
    assert status(settings, "night-20260301") == "cancelled"
    assert Store(settings.s3).get(POINTER_KEY) is None
    with pytest.raises(Refused, match="was cancelled; `pigeon night resume --run night-20260301`"):
        night(settings).run(Scope())
    with pytest.raises(InputError, match="no unfinished night"):
        find_open(settings)
    counts = Ledger(engine).count_tasks("night-20260301")
    again = FakePigeon()
    night(settings, again).resume()
    assert len(again.answered) <= counts.get("pending", 0), "stored answers are not asked for again"
    assert len(reader(settings).rows()) == 24
    with pytest.raises(InputError, match="is published: there is nothing left to cancel"):
        runs.cancel(engine, "night-20260301")
    with pytest.raises(InputError, match="no run night-20260302"):
        runs.cancel(engine, "night-20260302")
    engine.dispose()


def test_a_night_that_is_being_published_is_not_cancelled(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        for number, figures in ((1, {"publishing": True}), (2, {})):
            session.add(
                NightRun(
                    run_id=f"night-2026030{number}",
                    logical_date=date(2026, 3, number),
                    status="running",
                    model_version="m",
                    fencing_token=1,
                    figures=figures,
                )
            )
    with pytest.raises(Refused, match="being published"):
        runs.cancel(engine, "night-20260301")
    runs.cancel(engine, "night-20260302")
    runs.cancel(engine, "night-20260302")
    assert status(settings, "night-20260302") == "cancelled"
    engine.dispose()


def test_failed_tasks_are_tried_again_and_the_night_is_published_again(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=1)

    def fault(request: DrawRequest, attempt: int) -> None:
        if "/u0/" in request.task_id:
            raise InferenceRejected("prompt too long")

    announced, echoed = Announcements(), list[str]()
    with pytest.raises(PartialFailure, match="published, but 1 of 3"):
        night(settings, FakePigeon(fault), announced).run(Scope())
    model = FakePigeon()
    night(settings, model, announced).retry_failed()
    assert len(model.answered) == 1
    rows = reader(settings).rows().to_pylist()
    assert {row["user_id"] for row in rows} == {"u0", "u1", "u2"}
    assert sorted(event.poster_id for event in announced.events) == sorted(row["poster_id"] for row in rows)
    run = Ledger(connect(settings.database)).get_run(NIGHT)
    assert run
    assert [session["tasks"] for session in run.figures["sessions"]] == [3, 1]
    night(settings, model, echo=echoed.append).retry_failed()
    assert "no failed tasks" in echoed[-1]
    with pytest.raises(InputError, match="no night of 2026-03-02"):
        night(settings, on=TOMORROW).retry_failed()


def test_nights_of_several_days_are_drawn_one_after_the_other(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    model, echoed = FakePigeon(), list[str]()

    def one(day: date) -> Night:
        return night(settings, model, on=day, echo=echoed.append)

    backfill(one, NIGHT, NIGHT + timedelta(days=2), echoed.append)
    assert len(model.answered) == 2, "the histories are the same on every day"
    assert [status(settings, f"night-2026030{n}") for n in (1, 2, 3)] == ["published"] * 3
    backfill(one, NIGHT, NIGHT + timedelta(days=2), echoed.append)
    assert len(model.answered) == 2
    for first, last in ((TOMORROW, NIGHT), (NIGHT, NIGHT + timedelta(days=400))):
        with pytest.raises(InputError, match="366 nights at most"):
            backfill(one, first, last, echoed.append)


def test_what_triton_serves_is_asked_before_anything_is_drawn(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    model, asked = FakePigeon(), list[Sequence[tuple[str, int]]]()

    def refuse(drawers: Sequence[tuple[str, int]]) -> None:
        asked.append(drawers)
        raise ModelError("Triton serves another build; run `pigeon models load`")

    context = NightContext(settings, lambda: model, Announcements, lambda line: None, refuse)
    with pytest.raises(ModelError, match="another build"):
        Night(context, NIGHT).run(Scope())
    assert (asked, model.answered) == ([[("nano-1", 1)]], [])
    model.base_weights = "others"
    with pytest.raises(InputError, match="planned for another model than is served"):
        night(settings, model).resume()
    assert model.answered == []
    night(settings).resume()
    assert len(reader(settings).rows()) == 2
