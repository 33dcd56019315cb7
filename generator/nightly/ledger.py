"""The night's own tables: runs, tasks, skips and posters.

`get_`, `count_` and `read_` methods read; `save_`, `insert_`, `mark_` and `delete_` methods write. Every write checks the
lease first, so that a replaced leader cannot write. All methods may raise ServerUnavailable (Postgres away), InputError
(tables missing) and, when they write, LockHeld.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import Engine, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.nightly.rows import Chunk, Outcome, PosterRow
from generator.nightly.taken_back import not_taken_back
from generator.storage.lease import Lease
from generator.storage.postgres import plain_errors
from schemas.manifest import ManifestRef
from schemas.tables import Erasure, NightRun, NightSkip, NightTask, Poster


def run_id_of(logical_date: date) -> str:
    """The id of a date's night, known before there is a row."""
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
        lease = self._held_lease()
        with plain_errors(self.engine), Session(self.engine, expire_on_commit=False) as session, session.begin():
            lease.check(session.connection())
            yield session

    def _held_lease(self) -> Lease:
        if self._lease is None:
            raise RuntimeError("this ledger was opened for reading")
        return self._lease

    def get_run(self, logical_date: date) -> NightRun | None:
        """The run of that date."""
        with self.reading() as session:
            return session.scalar(select(NightRun).where(NightRun.logical_date == logical_date))

    def get_latest_run(self, *, unfinished: bool = False) -> NightRun | None:
        """The run with the latest date, or the latest that has not been published."""
        query = select(NightRun).order_by(NightRun.logical_date.desc()).limit(1)
        if unfinished:
            query = query.where(NightRun.status != "published")
        with self.reading() as session:
            return session.scalar(query)

    def save_plan(
        self, logical_date: date, model_version: str, settings: dict[str, Any], chunks: Iterable[Chunk]
    ) -> tuple[int, int]:
        """Write the run with all its tasks and skips in one transaction: there is a whole plan or none.

        Returns:
            How many tasks and skips were written.
        """
        run_id = run_id_of(logical_date)
        with self.writing() as session:
            session.add(
                NightRun(
                    run_id=run_id,
                    logical_date=logical_date,
                    status="planned",
                    model_version=model_version,
                    settings=settings,
                    fencing_token=self._held_lease().token,
                )
            )
            session.flush()
            tasks = skips = 0
            for chunk in chunks:
                for table, rows in ((NightTask, chunk.tasks), (NightSkip, chunk.skips)):
                    if rows:
                        session.execute(insert(table).on_conflict_do_nothing(), [row.columns(run_id) for row in rows])
                tasks += len(chunk.tasks)
                skips += len(chunk.skips)
            return tasks, skips

    def mark_running(self, run_id: str) -> int:
        """Mark the run as running under our lease and its failed tasks as pending.

        Returns:
            How many tasks are pending.
        """
        with self.writing() as session:
            session.execute(
                update(NightRun)
                .where(NightRun.run_id == run_id)
                .values(status="running", error=None, fencing_token=self._held_lease().token)
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

    def read_pending(self, run_id: str, *, page: int = 64) -> Iterator[list[NightTask]]:
        """Pages of pending tasks in the manifest's order; tasks may be finished between two pages."""
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
                            NightTask.user_id.not_in(self.users_to_erase()),
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
    def users_to_erase() -> Any:
        """Subquery of users with an open erasure request."""
        return select(Erasure.user_id).where(Erasure.completed_at.is_(None))

    def insert_posters(self, posters: Sequence[PosterRow]) -> None:
        """Write the posters' rows before their images go to the store: no image is there without a row.

        A row is in effect only when its task is done. A redraw finds its own rows and leaves them.
        """
        if not posters:
            return
        with self.writing() as session:
            session.execute(insert(Poster).on_conflict_do_nothing(), [poster.columns() for poster in posters])

    def save_outcome(self, task: NightTask, outcome: Outcome) -> None:
        """Record how a task ended."""
        with self.writing() as session:
            session.execute(
                update(NightTask)
                .where(
                    NightTask.run_id == task.run_id,
                    NightTask.user_id == task.user_id,
                    NightTask.item_id == task.item_id,
                )
                .values(finished_at=func.now(), **outcome.columns())
            )

    def count_tasks(self, run_id: str) -> dict[str, int]:
        """Tasks by status."""
        with self.reading() as session:
            rows = session.execute(
                select(NightTask.status, func.count()).where(NightTask.run_id == run_id).group_by(NightTask.status)
            )
            return {str(status): int(count) for status, count in rows}

    def count_reasons(self, run_id: str) -> dict[str, int]:
        """Failed and refused tasks by reason."""
        with self.reading() as session:
            rows = session.execute(
                select(NightTask.status, NightTask.reason, func.count())
                .where(NightTask.run_id == run_id, NightTask.status.in_(("failed", "refused")))
                .group_by(NightTask.status, NightTask.reason)
                .order_by(func.count().desc())
            )
            return {f"{status}: {reason}": count for status, reason, count in rows}

    def count_skips(self, run_id: str) -> dict[str, int]:
        """Skipped users and targets by reason."""
        with self.reading() as session:
            rows = session.execute(
                select(NightSkip.reason, func.count())
                .where(NightSkip.run_id == run_id)
                .group_by(NightSkip.reason)
                .order_by(func.count().desc(), NightSkip.reason)
            )
            return {str(reason): int(count) for reason, count in rows}

    def mark_failed(self, run_id: str, error: str) -> None:
        """Record why the run cannot be published as it is; `resume` may mend it."""
        with self.writing() as session:
            session.execute(update(NightRun).where(NightRun.run_id == run_id).values(status="failed", error=error))

    def mark_published(
        self,
        run_id: str,
        figures: dict[str, Any],
        ref: ManifestRef | None = None,
        report_key: str | None = None,
    ) -> None:
        """Record that the night is over: the pointer leads to this run's set, or to a later one.

        Without `ref` and `report_key` the run has neither, because there was nothing to draw.
        """
        values: dict[str, Any] = {"figures": figures, "report_key": report_key}
        if ref is not None:
            values |= {"manifest_key": ref.manifest_key, "manifest_sha256": ref.manifest_sha256}
        with self.writing() as session:
            session.execute(
                update(NightRun)
                .where(NightRun.run_id == run_id)
                .values(status="published", error=None, finished_at=func.now(), **values)
            )

    def read_unannounced(self, run_id: str, *, page: int = 1000) -> list[Poster]:
        """At most `page` posters of this run that can be surfaced and are not marked as announced."""
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
                        Poster.user_id.not_in(self.users_to_erase()),
                        text(not_taken_back("posters", "night_tasks.run_id")),
                    )
                    .order_by(Poster.user_id, Poster.item_id, Poster.variant)
                    .limit(page)
                )
            )

    def mark_announced(self, poster_ids: Sequence[str], at: datetime) -> None:
        """Record that the broker has acknowledged the events of these posters."""
        with self.writing() as session:
            session.execute(update(Poster).where(Poster.poster_id.in_(poster_ids)).values(announced_at=at))

    def delete_run(self, run_id: str) -> None:
        """Delete a run that has nothing to draw and nothing to publish, with its skips."""
        with self.writing() as session:
            session.execute(delete(NightRun).where(NightRun.run_id == run_id))
