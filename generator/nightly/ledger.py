"""The night's own tables: runs, tasks, answers, skips and posters.

Pictures and compositions have modules of their own.

`get_`, `count_` and `read_` methods read; `save_`, `insert_`, `mark_` and `delete_` methods write. Every write checks the
lease first, so that a replaced leader cannot write. All methods may raise ServerUnavailable (Postgres away for longer than
`outages` waits), InputError (tables missing) and, when they write, LockHeld. Each of them may be done twice: a commit whose
answer was lost is made again.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import date, datetime
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Engine, case, delete, func, select, text, true, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.nightly.erasure_fence import drop_erased, hold_task
from generator.nightly.plan_rows import save_chunk, settle
from generator.nightly.rows import EVERY_USER, Chunk, Outcome, PlanTotals, PosterRow, UserRange
from generator.nightly.taken_back import not_taken_back
from generator.storage.lease import Lease
from generator.storage.outages import OutageRetry
from generator.storage.postgres import plain_errors
from schemas.manifest import ManifestRef
from schemas.tables import (
    PLAN_NUMBERS,
    AnswerSet,
    Composition,
    Erasure,
    NightRun,
    NightSkip,
    NightTask,
    Picture,
    Poster,
)

P = ParamSpec("P")
R = TypeVar("R")

EVERYBODY = "all"
"""Scope of the night itself; any other is a trial's ("trial-<8 hex>")."""


def run_id_of(logical_date: date, scope: str = EVERYBODY) -> str:
    """The id of the run of a date and a scope, known before there is a row."""
    kind, _, key = ("night", "", "") if scope == EVERYBODY else scope.partition("-")
    return f"{kind}-{logical_date:%Y%m%d}" + (f"-{key}" if key else "")


class Patient(Protocol):
    """What waits for Postgres."""

    outages: OutageRetry


S = TypeVar("S", bound=Patient)


def waits_out(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method wait for Postgres as its object's `outages` say."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.outages.call(lambda: method(self, *args, **kwargs))

    return call


class Ledger:
    """Reads and writes of one night's process."""

    def __init__(self, engine: Engine, lease: Lease | None = None, outages: OutageRetry | None = None) -> None:
        """Without `outages` nothing is waited for."""
        self.engine = engine
        self.outages = outages or OutageRetry()
        self._lease = lease
        if lease is not None:
            self.outages.after_outage = lease.hold

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only session on one snapshot."""
        with plain_errors(self.engine), Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that commits only while we lead."""
        lease = self.lease
        with plain_errors(self.engine), Session(self.engine, expire_on_commit=False) as session, session.begin():
            lease.check(session.connection())
            yield session

    def hold_lease(self) -> None:
        """Take the lease's lock again where its session was lost.

        The pool mends its own connections unnoticed, so no call need have met the outage.
        """
        self.lease.hold()

    @property
    def lease(self) -> Lease:
        """The lease that writes are checked against."""
        if self._lease is None:
            raise RuntimeError("this ledger was opened for reading")
        return self._lease

    @waits_out
    def get_run(self, logical_date: date, scope: str = EVERYBODY) -> NightRun | None:
        """The run of that date: the night's, or a trial's."""
        with self.reading() as session:
            return session.scalar(
                select(NightRun).where(NightRun.logical_date == logical_date, NightRun.scope == scope)
            )

    @waits_out
    def get_latest_run(self) -> NightRun | None:
        """The night with the latest date; the latest trial when there is no night."""
        query = select(NightRun).order_by((NightRun.scope == EVERYBODY).desc(), NightRun.logical_date.desc()).limit(1)
        with self.reading() as session:
            return session.scalar(query)

    def save_plan(
        self,
        logical_date: date,
        model_version: str,
        settings: dict[str, Any],
        chunks: Iterable[Chunk],
        scope: str = EVERYBODY,
        read_at: datetime | None = None,
    ) -> PlanTotals:
        """Write the run with all its tasks and skips in one transaction: there is a whole plan or none.

        Users who were erased since the plan was read (`read_at`, by the database's clock; None: now) are left out.
        """
        run_id = run_id_of(logical_date, scope)
        with self.writing() as session:
            # One that a commit without an answer left behind: nothing was drawn for it yet.
            session.execute(delete(NightRun).where(NightRun.run_id == run_id, NightRun.status == "planned"))
            session.add(
                NightRun(
                    run_id=run_id,
                    logical_date=logical_date,
                    scope=scope,
                    status="planned",
                    model_version=model_version,
                    settings=settings,
                    fencing_token=self.lease.token,
                )
            )
            session.flush()
            number = session.scalar(PLAN_NUMBERS.next_value()) or 0
            totals, counted = PlanTotals(), Counter[str]()
            for chunk in chunks:
                save_chunk(session, run_id, logical_date, number, chunk)
                totals.add(chunk)
                counted += Counter(chunk.counted)
            values = {"skipped": dict(counted), "figures": {"history": asdict(totals.history)}}
            session.execute(update(NightRun).where(NightRun.run_id == run_id).values(values))
            tasks, skips = drop_erased(session, run_id, read_at)
            totals.tasks, totals.skipped = totals.tasks - tasks, totals.skipped - skips
            return totals

    @waits_out
    def mark_running(self, run_id: str) -> int:
        """Mark the run as running under our lease and its failed tasks as pending.

        A published run stays published.

        Returns:
            How many tasks are pending.
        """
        with self.writing() as session:
            unpublished = NightRun.status != "published"
            session.execute(
                update(NightRun)
                .where(NightRun.run_id == run_id)
                .values(
                    status=case((unpublished, "running"), else_=NightRun.status),
                    figures=NightRun.figures.op("-")("publishing"),
                    error=None,
                    fencing_token=self.lease.token,
                )
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

    def read_pending(self, run_id: str, *, page: int = 64, users: UserRange = EVERY_USER) -> Iterator[list[NightTask]]:
        """Pages of pending tasks in the manifest's order; tasks may be finished between two pages."""
        after = (users.first, "")
        while rows := self._read_pending_page(run_id, after, users.before, page):
            yield rows
            after = (rows[-1].user_id, rows[-1].item_id)

    @waits_out
    def _read_pending_page(self, run_id: str, after: tuple[str, str], before: str | None, page: int) -> list[NightTask]:
        with self.reading() as session:
            return list(
                session.scalars(
                    select(NightTask)
                    .where(
                        NightTask.run_id == run_id,
                        NightTask.status == "pending",
                        text("(user_id, item_id) > (:after_user, :after_item)").bindparams(
                            after_user=after[0], after_item=after[1]
                        ),
                        NightTask.user_id < before if before is not None else true(),
                        NightTask.user_id.not_in(self.users_to_erase()),
                    )
                    .order_by(NightTask.user_id, NightTask.item_id)
                    .limit(page)
                )
            )

    @staticmethod
    def users_to_erase() -> Any:
        """Subquery of users with an open erasure request."""
        return select(Erasure.user_id).where(Erasure.completed_at.is_(None))

    @waits_out
    def read_answers(self, tasks: Sequence[NightTask]) -> dict[tuple[str, str], bytes]:
        """Stored answers of these tasks, by user and item, as AnswerSet.pack wrote them."""
        key = tuple_(AnswerSet.user_id, AnswerSet.item_id, AnswerSet.answers_fingerprint, AnswerSet.weights)
        wanted = [(task.user_id, task.item_id, task.answers_fingerprint, task.weights) for task in tasks]
        with self.reading() as session:
            rows = session.execute(
                select(AnswerSet.user_id, AnswerSet.item_id, AnswerSet.answers).where(key.in_(wanted))
            )
            return {(user_id, item_id): answers for user_id, item_id, answers in rows}

    @waits_out
    def save_answers(self, task: NightTask, answers: bytes) -> None:
        """Keep a task's answers, as AnswerSet.pack writes them, in place of an earlier choice among them.

        Raises:
            TaskGone: the task's user is to be erased.
        """
        with self.writing() as session:
            hold_task(session, task)
            session.execute(_answers(task, answers))

    @waits_out
    def save_outcome(
        self, task: NightTask, outcome: Outcome, posters: Sequence[PosterRow] = (), answers: bytes | None = None
    ) -> bool:
        """Record how a task ended, with its posters and the choice among its answers, in one transaction.

        Posters that an earlier attempt at this task wrote are replaced.

        Returns:
            False, with nothing written, when a poster's picture or file has been deleted meanwhile.

        Raises:
            TaskGone: the task's user is to be erased.
        """
        with self.writing() as session:
            hold_task(session, task)
            if not _files_are_there(session, posters):
                return False
            if posters:
                _replace_posters(session, task, posters)
            if answers is not None:
                session.execute(_answers(task, answers))
            session.execute(
                update(NightTask)
                .where(
                    NightTask.run_id == task.run_id,
                    NightTask.user_id == task.user_id,
                    NightTask.item_id == task.item_id,
                )
                .values(finished_at=func.now(), **outcome.columns())
            )
        return True

    @waits_out
    def count_tasks(self, run_id: str) -> dict[str, int]:
        """Tasks by status."""
        with self.reading() as session:
            rows = session.execute(
                select(NightTask.status, func.count()).where(NightTask.run_id == run_id).group_by(NightTask.status)
            )
            return {str(status): int(count) for status, count in rows}

    @waits_out
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

    @waits_out
    def count_skips(self, run_id: str) -> dict[str, int]:
        """Users and targets that the plan left out, by reason, the most first."""
        with self.reading() as session:
            rows = session.execute(
                select(NightSkip.reason, func.count())
                .where(NightSkip.run_id == run_id)
                .group_by(NightSkip.reason)
                .order_by(func.count().desc(), NightSkip.reason)
            )
            counts = Counter({str(reason): int(count) for reason, count in rows})
            counts += Counter(session.scalar(select(NightRun.skipped).where(NightRun.run_id == run_id)) or {})
            return dict(counts.most_common())

    @waits_out
    def mark_failed(self, run_id: str, error: str) -> None:
        """Record why the run cannot be published as it is; `resume` may mend it."""
        with self.writing() as session:
            session.execute(
                update(NightRun)
                .where(NightRun.run_id == run_id, NightRun.status.not_in(("published", "cancelled")))
                .values(status="failed", error=error)
            )

    @waits_out
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
            settle(session, run_id)

    @waits_out
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
                        & (NightTask.weights == Poster.weights),
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

    @waits_out
    def mark_announced(self, poster_ids: Sequence[str], at: datetime) -> None:
        """Record that the broker has acknowledged the events of these posters."""
        with self.writing() as session:
            session.execute(update(Poster).where(Poster.poster_id.in_(poster_ids)).values(announced_at=at))

    @waits_out
    def delete_run(self, run_id: str) -> None:
        """Delete a run that has nothing to draw and nothing to publish, with its skips."""
        with self.writing() as session:
            session.execute(delete(NightRun).where(NightRun.run_id == run_id))


def _answers(task: NightTask, answers: bytes) -> Any:
    statement = insert(AnswerSet).values(
        user_id=task.user_id,
        item_id=task.item_id,
        answers_fingerprint=task.answers_fingerprint,
        weights=task.weights,
        answers=answers,
    )
    return statement.on_conflict_do_update(
        index_elements=[AnswerSet.user_id, AnswerSet.item_id, AnswerSet.answers_fingerprint, AnswerSet.weights],
        set_={"answers": answers, "created_at": func.now()},
    )


def _files_are_there(session: Session, posters: Sequence[PosterRow]) -> bool:
    """Whether all rows that name the posters' files exist, and stay until the transaction ends."""
    pictures = {(poster.picture_key, poster.art_sha256) for poster in posters}
    images = {size.image_key for poster in posters for size in poster.sizes}
    # A key share is refused while somebody deletes the row, and nothing else waits for it.
    drawn = session.execute(
        select(Picture.picture_key, Picture.art_sha256)
        .where(Picture.picture_key.in_([key for key, _ in pictures]), Picture.status == "drawn")
        .with_for_update(read=True, key_share=True)
    )
    composed = session.execute(
        select(Composition.image_key)
        .where(Composition.image_key.in_(images))
        .with_for_update(read=True, key_share=True)
    )
    return {tuple(row) for row in drawn} == pictures and {key for (key,) in composed} == images


def _replace_posters(session: Session, task: NightTask, posters: Sequence[PosterRow]) -> None:
    rows = [poster.columns() for poster in posters]
    session.execute(
        delete(Poster).where(
            Poster.run_id == task.run_id,
            Poster.user_id == task.user_id,
            Poster.item_id == task.item_id,
            Poster.poster_id.not_in([row["poster_id"] for row in rows]),
        )
    )
    statement = insert(Poster)
    others = {name: statement.excluded[name] for name in rows[0] if name != "poster_id"}
    session.execute(statement.on_conflict_do_update(index_elements=[Poster.poster_id], set_=others), rows)
