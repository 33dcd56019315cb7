"""The moments at which jobs were due: each is done, tried again, or given up.

A moment's name is its local wall time, so the hour that a clock change repeats has one. Every write checks the leader's lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.storage.lease import Lease
from generator.storage.postgres import plain_errors
from schemas.tables import ScheduleMoment

OPEN = ("running", "waiting")


@dataclass(frozen=True)
class Moment:
    """A due moment of a job."""

    job: str
    name: str
    """Local wall time, to the minute."""
    due_at: datetime
    """In the scheduler's time zone."""

    @classmethod
    def due(cls, job: str, at: datetime) -> Moment:
        """A moment by its local time."""
        return cls(job, at.replace(tzinfo=None).isoformat(timespec="minutes"), at)

    def __str__(self) -> str:
        return f"{self.job} of {self.due_at:%Y-%m-%d %H:%M %Z}"


class Moments:
    """Reads and writes of the moments.

    All methods may raise ServerUnavailable and InputError (tables missing); those that write, LockHeld.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(self, moment: Moment) -> ScheduleMoment | None:
        """The moment's row, if it was taken up before."""
        with plain_errors(self._engine), Session(self._engine, expire_on_commit=False) as session:
            return session.get(ScheduleMoment, (moment.job, moment.name))

    def read_open(self, job: str) -> list[ScheduleMoment]:
        """Moments of a job that are not done and not given up, the latest first."""
        with plain_errors(self._engine), Session(self._engine, expire_on_commit=False) as session:
            return list(
                session.scalars(
                    select(ScheduleMoment)
                    .where(ScheduleMoment.job == job, ScheduleMoment.status.in_(OPEN))
                    .order_by(ScheduleMoment.due_at.desc())
                )
            )

    def take(self, lease: Lease, moment: Moment) -> int | None:
        """Take a moment up, under the leader's token; returns which try it is, None when it is over.

        One that is marked as running is taken as well: its leader is gone, or it is ours and the caller runs nothing.
        """
        row = {
            "job": moment.job,
            "moment": moment.name,
            "status": "running",
            "attempts": 1,
            "due_at": moment.due_at.astimezone(UTC),
            "token": lease.token,
        }
        again = {"status": "running", "attempts": ScheduleMoment.attempts + 1, "token": lease.token}
        statement = insert(ScheduleMoment).values(row)
        with plain_errors(self._engine), Session(self._engine) as session, session.begin():
            lease.check(session.connection())
            return session.scalar(
                statement.on_conflict_do_update(
                    index_elements=["job", "moment"],
                    set_={**again, "next_try_at": None, "updated_at": func.now()},
                    where=ScheduleMoment.status.in_(OPEN),
                ).returning(ScheduleMoment.attempts)
            )

    def end(self, lease: Lease, moment: Moment, status: Literal["done", "gave_up"], error: str | None = None) -> None:
        """Record that a moment is done or given up."""
        self._write(lease, moment.job, moment.name, status=status, error=error, next_try_at=None)

    def wait(self, lease: Lease, moment: Moment, error: str, next_try_at: datetime) -> None:
        """Record why a try failed, and when the next one begins."""
        self._write(
            lease, moment.job, moment.name, status="waiting", error=error, next_try_at=next_try_at.astimezone(UTC)
        )

    def supersede(self, lease: Lease, moment: Moment) -> list[str]:
        """Give up the open moments before this one of the same job; returns their names."""
        with plain_errors(self._engine), Session(self._engine) as session, session.begin():
            lease.check(session.connection())
            rows = session.scalars(
                update(ScheduleMoment)
                .where(
                    ScheduleMoment.job == moment.job,
                    ScheduleMoment.status.in_(OPEN),
                    ScheduleMoment.moment != moment.name,
                    ScheduleMoment.due_at < moment.due_at.astimezone(UTC),
                )
                .values(status="gave_up", error=f"a later moment is due: {moment.name}", next_try_at=None)
                .returning(ScheduleMoment.moment)
            )
            return list(rows)

    def _write(self, lease: Lease, job: str, name: str, **values: object) -> None:
        with plain_errors(self._engine), Session(self._engine) as session, session.begin():
            lease.check(session.connection())
            session.execute(
                update(ScheduleMoment)
                .where(ScheduleMoment.job == job, ScheduleMoment.moment == name)
                .values(**values, updated_at=func.now())
            )
