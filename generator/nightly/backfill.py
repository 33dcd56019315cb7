"""Nights of several dates, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta

from generator.nightly.plan import Scope
from generator.nightly.run import Night
from generator.nightly.wording import counted
from schemas.errors import InputError, PartialFailure

MOST_NIGHTS = 366


def backfill(night: Callable[[date], Night], first: date, last: date, echo: Callable[[str], None]) -> None:
    """Run the night of every date from `first` to `last`; the same dates again do only what is missing.

    Raises:
        InputError: the dates are in the wrong order or too far apart.
        PartialFailure: some nights were published with failed tasks.
        Whatever else a night raises ends it at that date.
    """
    days = (last - first).days + 1
    if not 1 <= days <= MOST_NIGHTS:
        raise InputError(f"--from {first} --to {last}: {MOST_NIGHTS} nights at most, the first date first")
    partial = []
    for number in range(days):
        day = first + timedelta(days=number)
        try:
            night(day).run(Scope())
        except PartialFailure as error:
            if error.exit_code != PartialFailure.exit_code:  # nothing was published
                raise
            echo(f"night of {day}: {error}")
            partial.append(day)
    if partial:
        raise PartialFailure(
            f"published, but {counted(len(partial), 'night')} of {days} with failed tasks: "
            f"{', '.join(map(str, partial))}; `pigeon night retry-failed --date ...` tries them again"
        )
