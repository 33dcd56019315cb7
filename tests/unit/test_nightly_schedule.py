"""When jobs are due: cron's meaning, time zones, clock changes, missed moments, bad expressions."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from generator.nightly.cron import last_moment, next_moment, triggers
from generator.nightly.moments import Moment
from generator.nightly.schedule import commands
from generator.nightly.schedule_watch import UNPUBLISHED_SECONDS, NightAlarm
from schemas.errors import InputError, ServerUnavailable
from schemas.settings import ScheduleSettings, load_settings

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTS = triggers(ScheduleSettings(time_zone="Europe/Berlin", night_cron="30 2 * * *"))["night"]


def utc(day: int, hour: int, minute: int = 0, month: int = 10) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


def days(expression: str, count: int = 5) -> list[str]:
    """The first days from Sunday, 1 November 2026, on which the expression is due."""
    trigger = triggers(ScheduleSettings(night_cron=expression))["night"]
    found: list[str] = []
    at = datetime(2026, 11, 1, tzinfo=UTC)
    while len(found) < count:
        moment = next_moment(trigger, at)
        assert moment
        found.append(f"{moment:%a %d}")
        at = moment.replace(hour=23)
    return found


def test_moments_are_local() -> None:
    moment = last_moment(NIGHTS, utc(1, 0, 31), 3600)
    assert moment == datetime(2026, 10, 1, 2, 30, tzinfo=BERLIN)


def test_missed_moments_are_made_up_for_within_the_grace_and_become_one() -> None:
    assert last_moment(NIGHTS, utc(1, 4, 31), 4 * 3600) is None
    assert last_moment(NIGHTS, utc(1, 4, 29), 4 * 3600) == utc(1, 0, 30)
    assert last_moment(NIGHTS, utc(9, 1), 7 * 86400) == utc(9, 0, 30)


def test_the_repeated_hour_has_one_name_and_the_skipped_hour_runs() -> None:
    """Fault 9: the clock changes."""
    passes = [last_moment(NIGHTS, now, 3600) for now in (utc(25, 0, 31), utc(25, 1, 31))]
    assert [moment.astimezone(UTC) for moment in passes if moment] == [utc(25, 0, 30), utc(25, 1, 30)]
    names = {Moment.due("night", moment).name for moment in passes if moment}
    assert names == {"2026-10-25T02:30"}  # rows go by this, so the second pass runs nothing
    for hour, grace in ((2, 7200), (3, 7200), (5, 4 * 3600)):
        spring = last_moment(NIGHTS, utc(29, hour, month=3), grace)
        assert spring
        assert spring.astimezone(UTC) == utc(29, 1, 30, month=3)
        assert commands("night", spring) == [["night", "run", "--date", "2026-03-29"]]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 2 * * 0", ["Sun 01", "Sun 08", "Sun 15", "Sun 22", "Sun 29"]),
        ("0 2 * * 7", ["Sun 01", "Sun 08", "Sun 15", "Sun 22", "Sun 29"]),
        ("0 2 * * 1-5", ["Mon 02", "Tue 03", "Wed 04", "Thu 05", "Fri 06"]),
        ("0 2 * * MON-fri", ["Mon 02", "Tue 03", "Wed 04", "Thu 05", "Fri 06"]),
        ("0 2 * * 5-7", ["Sun 01", "Fri 06", "Sat 07", "Sun 08", "Fri 13"]),
        ("0 2 * * fri-sun", ["Sun 01", "Fri 06", "Sat 07", "Sun 08", "Fri 13"]),
        ("0 2 * * */2", ["Sun 01", "Tue 03", "Thu 05", "Sat 07", "Sun 08"]),
        ("0 2 * * 1,3-5/2", ["Mon 02", "Wed 04", "Fri 06", "Mon 09", "Wed 11"]),
        ("0 2 13 * 5", ["Fri 06", "Fri 13", "Fri 20", "Fri 27", "Fri 04"]),
        ("0 2 10 * fri", ["Fri 06", "Tue 10", "Fri 13", "Fri 20", "Fri 27"]),
        ("0 2 */2 * 1", ["Mon 09", "Mon 23", "Mon 07", "Mon 21", "Mon 11"]),
    ],
)
def test_weekdays_are_crons(expression: str, expected: list[str]) -> None:
    assert days(expression) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time_zone": "Mars/Olympus"}, "schedule.time_zone"),
        ({"night_cron": "never"}, "schedule.night_cron.*1 fields"),
        ({"retrain_cron": "99 * * * *"}, "schedule.retrain_cron"),
        ({"night_cron": "0 2 31 2 *"}, "schedule.night_cron.*never comes"),
        ({"night_cron": "0 2 * * 8"}, "weekday '8' is none"),
        ({"night_cron": "0 2 * * 5-1"}, "ends before it begins"),
        ({"night_cron": "0 2 * * 1/2"}, "a step needs"),
        ({"night_cron": "0 2 * * funday"}, "weekday 'funday' is none"),
    ],
)
def test_bad_settings_are_named(change: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        triggers(ScheduleSettings(**change))


def test_an_alarm_is_a_time_of_day() -> None:
    with pytest.raises(InputError, match=r"schedule\.alarm_at.*HH:MM"):
        load_settings(schedule={"alarm_at": "25:00"})


def test_the_alarm_begins_at_its_time_and_ends_when_the_night_is_published() -> None:
    published: set[date] = set()
    settings = ScheduleSettings(time_zone="Europe/Berlin", night_cron="30 2 * * *", alarm_at="06:00")
    alarm = NightAlarm(settings, NIGHTS, lambda night: any(day >= night for day in published))
    published.add(date(2026, 9, 30))
    at = datetime(2026, 10, 1, 5, 59, tzinfo=BERLIN)
    assert alarm.look(at) == 0, "the night of the day before is there"
    assert alarm.look(at + timedelta(minutes=31)) == 30 * 60
    assert UNPUBLISHED_SECONDS._value.get() == 30 * 60
    published.add(date(2026, 10, 1))
    assert alarm.look(at + timedelta(minutes=40)) == 0
    assert UNPUBLISHED_SECONDS._value.get() == 0


def test_what_cannot_be_asked_is_not_published() -> None:
    def away(night: date) -> bool:
        raise ServerUnavailable("Postgres is away")

    settings = ScheduleSettings(time_zone="Europe/Berlin", night_cron="30 2 * * *", alarm_at="06:00")
    assert NightAlarm(settings, NIGHTS, away).look(datetime(2026, 10, 1, 7, tzinfo=BERLIN)) == 3600


def test_without_a_night_there_is_no_alarm() -> None:
    sundays = ScheduleSettings(time_zone="Europe/Berlin", night_cron="30 2 * * 0", alarm_at="06:00")
    alarm = NightAlarm(sundays, triggers(sundays)["night"], lambda night: False)
    assert alarm.look(datetime(2026, 10, 1, 7, tzinfo=BERLIN)) == 0  # a Thursday
    assert alarm.look(datetime(2026, 10, 4, 7, tzinfo=BERLIN)) == 3600
    none = NightAlarm(ScheduleSettings(), NIGHTS, lambda night: False)
    assert none.look(datetime(2026, 10, 4, 7, tzinfo=BERLIN)) == 0
