"""The night's own tables: runs, tasks, skips, posters. Every write checks the lease first, so that a replaced leader cannot write.

All methods may raise ServerUnavailable (Postgres away), InputError (tables missing) and, when they write, LockHeld.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import Engine, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.nightly.plan import Chunk
from generator.nightly.taken_back import not_taken_back
from generator.storage.lease import Lease
from generator.storage.postgres import plain_errors
from schemas.tables import Erasure, NightRun, NightSkip, NightTask, Poster


def run_id_of(logical_date: date) -> str:
    """A night is keyed by its date, so its id can be known before there is a row."""
    return f"night-{logical_date:%Y%m%d}"


class Ledger:
    """Reads and writes of one night's process."""

    def __init__(self, engine: Engine, lease: Lease | None = None) -> None:
        self.engine = engine
        self._lease = lease

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only session on one snapshot."""
        with plain_errors(self.engine), Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that commits only while we lead."""
        if self._lease is None:
            raise RuntimeError("this ledger was opened for reading")
        with plain_errors(self.engine), Session(self.engine, expire_on_commit=False) as session, session.begin():
            self._lease.check(session.connection())
            yield session

    def run(self, logical_date: date) -> NightRun | None:
        """The run of that date."""
        with self.reading() as session:
            return session.scalar(select(NightRun).where(NightRun.logical_date == logical_date))

    def latest(self, *, unfinished: bool = False) -> NightRun | None:
        """The run with the latest date, or the latest that has not been published."""
        query = select(NightRun).order_by(NightRun.logical_date.desc()).limit(1)
        if unfinished:
            query = query.where(NightRun.status != "published")
        with self.reading() as session:
            return session.scalar(query)

    def save_plan(
        self, logical_date: date, model_version: str, settings: dict[str, Any], chunks: Iterable[Chunk]
    ) -> tuple[int, int]:
        """The run with all its tasks and skips, in one transaction: there is a whole plan or none.

        Returns:
            How many tasks and skips were written.
        """
        if self._lease is None:
            raise RuntimeError("this ledger was opened for reading")
        run_id = run_id_of(logical_date)
        with self.writing() as session:
            session.add(
                NightRun(
                    run_id=run_id,
                    logical_date=logical_date,
                    status="planned",
                    model_version=model_version,
                    settings=settings,
                    fencing_token=self._lease.token,
                )
            )
            session.flush()
            tasks = skips = 0
            for chunk in chunks:
                for table, rows in ((NightTask, chunk.tasks), (NightSkip, chunk.skips)):
                    if rows:
                        session.execute(
                            insert(table).on_conflict_do_nothing(), [{**row, "run_id": run_id} for row in rows]
                        )
                tasks += len(chunk.tasks)
                skips += len(chunk.skips)
            return tasks, skips

    def begin(self, run_id: str) -> int:
        """Mark the run as running under our lease; failed tasks get their attempts back. Returns the tasks to draw."""
        if self._lease is None:
            raise RuntimeError("this ledger was opened for reading")
        with self.writing() as session:
            session.execute(
                update(NightRun)
                .where(NightRun.run_id == run_id)
                .values(status="running", error=None, fencing_token=self._lease.token)
            )
            session.execute(
                update(NightTask)
                .where(NightTask.run_id == run_id, NightTask.status == "failed")
                .values(status="pending", attempts=0, reason=None, finished_at=None)
            )
            return (
                session.scalar(select(func.count()).where(NightTask.run_id == run_id, NightTask.status == "pending"))
                or 0
            )

    def pending(self, run_id: str, *, page: int = 64) -> Iterator[list[NightTask]]:
        """Pending tasks in the manifest's order, page by page; tasks that finish meanwhile do not disturb the paging."""
        after = ("", "")
        while True:
            with self.reading() as session:
                rows = list(
                    session.scalars(
                        select(NightTask)
                        .where(
                            NightTask.run_id == run_id,
                            NightTask.status == "pending",
                            text("(user_id, item_id) > (:after_user, :after_item)").bindparams(
                                after_user=after[0], after_item=after[1]
                            ),
                            NightTask.user_id.not_in(self.pending_erasures()),
                        )
                        .order_by(NightTask.user_id, NightTask.item_id)
                        .limit(page)
                    )
                )
            if not rows:
                return
            yield rows
            after = (rows[-1].user_id, rows[-1].item_id)

    @staticmethod
    def pending_erasures() -> Any:
        """Subquery of users that are to be forgotten."""
        return select(Erasure.user_id).where(Erasure.completed_at.is_(None))

    def intend(self, posters: Sequence[dict[str, Any]]) -> None:
        """Write the posters' rows before their pictures go to the store, so that no picture is there without a row.

        A row is in effect only when its task is done. A redraw finds its own rows and leaves them.
        """
        if not posters:
            return
        with self.writing() as session:
            session.execute(insert(Poster).on_conflict_do_nothing(), list(posters))

    def finish(self, task: NightTask, status: str, **values: Any) -> None:
        """Record a task's outcome: done, refused or failed."""
        with self.writing() as session:
            session.execute(
                update(NightTask)
                .where(
                    NightTask.run_id == task.run_id,
                    NightTask.user_id == task.user_id,
                    NightTask.item_id == task.item_id,
                )
                .values(status=status, finished_at=func.now(), **values)
            )

    def counts(self, run_id: str) -> dict[str, int]:
        """Tasks by status."""
        with self.reading() as session:
            rows = session.execute(
                select(NightTask.status, func.count()).where(NightTask.run_id == run_id).group_by(NightTask.status)
            )
            return {str(status): int(count) for status, count in rows}

    def reasons(self, run_id: str) -> dict[str, int]:
        """Failed and refused tasks by reason."""
        with self.reading() as session:
            rows = session.execute(
                select(NightTask.status, NightTask.reason, func.count())
                .where(NightTask.run_id == run_id, NightTask.status.in_(("failed", "refused")))
                .group_by(NightTask.status, NightTask.reason)
                .order_by(func.count().desc())
            )
            return {f"{status}: {reason}": count for status, reason, count in rows}

    def skips(self, run_id: str) -> dict[str, int]:
        """Skipped users and targets by reason."""
        with self.reading() as session:
            rows = session.execute(
                select(NightSkip.reason, func.count())
                .where(NightSkip.run_id == run_id)
                .group_by(NightSkip.reason)
                .order_by(func.count().desc(), NightSkip.reason)
            )
            return {str(reason): int(count) for reason, count in rows}

    def fail(self, run_id: str, error: str) -> None:
        """The run cannot be published as it is; `resume` may mend it."""
        with self.writing() as session:
            session.execute(update(NightRun).where(NightRun.run_id == run_id).values(status="failed", error=error))

    def published(self, run_id: str, **values: Any) -> None:
        """The pointer leads to this run (or to a later one): the night is over."""
        with self.writing() as session:
            session.execute(
                update(NightRun)
                .where(NightRun.run_id == run_id)
                .values(status="published", error=None, finished_at=func.now(), **values)
            )

    def unannounced(self, run_id: str, *, page: int = 1000) -> list[Poster]:
        """Posters drawn by this run that can be surfaced and of which nobody has been told, at most `page`."""
        with self.reading() as session:
            return list(
                session.scalars(
                    select(Poster)
                    .join(
                        NightTask,
                        (NightTask.user_id == Poster.user_id)
                        & (NightTask.item_id == Poster.item_id)
                        & (NightTask.input_fingerprint == Poster.input_fingerprint)
                        & (NightTask.model_version == Poster.model_version),
                    )
                    .where(
                        NightTask.run_id == run_id,
                        NightTask.status == "done",
                        Poster.announced_at.is_(None),
                        Poster.withheld.is_(None),
                        Poster.user_id.not_in(self.pending_erasures()),
                        text(not_taken_back("posters", "night_tasks.run_id")),
                    )
                    .order_by(Poster.user_id, Poster.item_id, Poster.variant)
                    .limit(page)
                )
            )

    def announced(self, poster_ids: Sequence[str], at: datetime) -> None:
        """The broker has acknowledged the events of these posters."""
        with self.writing() as session:
            session.execute(update(Poster).where(Poster.poster_id.in_(poster_ids)).values(announced_at=at))

    def drop_plan(self, run_id: str) -> None:
        """Forget a run that has nothing to draw and nothing to publish."""
        with self.writing() as session:
            session.execute(delete(NightRun).where(NightRun.run_id == run_id))
