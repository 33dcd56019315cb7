"""Unsafe pictures, refused when drawn, withdrawn when found later; the safety model is a double."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.nightly.plan import Scope
from generator.nightly.recheck import recheck
from generator.nightly.withdraw import lift
from generator.safety.judge import SafetyCheck
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.settings import Settings
from schemas.tables import NightTask, Picture, Poster, Withdrawal
from tests.support.fake_judge import FakeJudge, by_content
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night, reader, set_user

pytestmark = pytest.mark.integration
TOMORROW = date(2026, 3, 2)


def rows(settings: Settings, table: type) -> list:
    with Session(connect(settings.database)) as session:
        return list(session.scalars(select(table)))


def shown(settings: Settings) -> set[str]:
    """Pictures that a recommender would show."""
    return {row["picture_key"] for row in reader(settings).rows().to_pylist()}


def test_an_unsafe_picture_is_refused_with_its_reason_and_never_stored(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=4, targets=2)
    judge = FakeJudge()
    night(settings, safety=SafetyCheck(judge, 0.5)).run(Scope())
    pictures = rows(settings, Picture)
    verdicts = {(one.status, one.reason, one.safety, one.unsafe_score >= 0.5) for one in pictures}
    assert verdicts == {("drawn", None, "safe", False), ("refused", "unsafe", "unsafe", True)}
    assert {one.safety_model for one in pictures} == {"fake-judge-1"}
    assert set(judge.asked.values()) == {1}, "each distinct picture is judged once"
    assert len(judge.asked) == len(pictures)
    unsafe = {one.picture_key for one in pictures if one.safety == "unsafe"}
    assert all(one.art_key is None for one in pictures if one.picture_key in unsafe)
    assert len(list(Store(settings.s3).keys("art/"))) == len(pictures) - len(unsafe)
    assert shown(settings)
    assert not shown(settings) & unsafe
    assert {one.safety for one in rows(settings, Poster)} == {"safe"}
    refused = {row["refused"] for task in rows(settings, NightTask) for row in task.candidates}
    assert "unsafe" in refused


def test_another_model_judges_what_is_stored_and_withdraws_what_it_finds(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    night(settings).run(Scope())  # nobody judges
    before = shown(settings)
    assert {one.safety for one in rows(settings, Poster)} == {"unchecked"}
    check = SafetyCheck(FakeJudge(), 0.5)
    line = recheck(settings, check)
    unsafe = {one.picture_key for one in rows(settings, Picture) if one.safety == "unsafe"}
    assert f"{len(before)} pictures judged again by fake-judge-1, {len(unsafe)} found unsafe" in line
    assert unsafe
    assert shown(settings) == before - unsafe
    withdrawals = rows(settings, Withdrawal)
    assert {(one.kind, one.subject) for one in withdrawals} == {("picture", key) for key in unsafe}
    assert all(one.actor == "safety check" and "fake-judge-1 scored" in one.reason for one in withdrawals)
    assert {one.safety for one in rows(settings, Poster) if one.picture_key not in unsafe} == {"safe"}

    again = recheck(settings, check)
    assert "0 pictures judged again" in again
    assert len(rows(settings, Withdrawal)) == len(unsafe), "a second call changes nothing"
    night(settings, on=TOMORROW).run(Scope())
    assert shown(settings) == before - unsafe, "later nights leave them out"


def test_another_threshold_needs_no_model_and_a_person_has_the_last_word(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    model = FakePigeon()
    model.looks = 2  # so that every night asks for the same pictures
    night(settings, model, safety=SafetyCheck(FakeJudge(), 0.9)).run(Scope())
    before = shown(settings)
    judge = FakeJudge()
    strict = SafetyCheck(judge, 0.4)
    recheck(settings, strict)
    assert not judge.asked, "the scores are stored"
    unsafe = {one.picture_key for one in rows(settings, Picture) if one.safety == "unsafe" and one.art_key}
    assert shown(settings) == before - unsafe
    assert unsafe
    innocent = min(unsafe)
    lift(settings, "picture", innocent, reason="a cactus")
    assert innocent in shown(settings)
    recheck(settings, SafetyCheck(FakeJudge(version="fake-judge-2"), 0.1))
    assert innocent in shown(settings), "what a person has cleared stays so under other models"
    (art_key,) = [one.art_key for one in rows(settings, Picture) if one.picture_key == innocent]
    Store(settings.s3).delete(art_key)
    with Session(connect(settings.database)) as session, session.begin():
        for user in (0, 1, 2):
            set_user(session, f"u{user}", [f"item{(user + 1 + step) % 8}" for step in range(4)])
    night(settings, model, on=TOMORROW, safety=SafetyCheck(FakeJudge(), 0.01)).run(Scope())
    (again,) = [one for one in rows(settings, Picture) if one.picture_key == innocent]
    assert (again.status, again.safety) == ("drawn", "cleared"), "and when it is drawn again"
    assert Store(settings.s3).exists(art_key)


def test_a_night_judges_the_stored_pictures_that_it_takes(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    before = shown(settings)
    with Session(connect(settings.database)) as session, session.begin():
        for user in ("u0", "u1"):  # the same answers, and so the same pictures, are chosen among
            set_user(session, f"{user}-friend", [f"item{(int(user[1]) + step) % 8}" for step in range(4)], ["item8"])
    model, judge = FakePigeon(), FakeJudge(lambda image: 0.95 if by_content(image) < 0.5 else 0.1)
    model.looks = 6
    night(settings, model, on=TOMORROW, safety=SafetyCheck(judge, 0.8)).run(Scope())
    taken = [one for one in rows(settings, Picture) if one.safety_model]
    assert taken
    unsafe = {one.picture_key for one in taken if one.safety == "unsafe"}
    assert not shown(settings) & unsafe
    withdrawn = {one.subject for one in rows(settings, Withdrawal)}
    assert withdrawn == unsafe & before, "what was shown before it was judged is withdrawn from everybody"
    assert set(judge.asked.values()) == {1}


def test_a_refused_picture_is_drawn_again_when_the_threshold_lets_it_through(
    settings: Settings, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    drawn: list[int] = []
    for number, threshold in enumerate((0.4, 0.4, 0.6)):
        with Session(connect(settings.database)) as session, session.begin():
            for user in (0, 1):  # they click on, and are answered as before
                set_user(session, f"u{user}", [f"item{(user + number + step) % 8}" for step in range(4)])
        model = FakePigeon()
        model.looks = 1
        day = NIGHT + timedelta(days=number)
        night(settings, model, on=day, safety=SafetyCheck(FakeJudge(lambda _: 0.5), threshold)).run(Scope())
        drawn.append(len(model.drawn))
        if number < 2:
            assert {one.status for one in rows(settings, Picture)} == {"refused"}
            assert {task.reason for task in rows(settings, NightTask)} == {"unsafe"}
    assert drawn == [2, 0, 2], "an unsafe picture is not drawn every night"
    assert {(one.status, one.safety) for one in rows(settings, Picture)} == {("drawn", "safe")}
    assert len(shown(settings)) == 2


def test_the_commands_tell_what_is_missing_and_upkeep_judges_for_a_time(
    settings: Settings,
    tmp_path: Path,
    pigeon: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = pigeon("night", "recheck-safety")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "set PIGEON_SAFETY__ENABLED=true" in ended.stderr
    build(settings, tmp_path / "art", users=2, targets=2)
    night(settings, on=NIGHT).run(Scope())
    line = recheck(settings, SafetyCheck(FakeJudge(), 0.5), minutes=0)
    drawn = len(shown(settings))
    assert (
        f"0 pictures judged again by fake-judge-1, 0 found unsafe (score 0.5 or more) and withdrawn; {drawn} left"
        in line
    )
    monkeypatch.setenv("PIGEON_SAFETY__ENABLED", "true")
    ended = pigeon("night", "upkeep")
    assert ended.returncode == 0, ended.stderr
    assert f"safety: {drawn} pictures judged again by open_nsfw-864bb37bf886, 0 found unsafe" in ended.stdout
