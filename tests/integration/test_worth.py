"""What drawn posters are worth over the items' own: robots, what is missing, where it is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from deploy.local.stack import Stack
from generator.feedback import canary, registry
from generator.feedback.retrain import Window, retrain
from generator.worth import TooLittle, Worth, estimate, read_worth
from schemas.control import control_poster_id
from schemas.errors import Refused
from schemas.settings import Settings, load_settings
from schemas.settings_loop import ClickSettings
from schemas.tables import PosterFeedback
from tests.support.loop_doubles import doubled_context, states
from tests.support.loop_world import WINDOW, filled

pytestmark = pytest.mark.integration
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
STOP = WINDOW[1]


@pytest.fixture
def settings(stack: Stack, database_url: str, bucket: str) -> Settings:
    """Postgres and S3 only."""
    return load_settings(state_dir=stack.state.path, database={"url": database_url}, s3={"bucket": bucket})


def control(engine: Engine, user: str, showings: int, clicks: int) -> None:
    """A user of the control group is shown the item's own poster, a minute apart."""
    rows = []
    for number in range(showings):
        for action in ("impression", "click") if number < clicks else ("impression",):
            row = {
                "poster_id": control_poster_id("x"),
                "user_id": user,
                "item_id": "x",
                "action": action,
                "propensity": 0.5,
            }
            at = NOON + timedelta(minutes=number, seconds=action == "click")
            rows.append({"event_id": uuid5(UUID(int=1), f"{user}/{number}/{action}"), "occurred_at": at, **row})
    with Session(engine) as session, session.begin():
        session.execute(insert(PosterFeedback), rows)


def worth(engine: Engine, **rules: float) -> Worth | TooLittle:
    with Session(engine) as session:
        return read_worth(session, ClickSettings.model_validate({"attribution_hours": 1, **rules}), STOP)


def test_it_says_what_is_missing_before_it_can_be_told(engine: Engine) -> None:
    nothing = worth(engine)
    assert isinstance(nothing, TooLittle)
    assert "no showing of the control group was reported" in nothing.words
    control(engine, "c0", 5, 0)
    assert "no showing of a drawn poster was reported" in worth(engine).words
    filled(engine, users=20)
    found = worth(engine)
    assert isinstance(found, TooLittle)
    assert found.words.endswith(
        "5 showings with 0 clicks of the control group, 40 showings with 20 clicks of others; one of the groups has no clicks yet"
    )
    control(engine, "c1", 6, 2)
    control(engine, "c2", 6, 2)
    early = worth(engine)
    assert isinstance(early, Worth)
    assert not early.decided or early.lift_low > 0


def test_robots_are_worth_nothing_and_nobody_decides_alone(engine: Engine) -> None:
    filled(engine, users=20)
    for number in range(10):
        control(engine, f"c{number}", 10, 1 + number % 2)
    before = worth(engine)
    control(engine, "clicker", 40, 40)
    control(engine, "crawler", 120, 3)
    assert worth(engine, robot_daily_showings=100) == before
    assert isinstance(before, Worth)
    assert (before.control_showings, before.control_rate) == (100, pytest.approx(0.15))


def test_a_retraining_writes_it_down_with_the_champion_and_no_canary_ends_by_that(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    quick = settings.model_copy(update={"clicks": ClickSettings(attribution_hours=1)})
    context, echoed = doubled_context(quick, engine, tmp_path)
    filled(engine)
    for number in range(10):
        control(engine, f"c{number}", 10, 1 + number % 2)
    window = Window.until(STOP, 28)
    retrain(context, window, min_pairs=1, promote="canary")
    assert any(line.startswith("drawn posters are clicked ") for line in echoed), (
        "told, though nobody is registered yet"
    )
    retrain(context, Window.until(STOP + timedelta(hours=1), 28), min_pairs=1, promote="canary")
    with Session(engine) as session:
        events = registry.list_events(session, "nano-1")
    assert [(one.from_state, one.to_state) for one in events] == [(None, "champion"), ("champion", "champion")]
    assert events[-1].figures["lift_low"] < events[-1].figures["lift"] < events[-1].figures["lift_high"]
    assert events[-1].reason.startswith(
        "drawn posters are clicked 50.00% of 80 times (40 users), the items' own 15.00% of 100"
    )
    canary.judge(context, datetime.now(UTC))
    assert states(engine)["nano-2"] == "canary", "a note with the champion is no promotion"


def test_the_days_that_are_missing_shrink_with_the_traffic() -> None:
    rng = np.random.default_rng(0)

    def after(showings: int) -> Worth:
        groups = [
            np.stack([np.full(users, showings), rng.binomial(showings, 0.08, users)], axis=1) for users in (60, 1140)
        ]
        return estimate(*(group.astype(float) for group in groups), expected_share=0.05, days=7)

    few, many = after(4), after(40)
    assert few.days_for_lift is not None
    assert many.days_for_lift is not None
    assert few.days_for_lift > 4 * many.days_for_lift > 7
    assert f"after {few.days_for_lift:,.0f} days of such traffic, 7 are there" in few.words
    assert not many.decided


def test_refused_is_what_the_command_says(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    context, echoed = doubled_context(settings, engine, tmp_path)
    with pytest.raises(Refused):
        retrain(context, Window.until(STOP, 28), min_pairs=1, promote="none")
    assert any("what drawn posters are worth cannot be told" in line for line in echoed)
