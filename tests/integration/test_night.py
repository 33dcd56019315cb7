"""The night on real Postgres and S3; the model is a test double (tests/support/fake_pigeon.py)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from generator.nightly.answers import ladder
from generator.nightly.drawers import Drawer, Drawers
from generator.nightly.ledger import Ledger, run_id_of
from generator.nightly.plan import Scope
from generator.nightly.run import Interrupted
from generator.serving.api import AnswerRequest, InferenceRejected, InferenceUnavailable, PictureRequest
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import InputError, LockHeld, PartialFailure, ServerUnavailable
from schemas.manifest import POINTER_KEY
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings
from schemas.tables import Item, ModelVersion, NightTask
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, Announcements, build, night, reader, set_item, set_user

pytestmark = pytest.mark.integration
TOMORROW = date(2026, 3, 2)
EMPTY = PromptSnapshot(history_titles=(), history_tokens=(), title="", description="", reference_tokens=())


def everything(settings: Settings) -> dict[str, str]:
    store = Store(settings.s3)
    return {key: store.s3.head_object(Bucket=store.bucket, Key=key)["ETag"] for key in store.keys("")}


def test_a_night_is_drawn_published_announced_and_read(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    model, announced = FakePigeon(), Announcements()
    night(settings, model, announced).run(Scope())

    posters = reader(settings)
    rows = posters.rows().to_pylist()
    assert {(row["user_id"], row["item_id"]) for row in rows} == {
        (f"u{n}", f"item{8 + (n + step) % 4}") for n in range(3) for step in range(2)
    }
    for row in rows:
        stored = Store(settings.s3).get(row["image_key"])
        assert stored
        assert hashlib.sha256(stored.body).hexdigest() == row["image_sha256"]
        assert Image.open(io.BytesIO(stored.body)).size == (row["width"], row["height"]) == (400, 600)
        assert row["synthetic"]
    shares = Counter[tuple[str, str]]()
    for row in rows:
        shares[row["user_id"], row["item_id"]] += row["propensity"]
    assert all(share == pytest.approx(1) for share in shares.values())
    assert {event.poster_id for event in announced.events} == {row["poster_id"] for row in rows}
    assert len(model.answered) == 6
    assert model.images_seen == 10  # each needed picture once, not once per user
    choice = posters.poster_for("u0", "item8")
    assert choice
    assert choice.source == "tonight"
    other = posters.poster_for("stranger", "item8")
    assert other
    assert other.source == "item"
    assert other.image_uri == f"file://{tmp_path}/art/item8.png"
    assert posters.poster_for("u0", "no such item") is None


def test_the_same_night_twice_draws_and_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    before, echoed, announced, model = everything(settings), [], Announcements(), FakePigeon()
    night(settings, model, announced, echo=echoed.append).run(Scope())
    assert everything(settings) == before
    assert (model.answered, model.drawn, announced.events) == ([], [], [])
    assert "published already" in echoed[-1]


def test_the_next_night_draws_only_what_is_new_and_carries_the_rest(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    night(settings).run(Scope())
    first = {row["poster_id"]: row for row in reader(settings).rows().to_pylist()}
    with Session(connect(settings.database)) as session, session.begin():
        set_user(session, "u1", ["item0", "item5", "item6", "item7"])  # u1 clicked on
        Image.new("RGB", (64, 64), "teal").save(tmp_path / "art" / "item8.png")  # item8 has new art
        item = session.get(Item, "item11")
        assert item
        item.deleted_at = item.updated_at  # u2's second target is gone
    model = FakePigeon()
    night(settings, model, on=TOMORROW).run(Scope())
    assert {request.task_id.split("/", 1)[1] for request in model.answered} == {"u1/item9", "u1/item10", "u0/item8"}
    rows = reader(settings).rows().to_pylist()
    carried = [row for row in rows if row["drawn_by_run"] == "night-20260301"]
    assert {(row["user_id"], row["item_id"]) for row in carried} == {("u0", "item9"), ("u2", "item10")}
    assert all(first[row["poster_id"]] == row for row in carried)
    assert "item11" not in {row["item_id"] for row in rows}
    choice = reader(settings).poster_for("u2", "item10")
    assert choice
    assert choice.source == "last_good"
    pointer = Store(settings.s3).get(POINTER_KEY)
    assert pointer
    assert json.loads(pointer.body)["previous"]["run_id"] == "night-20260301"


def test_everything_left_out_is_counted_with_its_reason(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    art = tmp_path / "art"
    (art / "broken.png").write_bytes(b"not a picture")
    with Session(connect(settings.database)) as session, session.begin():
        set_item(session, "nopic", art, image_uri=None)
        set_item(session, "broken", art)
        set_item(session, "mute", art, title=" ", image_uri=f"file://{art}/item1.png")
        set_item(session, "gone", art, image_uri=f"file://{art}/item2.png", deleted_at=text("now()"))
        set_user(session, "few", ["item1", "item2"])
        set_user(session, "blind", ["item1", "item2", "broken", "nopic"], ["item9"])
        # Unreadable pictures are replaced by older ones; a deleted item still tells taste.
        set_user(
            session, "picky", ["item1", "gone", "item3", "broken"], ["broken", "nopic", "mute", "gone", "x", "item9"]
        )
        set_user(session, "cold", ["item1", "item2", "item3"], None)
    night(settings).run(Scope())
    ledger = Ledger(connect(settings.database))
    # Popular items that cannot be used are not targets, so "cold" has no skips.
    assert ledger.count_skips("night-20260301") == {
        "too little history": 1,
        "too few readable history pictures": 1,
        "unreadable image": 1,
        "item without image": 1,
        "item without text": 1,
        "item deleted": 1,
        "item unknown": 1,
    }
    with ledger.reading() as session:
        prompt = session.scalars(select(NightTask.prompt).where(NightTask.user_id == "picky")).one()
        cold = session.scalars(select(NightTask.item_id).where(NightTask.user_id == "cold")).all()
    assert [image["item_id"] for image in prompt["history"]] == ["item1", "gone", "item3"]
    assert cold == ["item0"]  # the only readable item that others liked and this user has not seen


def test_one_bad_task_fails_alone(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=1)

    def fault(request: AnswerRequest, attempt: int) -> None:
        if "/u0/" in request.task_id:
            raise InferenceRejected("prompt too long")
        if "/u1/" in request.task_id and attempt < 3:
            raise InferenceUnavailable("queue full")

    model = FakePigeon(fault)
    with pytest.raises(PartialFailure, match="1 of 3 tasks failed: 1 failed: InferenceRejected: prompt too long"):
        night(settings, model).run(Scope())
    attempts = Counter(request.task_id.split("/")[1] for request in model.answered)
    assert attempts == {"u0": 1, "u1": 3, "u2": 1}
    assert {row["user_id"] for row in reader(settings).rows().to_pylist()} == {"u1", "u2"}
    night(settings, on=TOMORROW).run(Scope())  # the next night tries again
    assert {row["user_id"] for row in reader(settings).rows().to_pylist()} == {"u0", "u1", "u2"}


def test_too_many_failures_publish_nothing_and_resume_mends(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)

    def fault(request: AnswerRequest, attempt: int) -> None:
        raise InferenceUnavailable("too slow")

    model = FakePigeon(fault)
    with pytest.raises(PartialFailure, match="nothing was published"):
        night(settings, model).run(Scope())
    assert Store(settings.s3).get(POINTER_KEY) is None
    assert len(model.answered) == 2 * settings.night.max_attempts
    night(settings).resume()
    assert len(reader(settings).rows()) == 4


def test_a_server_that_is_away_costs_time_not_tasks(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    patient = settings.model_copy(update={"night": settings.night.model_copy(update={"outage_seconds": 0.5})})
    down = FakePigeon()
    night(settings, down).dry_run(Scope())

    def away() -> None:
        if down.images_seen or down.answered:
            raise InferenceUnavailable("connection refused")

    down.alive = away
    with pytest.raises(ServerUnavailable, match=r"has not answered for 0 s|has not answered for 1 s"):
        night(patient, down).run(Scope())
    with Ledger(connect(settings.database)).reading() as session:
        assert {(t.status, t.attempts) for t in session.scalars(select(NightTask))} == {("pending", 0)}
    night(settings).resume()
    assert len(reader(settings).rows()) == 4


def test_an_empty_night_is_no_error_and_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    echoed: list[str] = []
    night(settings, echo=echoed.append).run(Scope())
    assert "nothing to draw" in echoed[-1]
    assert everything(settings) == {}
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings).run(Scope())  # the same date, now with something to do
    assert len(reader(settings).rows()) == 2


def test_two_nights_at_once_and_a_replaced_leader(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    engine = connect(settings.database)
    with lead(engine, "night") as lease:
        with pytest.raises(LockHeld, match=lease.holder):
            night(settings).run(Scope())
        with engine.begin() as connection:  # as a second leader would, after our connection was lost
            connection.execute(text("UPDATE leases SET token = token + 1, holder = 'other' WHERE name = 'night'"))
        with pytest.raises(LockHeld, match="went to other"), Ledger(engine, lease).writing():
            pass
    engine.dispose()


def test_limit_and_users_choose_whom_to_draw_for(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    echoed: list[str] = []
    night(settings, echo=echoed.append).dry_run(Scope(limit=2))
    assert "would draw 4 tasks for 2 users" in echoed[-1]
    chosen = Scope(users=("u2", "nobody"))
    night(settings).run(chosen, publish=True)
    assert {row["user_id"] for row in reader(settings).rows().to_pylist()} == {"u2"}
    run_id = run_id_of(NIGHT, chosen.name)
    assert Ledger(connect(settings.database)).count_skips(run_id) == {"user without history": 1}


def test_a_canary_draws_for_its_share_of_the_users_and_the_champion_for_the_others(
    settings: Settings, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=12, targets=1)
    with Session(connect(settings.database)) as session, session.begin():
        for number, state in ((1, "champion"), (2, "canary"), (3, "loaded")):
            session.add(ModelVersion(version=f"nano-{number}", number=number, state=state, base_sha256="b", metrics={}))
    half = settings.retrain.model_copy(update={"canary_share": 0.5})
    model = FakePigeon()
    night(settings.model_copy(update={"retrain": half}), model).run(Scope())
    drawers = Drawers(Drawer("nano-1", 1, ""), Drawer("nano-2", 2, ""), 0.5)
    asked = {request.task_id.split("/")[1]: request.adapter_version for request in model.answered}
    assert asked == {f"u{n}": drawers.drawer_for(f"u{n}").number for n in range(12)}
    assert set(asked.values()) == {1, 2}
    versions = {row["user_id"]: row["model_version"] for row in reader(settings).rows().to_pylist()}
    assert versions == {user: f"nano-{number}" for user, number in asked.items()}


def test_a_night_of_the_past_does_not_turn_readers_back(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings, on=TOMORROW).run(Scope())
    echoed: list[str] = []
    announced = Announcements()
    night(settings, announcements=announced, echo=echoed.append).run(Scope())
    assert any("readers stay with it" in line for line in echoed)
    assert announced.events == []
    current = reader(settings).current
    assert current
    assert current.logical_date == "2026-03-02"


def test_wrong_bucket_and_wrong_secret_are_named(settings: Settings) -> None:
    for change, words in (
        ({"bucket": "no-such-bucket-here"}, "no such bucket; set PIGEON_S3__BUCKET"),
        ({"secret_access_key": SecretStr("wrong")}, "check PIGEON_S3__ACCESS_KEY_ID"),
    ):
        wrong = settings.model_copy(update={"s3": settings.s3.model_copy(update=change)})
        with pytest.raises(InputError, match=words):
            night(wrong).run(Scope())
    gone = settings.s3.model_copy(
        update={"endpoint_url": "http://127.0.0.1:9", "max_attempts": 1, "connect_timeout_seconds": 1.0}
    )
    with pytest.raises(ServerUnavailable, match=r"setting s3\.endpoint_url"):
        night(settings.model_copy(update={"s3": gone})).run(Scope())


def test_sigterm_finishes_what_is_under_way_and_resume_does_the_rest(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=4, targets=2)
    first = FakePigeon()

    def fault(request: PictureRequest, attempt: int) -> None:
        if len(first.drawn) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    first.picture_fault = fault
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="resume") as stopped:
        night(settings, first).run(Scope())
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    counts = Ledger(connect(settings.database)).count_tasks("night-20260301")
    assert counts.get("done", 0) + counts["pending"] == 8
    assert counts["done"] >= 1
    assert Store(settings.s3).get(POINTER_KEY) is None
    second = FakePigeon()
    night(settings, second).resume()
    asked = [request.task_id for request in (*first.answered, *second.answered)]
    assert len(asked) == len(set(asked)) == 8, "answers are kept, whether their pictures came to be drawn or not"
    drawn = [request.tokens for request in (*first.drawn, *second.drawn)]
    assert len(drawn) == len(set(drawn)), "and so are pictures"
    assert {row["user_id"] for row in reader(settings).rows().to_pylist()} == {"u0", "u1", "u2", "u3"}
    assert Ledger(connect(settings.database)).count_tasks("night-20260301") == {"done": 8}


def test_a_resumed_night_is_drawn_as_it_was_planned(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)

    def fault(request: AnswerRequest, attempt: int) -> None:
        raise InferenceRejected("no")

    with pytest.raises(PartialFailure):
        night(settings, FakePigeon(fault)).run(Scope())
    changed = settings.night.model_copy(update={"alphas": (0.3,), "variants": 1, "sizes": ("64x64",)})
    model = FakePigeon()
    night(settings.model_copy(update={"night": changed}), model).resume()
    assert (model.answered[0].alphas, model.answered[0].temperatures) == ladder(settings.night)
    assert {row["width"] for row in reader(settings).rows().to_pylist()} == {400}
