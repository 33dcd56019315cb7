"""When jobs are due: expressions as cron means them, in a named time zone.

APScheduler counts Monday as 0 and wants day and weekday both to fit. Here 0 and 7 are Sunday, and where both are restricted
either of them will do, as in cron(5). A field that begins with `*` restricts nothing.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from schemas.errors import InputError
from schemas.settings import ScheduleSettings

SKIPPED = timedelta(hours=2)
"""No clock change skips more hours."""

JOBS = ("night", "clicks", "retrain", "canary", "upkeep", "erasure")

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_PART = re.compile(r"(?:(\*)|([a-z0-9]+)(?:-([a-z0-9]+))?)(?:/(\d+))?")


def triggers(settings: ScheduleSettings, now: datetime | None = None) -> dict[str, BaseTrigger]:
    """A trigger per job.

    Raises:
        InputError: the time zone or an expression is wrong, or its moment never comes.
    """
    try:
        zone = ZoneInfo(settings.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"setting schedule.time_zone: no time zone {settings.time_zone!r}; for example Europe/Berlin"
        ) from error
    found = {}
    for job in JOBS:
        expression = getattr(settings, f"{job}_cron")
        try:
            found[job] = _trigger(expression, zone)
        except ValueError as error:
            raise InputError(
                f"setting schedule.{job}_cron: {expression!r}: {error}; five fields, for example '0 2 * * *'"
            ) from error
        if found[job].get_next_fire_time(None, now or datetime.now(UTC)) is None:
            raise InputError(f"setting schedule.{job}_cron: {expression!r}: this moment never comes")
    return found


def last_moment(trigger: BaseTrigger, now: datetime, seconds: float) -> datetime | None:
    """The latest moment that was due within the last `seconds`, or None."""
    # In UTC: local times of one zone are compared by the clock's face, which shows the repeated hour twice.
    now = now.astimezone(UTC)
    earliest = now - timedelta(seconds=seconds)
    # A moment in the hour that a clock change skips is found from before that hour only.
    due, at = None, earliest - SKIPPED
    while (moment := next_moment(trigger, at)) is not None and moment.astimezone(UTC) <= now:
        at = moment.astimezone(UTC) + timedelta(seconds=1)
        due = moment if moment.astimezone(UTC) >= earliest else None
    return due


def next_moment(trigger: BaseTrigger, now: datetime) -> datetime | None:
    """The first moment that is due at `now` or later."""
    return trigger.get_next_fire_time(None, now)  # type: ignore[no-any-return] # untyped


def _trigger(expression: str, zone: ZoneInfo) -> BaseTrigger:
    fields = expression.lower().split()
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields")
    minute, hour, day, month, weekday = fields
    common = {"minute": minute, "hour": hour, "month": month, "timezone": zone}
    days = _weekdays(weekday)
    if day.startswith("*") or weekday.startswith("*"):
        return CronTrigger(day=day, day_of_week=days, **common)
    return OrTrigger([CronTrigger(day=day, **common), CronTrigger(day_of_week=days, **common)])


def _weekdays(field: str) -> str:
    """The weekdays of a field as names, which mean the same to cron and to APScheduler."""
    found: set[int] = set()
    for part in field.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"weekday {part!r} is none")
        every, first, last, step = match.groups()
        if step == "0" or (step and first and not last):
            raise ValueError(f"weekday {part!r}: a step needs * or a range, and is 1 or more")
        start = 0 if every else _weekday(first)
        end = 6 if every else _weekday(last) if last else start
        if end < start and last in _DAYS:  # fri-sun: the week that a name ends may be the next
            end += 7
        if end < start:
            raise ValueError(f"weekday {part!r} ends before it begins")
        found.update(number % 7 for number in range(start, end + 1, int(step or 1)))
    return ",".join(_DAYS[number] for number in sorted(found))


def _weekday(word: str) -> int:
    if word in _DAYS:
        return _DAYS.index(word)
    if not word.isdigit() or int(word) > 7:
        raise ValueError(f"weekday {word!r} is none of 0-7 and sun-sat")
    return int(word)
