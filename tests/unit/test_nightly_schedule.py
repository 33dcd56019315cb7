"""When jobs are due: time zones, clock changes, missed moments, bad expressions."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from generator.nightly.schedule import commands, last_moment, triggers
from schemas.errors import InputError
from schemas.settings import ScheduleSettings

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTS = triggers(ScheduleSettings(time_zone="Europe/Berlin", night_cron="30 2 * * *"))["night"]


def utc(day: int, hour: int, minute: int = 0, month: int = 10) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


def test_moments_are_local() -> None:
    moment = last_moment(NIGHTS, utc(1, 0, 31), 3600)
    assert moment == datetime(2026, 10, 1, 2, 30, tzinfo=BERLIN)


def test_missed_moments_are_made_up_for_within_the_grace_and_become_one() -> None:
    assert last_moment(NIGHTS, utc(1, 4, 31), 4 * 3600) is None
    assert last_moment(NIGHTS, utc(1, 4, 29), 4 * 3600) == utc(1, 0, 30)
    assert last_moment(NIGHTS, utc(9, 1), 7 * 86400) == utc(9, 0, 30)


def test_the_repeated_hour_has_one_name_and_the_skipped_hour_runs() -> None:
    passes = [last_moment(NIGHTS, now, 3600) for now in (utc(25, 0, 31), utc(25, 1, 31))]
    assert [moment.astimezone(UTC) for moment in passes if moment] == [utc(25, 0, 30), utc(25, 1, 30)]
    names = {moment.replace(tzinfo=None).isoformat() for moment in passes if moment}
    assert names == {"2026-10-25T02:30:00"}  # `claim` goes by this, so the second pass runs nothing
    spring = last_moment(NIGHTS, utc(29, 2, month=3), 7200)
    assert spring
    assert spring.astimezone(UTC) == utc(29, 1, 30, month=3)
    assert commands("night", spring) == [["night", "run", "--date", "2026-03-29"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time_zone": "Mars/Olympus"}, "schedule.time_zone"),
        ({"night_cron": "never"}, "schedule.night_cron"),
        ({"retrain_cron": "99 * * * *"}, "schedule.retrain_cron"),
    ],
)
def test_bad_settings_are_named(change: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        triggers(ScheduleSettings(**change))
