"""Posters that users clicked in the next night's histories, and when they are not.

On real Postgres and S3; the model is a test double.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
from sqlalchemy import Engine, delete, func, select, text, update
from sqlalchemy.orm import Session

from generator.feedback.dated_pair import prompt_of
from generator.nightly import withdraw
from generator.nightly.frozen_prompt import FrozenPrompt
from generator.nightly.ledger import run_id_of
from generator.nightly.plan import Scope
from generator.nightly.plan_clicks import ClickRule
from generator.nightly.plan_users import PlanUsers, UserInput
from generator.nightly.status import status_of, words
from generator.storage.objects import Store
from generator.upkeep.erase import erase_users
from schemas.images import features_version
from schemas.manifest_files import art_key
from schemas.settings import Settings
from schemas.tables import (
    Erasure,
    ImageFeature,
    Item,
    NightTask,
    Picture,
    PlannedUser,
    Poster,
    PosterFeedback,
    UserHistory,
    UserObjection,
    Withdrawal,
)
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, history, night
from tests.support.upkeep_world import ask_to_erase

pytestmark = pytest.mark.integration
SECOND, THIRD = (NIGHT + timedelta(days=days) for days in (1, 2))
CLICKED = datetime.combine(NIGHT, time(10), UTC)
TOKENIZER = FakePigeon.tokenizer_version
USERS = ("u0", "u1", "u2")


@pytest.fixture
def drawn(settings: Settings, engine: Engine, tmp_path: Path) -> Settings:
    """Users u0, u1 and u2 with four liked items, and posters for item8 and others."""
    build(settings, tmp_path / "art", users=3, targets=2)
    night(settings).run(Scope())
    return settings


def poster_of(session: Session, user: str, variant: int = 0, item: str | None = None) -> Poster:
    query = select(Poster).where(Poster.user_id == user, Poster.variant == variant).order_by(Poster.item_id)
    return session.scalars(query.where(Poster.item_id == item) if item else query).first() or pytest.fail("no poster")


def react(session: Session, poster: Poster, at: datetime, action: str = "click", number: int = 0) -> None:
    """An event of the surface, as the consumers store it."""
    event_id = uuid5(UUID(int=0), f"{poster.poster_id}/{action}/{at}/{number}")
    session.add(
        PosterFeedback(
            event_id=event_id,
            poster_id=poster.poster_id,
            user_id=poster.user_id,
            item_id=poster.item_id,
            action=action,
            occurred_at=at,
        )
    )


def interact(session: Session, user: str, item: str, at: datetime) -> None:
    """An interaction on top of the user's history, as the consumers store it."""
    row = session.get_one(UserHistory, user)
    entry = {**history(item)[0], "event_id": f"{item}-{at}", "occurred_at": at.isoformat()}
    row.entries = [entry, *(one for one in row.entries if one["item_id"] != item)]
    row.fingerprint = "|".join(one["event_id"] for one in row.entries)


def tasks_of(engine: Engine, on: Any) -> list[NightTask]:
    with Session(engine) as session:
        return list(session.scalars(select(NightTask).where(NightTask.run_id == run_id_of(on))))


def planned(settings: Settings, session: Session, *users: str, on: Any = SECOND) -> dict[str, UserInput]:
    rule = ClickRule.of(settings, TOKENIZER, on)
    return {one.user_id: one for one in PlanUsers(session, None, rule).read(users or USERS, on)}


def test_a_clicked_poster_is_its_items_picture_in_the_next_nights_history(drawn: Settings, engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        poster = poster_of(session, "u0", variant=1)
        react(session, poster, CLICKED)
        interact(session, "u0", poster.item_id, CLICKED + timedelta(minutes=2))
        picture = session.get_one(Picture, poster.picture_key)
    model = FakePigeon()
    night(drawn, model, on=SECOND).run(Scope())

    tasks = tasks_of(engine, SECOND)
    assert {task.user_id for task in tasks} == {"u0"}, "nobody else has a row"
    for task in tasks:
        prompt = FrozenPrompt.model_validate(task.prompt)
        newest = prompt.history[-1]
        assert [one.item_id for one in prompt.history].count(poster.item_id) == 1, "both events are one click"
        assert (newest.item_id, newest.picture_key, newest.sha256) == (
            poster.item_id,
            poster.picture_key,
            picture.art_sha256,
        )
        assert newest.uri == drawn.s3.uri(picture.art_key or "")
        assert not any(one.picture_key for one in prompt.history[:-1])
        assert prompt.snapshot is not None
        assert prompt.snapshot.history_tokens[-1] == tuple(picture.tokens)
    served = {one.task_id: one.prompt for one in model.answered}
    assert sorted(map(repr, served.values())) == sorted(repr(prompt_of(task.prompt["snapshot"])) for task in tasks), (
        "what DPO rebuilds is what was asked"
    )
    assert model.images_seen == 0, "a drawn picture has its codes and its embedding already"
    with Session(engine) as session:
        features = session.get_one(ImageFeature, (picture.art_sha256, features_version(TOKENIZER)))
        assert features.embedding == picture.embedding
    found = status_of(drawn, SECOND)
    assert found["figures"]["history"] == {"pictures": 5, "drawn": 1}
    assert "history  5 pictures, 1 of them posters that the users had clicked" in words(found)
    report = Store(drawn.s3).get(found["report_key"])
    assert report is not None
    assert "clicked posters in histories</dt><dd>1 of 5" in report.body.decode()
    night(drawn, on=THIRD).run(Scope())
    assert tasks_of(engine, THIRD) == []


def test_a_night_without_clicks_is_planned_as_it_was_without_the_setting(drawn: Settings, engine: Engine) -> None:
    off = drawn.model_copy(update={"history": drawn.history.model_copy(update={"drawn_share": 0.0})})
    with Session(engine) as session:
        react(session, poster_of(session, "u1"), CLICKED)
        session.flush()
        with_it, without = planned(drawn, session), planned(off, session)
        stored = dict(session.execute(select(UserHistory.user_id, UserHistory.fingerprint)).all())
        known = dict(session.execute(select(PlannedUser.user_id, PlannedUser.history_fingerprint)).all())
    assert {user: one.history_fingerprint for user, one in without.items()} == stored == known
    assert all(with_it[user] == without[user] for user in ("u0", "u2"))
    assert with_it["u1"].history_fingerprint != stored["u1"]
    assert set(with_it["u1"].history) - set(without["u1"].history) == set(with_it["u1"].drawn)


def test_only_so_many_pictures_are_drawn_ones_and_the_newest_of_an_item(drawn: Settings, engine: Engine) -> None:
    with Session(engine) as session:
        items = session.scalars(select(Poster.item_id).where(Poster.user_id == "u0").distinct()).all()
        first, second = (poster_of(session, "u0", item=item) for item in sorted(items))
        other = poster_of(session, "u0", 1, first.item_id)
        react(session, second, CLICKED)
        react(session, first, CLICKED)
        react(session, other, CLICKED)  # at one moment: the greater event id
        session.flush()
        moment = select(PosterFeedback.poster_id).where(PosterFeedback.item_id == first.item_id)
        last = session.scalars(moment.order_by(PosterFeedback.event_id.desc())).first()
        found = planned(drawn, session)["u0"]
        assert planned(drawn, session)["u0"] == found
        assert set(found.drawn) == set(items)
        assert found.drawn[first.item_id].picture_key == session.get_one(Poster, last).picture_key
        react(session, second, CLICKED + timedelta(hours=1))
        session.flush()
        narrow = drawn.model_copy(update={"history": drawn.history.model_copy(update={"drawn_share": 0.2})})
        assert set(planned(narrow, session)["u0"].drawn) == {second.item_id}


def _withdraw(kind: str) -> Callable[[Session, Poster], Any]:
    subjects = {
        "poster": lambda poster: poster.poster_id,
        "picture": lambda poster: poster.picture_key,
        "item": lambda poster: poster.item_id,
        "night": lambda poster: poster.run_id,
    }
    return lambda session, poster: session.add(
        Withdrawal(kind=kind, subject=subjects[kind](poster), reason="r", actor="ann")
    )


def _robot(session: Session, poster: Poster) -> None:
    """Thirty showings, all clicked."""
    for number in range(30):
        at = CLICKED - timedelta(days=number % 5, minutes=number)
        react(session, poster, at, "impression", number)
        react(session, poster, at + timedelta(seconds=1), "click", number)


AWAY: dict[str, Callable[[Session, Poster], Any]] = {
    **{f"the {kind} is withdrawn": _withdraw(kind) for kind in ("poster", "picture", "item", "night")},
    "the picture is deleted": lambda session, poster: session.execute(
        delete(Picture).where(Picture.picture_key == poster.picture_key)
    ),
    "the picture is refused": lambda session, poster: session.execute(
        update(Picture).where(Picture.picture_key == poster.picture_key).values(status="refused", reason="unsafe")
    ),
    "the poster is deleted": lambda session, poster: session.execute(
        delete(Poster).where(Poster.poster_id == poster.poster_id)
    ),
    "the codes are another tokenizer's": lambda session, poster: session.execute(
        text("""UPDATE night_runs SET settings = jsonb_set(settings, '{served,tokenizer}', '"another"')""")
    ),
    "the item opted out": lambda session, poster: session.execute(
        update(Item).where(Item.item_id == poster.item_id).values(attributes={"drawn_posters": False})
    ),
    "the poster was dismissed after it": lambda session, poster: react(
        session, poster, CLICKED + timedelta(seconds=5), "dismiss"
    ),
    "the click is too old": lambda session, poster: session.execute(
        update(PosterFeedback).values(occurred_at=CLICKED - timedelta(days=91))
    ),
    "the user objects to drawn posters": lambda session, poster: session.add(
        UserObjection(user_id=poster.user_id, objects=True, occurred_at=CLICKED)
    ),
    "a robot clicked": _robot,
}


@pytest.fixture
def clicked(drawn: Settings, engine: Engine) -> Iterator[tuple[Session, Poster]]:
    """A click on a poster by u0, in a transaction that comes to nothing."""
    with Session(engine) as session:
        poster = poster_of(session, "u0")
        react(session, poster, CLICKED)
        session.flush()
        assert set(planned(drawn, session)["u0"].drawn) == {poster.item_id}
        yield session, poster
        session.rollback()


def test_a_click_does_not_count_where_its_picture_should_not_be_seen(
    drawn: Settings, clicked: tuple[Session, Poster]
) -> None:
    session, poster = clicked
    own = session.get_one(UserHistory, "u0")
    for why, change in AWAY.items():
        with session.begin_nested() as changed:
            change(session, poster)
            session.flush()
            found = planned(drawn, session)["u0"]
            assert not found.drawn, why
            assert found.history == tuple(entry["item_id"] for entry in own.entries), why
            assert (found.history_fingerprint == own.fingerprint) is (why != "a robot clicked"), why
            changed.rollback()
    assert set(planned(drawn, session)["u0"].drawn) == {poster.item_id}
    react(session, poster, CLICKED - timedelta(seconds=5), "dismiss")
    session.flush()
    assert set(planned(drawn, session)["u0"].drawn) == {poster.item_id}, "dismissed before the click"


def test_a_poster_that_is_withdrawn_leaves_the_history_and_comes_back(drawn: Settings, engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        poster = poster_of(session, "u0")
        react(session, poster, CLICKED)
    why = {"reason": "a complaint", "actor": "ann"}
    pictures = []
    for day, step in enumerate((None, withdraw.withdraw, None, withdraw.lift), 1):
        if step:
            step(drawn, "poster", poster.poster_id, **why)
        on = NIGHT + timedelta(days=day)
        night(drawn, on=on).run(Scope())
        prompts = [FrozenPrompt.model_validate(task.prompt) for task in tasks_of(engine, on)]
        pictures.append([any(one.picture_key for one in prompt.history) for prompt in prompts])
    assert pictures == [[True, True], [], [], []], "the posters of before are right again, and none is drawn twice"
    with Session(engine) as session:
        fingerprint = session.get_one(PlannedUser, "u0").history_fingerprint
        assert fingerprint == planned(drawn, session)["u0"].history_fingerprint


def test_a_history_keeps_a_picture_that_an_erased_user_had_too_and_drops_what_was_only_theirs(
    drawn: Settings, engine: Engine
) -> None:
    """u0's poster of an item has the picture of u1's, and u1 clicked one that nobody else has."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        shared, mine, only = poster_of(session, "u1"), poster_of(session, "u0"), poster_of(session, "u1", 1)
        for name in ("picture_key", "art_key", "art_sha256", "image_key", "image_sha256"):
            setattr(mine, name, getattr(shared, name))
        session.execute(
            update(Poster)
            .where(Poster.picture_key == only.picture_key, Poster.poster_id != only.poster_id)
            .values(art_key="art/another.png", picture_key="another")
        )
        react(session, mine, CLICKED)
        react(session, only, CLICKED)
        react(session, shared, CLICKED)
    night(drawn, on=SECOND).run(Scope())
    kept, gone = (art_key(one.art_sha256) for one in (mine, only))
    with Session(engine) as session:
        hashes = set(session.scalars(select(ImageFeature.image_sha256)))
        assert {mine.art_sha256, only.art_sha256} <= hashes
    ask_to_erase(drawn, "u1")
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.execute(delete(PosterFeedback).where(PosterFeedback.user_id == "u1"))
    erase_users(drawn)
    store = Store(drawn.s3)
    assert store.exists(kept)
    assert not store.exists(gone)
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(Erasure).where(Erasure.completed_at.is_(None))) == 0
        hashes = set(session.scalars(select(ImageFeature.image_sha256)))
        assert mine.art_sha256 in hashes
        assert only.art_sha256 not in hashes, "what the erased user alone had"
        assert set(planned(drawn, session, on=THIRD)["u0"].drawn) == {mine.item_id}
