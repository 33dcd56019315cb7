"""Answers, choices, pictures and poster files, each made once, on real Postgres and S3.

The model is a test double.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from generator.nightly.frozen_prompt import ServedVersions, drawing_settings
from generator.nightly.generate import Generator
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import Ledger
from generator.nightly.pictures import picture_key
from generator.nightly.plan import Planner, Scope
from generator.nightly.tally import Tally
from generator.serving.api import (
    Answer,
    AnswerRequest,
    Answers,
    InferenceCorrupt,
    InferenceUnavailable,
    Picture,
    PictureRequest,
)
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.answers import AnswerSet
from schemas.errors import InputError, PartialFailure
from schemas.settings import Settings
from schemas.tables import AnswerSet as AnswerRow
from schemas.tables import Composition, ModelVersion, NightTask, Poster
from schemas.tables import Picture as PictureRow
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night, reader, set_item, set_user

pytestmark = pytest.mark.integration
TOMORROW = date(2026, 3, 2)
RUN = "night-20260301"


class OfOneMind(FakePigeon):
    """Test double whose answers of an item are the same for every user: looks 0, 1, 2 ..."""

    def answer(self, request: AnswerRequest, *, deadline_seconds: float | None = None) -> Answers:
        found = super().answer(request, deadline_seconds=deadline_seconds)
        answers = [
            Answer(one.alpha, one.temperature, self.codes(request.prompt.title, look), -float(look), 0.0, one.preview)
            for look, one in enumerate(found.answers)
        ]
        return Answers(tuple(answers), found.preview_kind, found.history_previews)

    @staticmethod
    def codes(title: str, look: int) -> tuple[int, ...]:
        return (*title.encode(), look)

    def key(self, title: str, look: int) -> str:
        return picture_key(self.drawing_version, self.codes(title, look))


def two_alike(settings: Settings, art: Path, users: int = 2) -> None:
    """Users with different histories and one target, item8."""
    build(settings, art, users=users, targets=1)
    with Session(connect(settings.database)) as session, session.begin():
        for number in range(users):
            set_user(session, f"u{number}", [f"item{(number + step) % 8}" for step in range(4)], ["item8"])


def changed(settings: Settings, **night_settings: object) -> Settings:
    return settings.model_copy(update={"night": settings.night.model_copy(update=night_settings)})


def rows(settings: Settings, table: type, *order: object) -> list[object]:
    with Session(connect(settings.database)) as session:
        return list(session.scalars(select(table).order_by(*order)))


def test_users_with_one_answer_share_its_picture_and_its_poster_file(settings: Settings, tmp_path: Path) -> None:
    two_alike(settings, tmp_path / "art", users=3)
    model, echoed = OfOneMind(), []
    night(changed(settings, answers=2), model, echo=echoed.append).run(Scope())
    assert len(model.answered) == 3
    assert Counter(request.tokens for request in model.drawn) == {
        model.codes("Film of item8", look): 1 for look in (0, 1)
    }
    shown = reader(settings).rows().to_pylist()
    assert Counter((row["variant"], row["image_key"]) for row in shown).most_common() == [
        ((0, shown[0]["image_key"]), 3),
        ((1, shown[1]["image_key"]), 3),
    ], "nobody's poster is withheld because somebody else has it"
    assert len({row["poster_id"] for row in shown}) == 6
    store = Store(settings.s3)
    assert len(list(store.keys("posters/"))) == len(list(store.keys("art/"))) == 2
    run = Ledger(connect(settings.database)).get_run(NIGHT)
    assert run
    session = run.figures["last_session"]
    assert {name: session[name] for name in session if name.startswith(("pict", "comp", "dist"))} == {
        "distinct_answers": 6,
        "distinct_answers_per_task": 2.0,
        "pictures_drawn": 2,
        "pictures_reused": 4,
        "pictures_drawn_per_poster": 0.333,
        "pictures_judged": 0,
        "compositions_made": 2,
        "compositions_reused": 4,
        "pictures_tokenized": 7,
    }
    assert "2 pictures drawn (0.33 per poster kept), 4 reused; 2 compositions made, 4 reused" in echoed[-1]


def test_what_was_chosen_is_logged_with_its_probability(settings: Settings, tmp_path: Path) -> None:
    two_alike(settings, tmp_path / "art", users=1)
    night(settings, OfOneMind()).run(Scope())
    best, explored = rows(settings, Poster, Poster.variant)
    assert (best.explored, best.choice_propensity) == (False, 1)
    assert explored.explored
    assert 0 < explored.choice_propensity < 1
    assert best.propensity == pytest.approx(0.97), "the policy's best is shown most"
    assert (best.picture_key, best.tokens) == (OfOneMind().key("Film of item8", 0), [*b"Film of item8", 0])
    (stored,) = rows(settings, AnswerRow)
    found = AnswerSet.unpack(stored.answers)
    assert found.chooser == "model 1"
    assert len(found.answers) == settings.night.answers
    drawn = {answer.codes[-1]: (answer.variant, answer.chosen_with) for answer in found.answers if answer.chosen_with}
    assert drawn == {0: (0, 1.0), explored.tokens[-1]: (1, pytest.approx(explored.choice_propensity))}
    assert all(np.isfinite([answer.cs, answer.cis_history]).all() for answer in found.answers)
    (task,) = rows(settings, NightTask)
    assert [row["refused"] for row in task.candidates] == [None, None]
    assert (task.weights, task.answers_fingerprint) == (stored.weights, stored.answers_fingerprint)
    assert {best.weights, explored.weights} == {task.weights}
    assert best.cs == pytest.approx(task.candidates[0]["cs"], abs=1e-3)


def test_another_policy_chooses_among_stored_answers_and_draws_only_what_is_new(
    settings: Settings, tmp_path: Path
) -> None:
    two_alike(settings, tmp_path / "art")
    first = OfOneMind()
    night(settings, first).run(Scope())
    before = {poster.poster_id for poster in rows(settings, Poster)}
    model = OfOneMind()
    night(changed(settings, policy="paper", variants=3), model, on=TOMORROW).run(Scope())
    assert model.answered == [], "the personalizer is not asked for answers that are stored"
    shown = reader(settings).rows().to_pylist()
    assert {row["drawn_by_run"] for row in shown} == {"night-20260302"}
    assert Counter(row["user_id"] for row in shown) == {"u0": 3, "u1": 3}
    assert not {row["poster_id"] for row in shown} & before
    chosen = [AnswerSet.unpack(row.answers) for row in rows(settings, AnswerRow)]
    assert [found.chooser for found in chosen] == ["paper 1"] * 2
    for found in chosen:
        by_score = sorted(found.answers, key=lambda one: -(0.5 * one.cs + 0.5 * one.cis_history))
        assert [one.variant for one in by_score] == [0, 1, 2, -1, -1, -1, -1, -1]
    drawn = Counter(request.tokens for request in (*first.drawn, *model.drawn))
    assert set(drawn.values()) == {1}, "what the first night drew is not drawn again"
    assert len(drawn) == len(rows(settings, PictureRow))


def test_the_second_night_draws_nothing_and_a_new_user_of_one_mind_draws_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    two_alike(settings, tmp_path / "art")
    first = OfOneMind()
    night(changed(settings, answers=2), first).run(Scope())
    again = OfOneMind()
    night(changed(settings, answers=2), again, on=TOMORROW).run(Scope())
    assert (again.answered, again.drawn) == ([], [])
    with Session(connect(settings.database)) as session, session.begin():
        set_user(session, "late", ["item3", "item5", "item1"], ["item8"])
    third = OfOneMind()
    night(changed(settings, answers=2), third, on=date(2026, 3, 3)).run(Scope())
    assert [request.task_id.split("/")[1] for request in third.answered] == ["late"]
    assert third.drawn == [], "a picture of an earlier night is used again"
    shown = reader(settings).rows().to_pylist()
    assert Counter(row["user_id"] for row in shown) == {"u0": 2, "u1": 2, "late": 2}
    assert len({row["image_key"] for row in shown}) == 2
    assert len(list(Store(settings.s3).keys("posters/"))) == 2


def test_new_weights_under_the_same_name_give_new_tasks(settings: Settings, tmp_path: Path) -> None:
    """F5: a model is known by its weights."""
    two_alike(settings, tmp_path / "art", users=1)
    night(settings).run(Scope())
    other = FakePigeon()
    other.base_weights = "fake-weights-2"
    night(settings, other, on=TOMORROW).run(Scope())
    assert len(other.answered) == 1, "not unchanged"
    shown = reader(settings).rows().to_pylist()
    assert {row["drawn_by_run"] for row in shown} == {"night-20260302"}
    assert {row["model_version"] for row in shown} == {"nano-1"}
    assert len({task.weights for task in rows(settings, NightTask)}) == 2
    back = FakePigeon()
    night(settings, back, on=date(2026, 3, 3)).run(Scope())
    assert (back.answered, back.drawn) == ([], []), "the weights of the first night are back: so are its posters"


def test_another_adapter_under_the_same_name_and_another_decoder_give_new_tasks(
    settings: Settings, tmp_path: Path
) -> None:
    two_alike(settings, tmp_path / "art", users=1)
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        champion = {"version": "nano-7", "number": 7, "state": "champion", "base_sha256": "b", "metrics": {}}
        session.add(ModelVersion(**champion, adapter_sha256="one"))
    night(settings).run(Scope())
    with Session(engine) as session, session.begin():
        session.execute(update(ModelVersion).values(adapter_sha256="two"))
    retrained = FakePigeon()
    night(settings, retrained, on=TOMORROW).run(Scope())
    assert len(retrained.answered) == 1
    redrawing = FakePigeon()
    redrawing.drawing_version = "fake-drawing-2"
    night(settings, redrawing, on=date(2026, 3, 3)).run(Scope())
    assert redrawing.answered == [], "the answers are the same"
    assert len(redrawing.drawn) == 2, "their pictures are not"
    engine.dispose()


def test_a_night_is_not_drawn_by_another_checkpoint_than_it_was_planned_for(settings: Settings, tmp_path: Path) -> None:
    two_alike(settings, tmp_path / "art", users=1)
    broken = FakePigeon(fault=lambda request, attempt: (_ for _ in ()).throw(InferenceCorrupt("NaN")))
    with pytest.raises(PartialFailure):
        night(settings, broken).run(Scope())
    other = FakePigeon()
    other.base_weights = "fake-weights-2"
    with pytest.raises(InputError, match="planned for another model than is served"):
        night(settings, other).resume()
    assert other.answered == []


class BlankFirst(OfOneMind):
    """Test double whose picture of look 0 is blank."""

    def draw_pictures(
        self, requests: Sequence[PictureRequest], *, deadline_seconds: float | None = None
    ) -> list[Picture]:
        blank = Picture(np.full((64, 64, 3), 80, np.uint8), np.full(16, 0.25, np.float32))
        drawn = super().draw_pictures(requests)
        return [blank if r.tokens[-1] == 0 else p for r, p in zip(requests, drawn, strict=True)]


def test_a_refused_first_choice_falls_to_the_next_answer_for_everybody(settings: Settings, tmp_path: Path) -> None:
    two_alike(settings, tmp_path / "art")
    model = BlankFirst()
    night(settings, model).run(Scope())
    posters = rows(settings, Poster)
    assert Counter(poster.user_id for poster in posters) == {"u0": 2, "u1": 2}
    assert all(poster.explored for poster in posters), "the best answer's picture is blank"
    assert all(poster.tokens[-1] != 0 for poster in posters)
    assert Counter(request.tokens[-1] for request in model.drawn)[0] == 1, "nobody else draws it to find that out"
    (refused,) = [row for row in rows(settings, PictureRow) if row.status == "refused"]
    assert (refused.picture_key, refused.reason, refused.art_key) == (model.key("Film of item8", 0), "blank", None)
    for task in rows(settings, NightTask):
        assert [row["refused"] for row in task.candidates] == ["blank", None, None]
    again = BlankFirst()
    with Session(connect(settings.database)) as session, session.begin():
        set_user(session, "late", ["item3", "item5", "item1"], ["item8"])
    night(settings, again, on=TOMORROW).run(Scope())
    assert not any(request.tokens[-1] == 0 for request in again.drawn), "not on another night either"


def test_a_task_draws_no_more_than_it_may_and_is_refused_with_the_reasons(settings: Settings, tmp_path: Path) -> None:
    two_alike(settings, tmp_path / "art")
    unlike = changed(settings, min_reference_score=101.0, max_draws=3)
    model = OfOneMind()
    night(unlike, model).run(Scope())
    tasks = rows(settings, NightTask)
    assert {(task.status, task.reason) for task in tasks} == {("refused", "off_reference")}
    assert {len(task.candidates) for task in tasks} == {3}
    assert len(model.drawn) <= 6
    assert rows(settings, Poster) == []
    assert {row.status for row in rows(settings, PictureRow)} == {"drawn"}, "off reference here may be right elsewhere"


def test_broken_pictures_fail_the_task_and_are_drawn_again_when_it_is_tried_again(
    settings: Settings, tmp_path: Path
) -> None:
    two_alike(settings, tmp_path / "art", users=1)
    model = OfOneMind()

    def corrupt(request: PictureRequest, attempt: int) -> None:
        raise InferenceCorrupt("NaN")

    model.picture_fault = corrupt
    with pytest.raises(PartialFailure, match="nothing was published"):
        night(changed(settings, max_attempts=2), model).run(Scope())
    (task,) = rows(settings, NightTask)
    assert (task.status, task.reason) == ("failed", "corrupt")
    assert len(model.drawn) == 2 * settings.night.max_draws
    healthy = OfOneMind()
    night(settings, healthy).resume()
    assert healthy.answered == []
    assert len(healthy.drawn) == 2
    assert len(reader(settings).rows()) == 2


def test_a_picture_that_the_server_has_no_time_for_fails_those_who_wait_and_nobody_else(
    settings: Settings, tmp_path: Path
) -> None:
    two_alike(settings, tmp_path / "art", users=2)
    with Session(connect(settings.database)) as session, session.begin():
        set_user(session, "other", ["item1", "item2", "item3"], ["item9"])
    model = OfOneMind()

    def busy(request: PictureRequest, attempt: int) -> None:
        if request.tokens == model.codes("Film of item8", 0):
            raise InferenceUnavailable("queue full")

    model.picture_fault = busy
    with pytest.raises(PartialFailure, match=r"nothing was published.*InferenceUnavailable: queue full"):
        night(changed(settings, max_attempts=2), model).run(Scope())
    assert {task.user_id: task.status for task in rows(settings, NightTask)} == {
        "u0": "failed",
        "u1": "failed",
        "other": "done",
    }
    second = OfOneMind()
    night(settings, second).resume()
    assert len(reader(settings).rows()) == 6
    assert second.drawn.count(PictureRequest(model.codes("Film of item8", 0), second.drawn[0].seed)) <= 1


def claim(settings: Settings, key: str, *, leader: int, seconds: float) -> None:
    """A claim as another process leaves it."""
    with Session(connect(settings.database)) as session, session.begin():
        session.execute(
            text(
                "INSERT INTO pictures (picture_key, drawing_version, tokens, status, claim_owner, claim_token, claimed_until) "
                "VALUES (:key, 'd', '{}', 'claimed', :owner, 5, clock_timestamp() + make_interval(secs => :seconds))"
            ),
            {"key": key, "owner": f"{leader}:host:1:ab", "seconds": seconds},
        )


def test_a_picture_whose_claimant_died_is_taken_over_when_the_claim_ends(settings: Settings, tmp_path: Path) -> None:
    two_alike(settings, tmp_path / "art")
    model = OfOneMind()
    claim(settings, model.key("Film of item8", 0), leader=10**6, seconds=3)
    start = time.monotonic()
    night(changed(settings, answers=2), model).run(Scope())
    assert time.monotonic() - start > 2, "another process may be drawing it"
    assert len(model.drawn) == 2
    assert len(reader(settings).rows()) == 4
    (taken,) = [row for row in rows(settings, PictureRow) if row.picture_key == model.key("Film of item8", 0)]
    assert (taken.status, taken.claim_token) == ("drawn", 6)


def test_a_claim_of_an_earlier_leader_is_not_waited_for(settings: Settings, tmp_path: Path) -> None:
    two_alike(settings, tmp_path / "art")
    model = OfOneMind()
    claim(settings, model.key("Film of item8", 0), leader=0, seconds=3600)
    night(changed(settings, answers=2), model).run(Scope())
    assert len(model.drawn) == 2
    assert len(reader(settings).rows()) == 4


def test_a_claim_that_was_lost_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    """Another process takes the picture over while we draw: its bytes are used, ours are dropped."""
    two_alike(settings, tmp_path / "art", users=1)
    model = OfOneMind()
    key = model.key("Film of item8", 0)
    engine = connect(settings.database)

    def overtaken(request: PictureRequest, attempt: int) -> None:
        if request.tokens[-1] == 0 and attempt == 1:
            with engine.begin() as connection:
                connection.execute(
                    text("UPDATE pictures SET claim_token = claim_token + 1, claimed_until = now() - interval '1 s'")
                )

    model.picture_fault = overtaken
    night(changed(settings, answers=2), model).run(Scope())
    (row,) = [row for row in rows(settings, PictureRow) if row.picture_key == key]
    assert (row.status, row.claim_token) == ("drawn", 3), "claimed, overtaken, claimed again"
    assert Counter(request.tokens[-1] for request in model.drawn)[0] == 2
    assert len(reader(settings).rows()) == 2
    engine.dispose()


def test_a_drawn_picture_whose_file_is_gone_is_drawn_again(settings: Settings, tmp_path: Path) -> None:
    two_alike(settings, tmp_path / "art", users=1)
    night(changed(settings, answers=2), OfOneMind()).run(Scope())
    first = {row.picture_key: row.art_key for row in rows(settings, PictureRow)}
    store = Store(settings.s3)
    for prefix in ("art/", "posters/"):
        for key in list(store.keys(prefix)):
            store.delete(key)
    with Session(connect(settings.database)) as session, session.begin():
        set_user(session, "late", ["item3", "item5", "item1"], ["item8"])
    model = OfOneMind()
    night(changed(settings, answers=2), model, on=TOMORROW).run(Scope())
    assert len(model.drawn) == 2
    assert {row.picture_key: row.art_key for row in rows(settings, PictureRow)} == first
    late = [row for row in reader(settings).rows().to_pylist() if row["user_id"] == "late"]
    assert len(late) == 2
    assert all(store.exists(row["image_key"]) for row in late)


def test_what_a_dead_process_had_stored_is_not_drawn_again(settings: Settings, tmp_path: Path) -> None:
    """Killed between the picture's file and its row: the file is found by what the row had intended."""
    two_alike(settings, tmp_path / "art", users=1)
    night(changed(settings, answers=2), OfOneMind()).run(Scope())
    with Session(connect(settings.database)) as session, session.begin():
        session.execute(update(PictureRow).values(status="claimed", claim_owner="0:dead:1:ab", claim_token=1))
        set_user(session, "late", ["item3", "item5", "item1"], ["item8"])
    model = OfOneMind()
    night(changed(settings, answers=2), model, on=TOMORROW).run(Scope())
    assert model.drawn == []
    assert {row.status for row in rows(settings, PictureRow)} == {"drawn"}


def test_two_generators_over_the_same_tables_draw_each_picture_once(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=6, targets=3)
    engine = connect(settings.database)
    store = Store(settings.s3)
    quick = changed(settings, claim_seconds=5.0)
    model = FakePigeon()
    model.picture_fault = lambda request, attempt: time.sleep(0.05)
    served = ServedVersions.of(model)
    with ExitStack() as stack:
        lease = stack.enter_context(lead(engine, "night"))
        ledger = Ledger(engine, lease)
        images = CatalogImages(engine, quick)
        with ledger.reading() as session:
            planner = Planner(session, quick, images, served, NIGHT)
            recipe = {"recipe": drawing_settings(quick.night, served.drawing)}
            ledger.save_plan(NIGHT, "nano-1", recipe, planner.chunks(Scope()))
        generators = [Generator(quick, Ledger(engine, lease), store, images, model, RUN) for _ in range(2)]
        errors: list[BaseException] = []

        def run(generator: Generator) -> None:
            try:
                generator.run(lambda tally: None)
            except BaseException as error:  # noqa: BLE001 - shown below
                errors.append(error)

        threads = [threading.Thread(target=run, args=(generator,)) for generator in generators]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not errors
        assert ledger.count_tasks(RUN) == {"done": 18}
    counts = Counter(request.tokens for request in model.drawn)
    assert set(counts.values()) == {1}
    tallies: list[Tally] = [generator.tally for generator in generators]
    assert sum(tally.pictures_drawn for tally in tallies) == len(counts) == len(rows(settings, PictureRow))
    assert all(tally.pictures_drawn for tally in tallies), "both of them drew"
    assert Counter(poster.variant for poster in rows(settings, Poster)) == {0: 18, 1: 18}
    engine.dispose()


def test_a_title_that_cannot_be_set_is_a_reason_and_is_remembered(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from generator.nightly import compositions
    from generator.nightly.compose import NotComposable, compose

    asked: list[str] = []

    def no_letters(art: object, title: str, **rest: object) -> bytes:
        asked.append(title)
        if title == "Film of item8":
            raise NotComposable("title_not_drawable")
        return compose(art, title, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(compositions, "compose", no_letters)
    two_alike(settings, tmp_path / "art")
    night(changed(settings, answers=2), OfOneMind()).run(Scope())
    assert {(task.status, task.reason) for task in rows(settings, NightTask)} == {("refused", "title_not_drawable")}
    assert [(row.image_key, row.reason) for row in rows(settings, Composition)] == [(None, "title_not_drawable")]
    assert asked == ["Film of item8"]


def test_one_tasks_own_trouble_fails_that_task(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: a picture that Pillow chokes on, and a tokenizer that is dead while the scorer is alive."""
    two_alike(settings, tmp_path / "art")
    with Session(connect(settings.database)) as session, session.begin():
        set_item(session, "odd", tmp_path / "art", image_uri=f"file://{tmp_path}/art/item9.png")
        set_user(session, "u1", ["item1", "item2", "item3"], ["odd"])
    from generator.nightly import generate

    def chokes(pixels: object) -> object:
        raise RuntimeError("decoder error -2")

    monkeypatch.setattr(generate, "image_hash", chokes)
    with pytest.raises(PartialFailure, match="RuntimeError: decoder error -2"):
        night(settings, OfOneMind()).run(Scope())
    monkeypatch.undo()
    night(settings, OfOneMind()).resume()
    assert len(reader(settings).rows()) == 4


def test_a_dead_tokenizer_fails_the_tasks_whose_images_are_new(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.nightly.retry.FIRST_WAIT_SECONDS", 0.01)
    two_alike(settings, tmp_path / "art")
    night(settings, OfOneMind()).run(Scope(users=("u0",)), publish=True)
    with Session(connect(settings.database)) as session, session.begin():
        set_user(session, "old", ["item3", "item2", "item1"], ["item8"])  # tokenized already
        set_user(session, "new", ["item5", "item6", "item7"], ["item8"])

    class Deaf(OfOneMind):
        def image_features(self, images: object) -> list[object]:  # type: ignore[override]
            raise InferenceUnavailable("visual_tokenizer is not ready")

    with pytest.raises(PartialFailure, match="visual_tokenizer is not ready"):
        night(settings, Deaf(), on=TOMORROW).run(Scope(users=("old", "new")), publish=True)
    tonight = [task for task in rows(settings, NightTask) if task.run_id.startswith("trial-20260302")]
    assert {task.user_id: task.status for task in tonight} == {"old": "done", "new": "failed"}
    assert Counter(row["user_id"] for row in reader(settings).rows().to_pylist())["old"] == 2
