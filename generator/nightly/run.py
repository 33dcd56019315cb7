"""One night from plan to announcement; every step can be repeated, so a night that died goes on.

A run belongs to a date and a scope. The night's scope is everybody; a trial for some users (`--users`, `--limit`) is a run of its
own, and the night of its date is drawn all the same.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from sqlalchemy import func, select

from generator.nightly import runs
from generator.nightly.announce import Announcer, announce_rest, catch_up
from generator.nightly.cancelled import CancelWatch
from generator.nightly.click_models import choose_policy, policy_of, read_planned
from generator.nightly.drawing import Drawing
from generator.nightly.erasure_fence import check_claim
from generator.nightly.event_hints import event_hints
from generator.nightly.figures import estimate, run_figures, session_words
from generator.nightly.frozen_prompt import ServedVersions, as_planned, check_served, drawing_settings
from generator.nightly.generate import Generator
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import EVERYBODY, Ledger, run_id_of
from generator.nightly.manifest_rows import make_current
from generator.nightly.online_store import export
from generator.nightly.plan import Planner, Scope
from generator.nightly.policies import ChoicePolicy
from generator.nightly.progress import NightProgress
from generator.nightly.publish import flip, store_manifest
from generator.nightly.report.write import ReportContext, write_report
from generator.nightly.rows import Chunk, PlanTotals
from generator.nightly.sessions import FINISHED, SessionLog
from generator.nightly.tally import Tally
from generator.nightly.withdraw import sync_withdrawn
from generator.nightly.wording import counted, counts_of
from generator.safety.judge import SafetyCheck
from generator.serving.api import ServedPigeon
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.outages import OutageRetry, PatientStore
from generator.storage.postgres import connect
from schemas.errors import InputError, PartialFailure, PigeonError, Refused, ServerUnavailable
from schemas.faultpoints import reach
from schemas.runtime.logs import identify
from schemas.runtime.stop_signals import stop_signals
from schemas.settings import Settings
from schemas.tables import NightRun


class Interrupted(PigeonError):
    """A signal stopped the night; what is finished is kept."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class TooManyFailures(PartialFailure):
    """More tasks failed than a night is published with; nothing was published."""

    exit_code = 1


DrawWith = Callable[
    [Settings, Ledger, Store, CatalogImages, ServedPigeon, str, SafetyCheck | None, ChoicePolicy], Drawing
]


@dataclass(frozen=True)
class NightContext:
    """What a night's steps share; made from the settings by the command line, of doubles by tests."""

    settings: Settings
    model: Callable[[], ServedPigeon]
    announcer: Callable[[], Announcer]
    echo: Callable[[str], None]
    """Prints a line for the operator."""
    ensure_served: Callable[[Sequence[tuple[str, int]]], None] = lambda drawers: None
    """Has Triton serve these model versions (name, number of the adapter), or raises ModelError, which names the fix."""
    draw_with: DrawWith = Generator
    """What draws the tasks of a run, given by its id."""
    safety: SafetyCheck | None = None
    """What finds unsafe pictures; None: nothing does."""


class Night:
    """The night of one logical date, or a trial of that date."""

    def __init__(self, context: NightContext, logical_date: date) -> None:
        self._context = context
        self._settings = context.settings
        self._echo = context.echo
        self._date = logical_date
        self._stopping = threading.Event()
        self._plan_seconds: dict[str, float] = {}
        self._engine = connect(self._settings.database)
        self._store = PatientStore(self._settings.s3, self._outages())
        self._images = CatalogImages(self._engine, self._settings)

    def dry_run(self, scope: Scope) -> dict[str, Any]:
        """Count what a run would draw and skip, and estimate what it needs.

        Nothing is written but what is learned of images.
        """
        ledger = Ledger(self._engine)
        self._choose_policy(ledger)
        with ledger.reading() as session:
            planner = self._planner(session)
            tasks = users = 0
            skips = Counter[str]()
            for chunk in self._chunks(planner, scope):
                tasks += len(chunk.tasks)
                users += len({task.user_id for task in chunk.tasks})
                skips += chunk.reasons()
        self._echo(estimate(tasks, runs.read_rates(ledger), self._settings.night.price_per_hour))
        self._echo(
            f"night of {self._date}: would draw {counted(tasks, 'task')} for {counted(users, 'user')}; "
            f"skipped: {counts_of(skips)}"
        )
        return {"tasks": tasks, "users": users, "skips": dict(skips)}

    def run(self, scope: Scope, *, publish: bool = False) -> None:
        """Plan, draw, publish, announce; the same run again does only what is missing.

        Args:
            scope: who it is for; the night is for everybody.
            publish: whether a trial's posters are shown to its users; the night's always are.

        Raises:
            LockHeld: another run is under way.
            ServerUnavailable: a server is away; `resume` continues.
            ModelError: Triton does not serve what the run is drawn by.
            PartialFailure: some tasks failed for good.
            Refused: the run was cancelled.
            Interrupted: SIGINT or SIGTERM.
        """
        publish = publish or scope.name == EVERYBODY
        with self._leading() as ledger:
            catch_up(ledger, self._date, run_id_of(self._date, scope.name), self._context.announcer, self._echo)
            run = ledger.get_run(self._date, scope.name)
            if run is not None and run.figures.get("empty"):
                ledger.delete_run(run.run_id)
                run = None
            if run is not None and run.status == "cancelled":
                raise Refused(f"{_name(run)} was cancelled; `pigeon night resume --run {run.run_id}` goes on with it")
            if run is None:
                run = self._plan(ledger, scope, publish)
            if run is not None:
                self._go_on(ledger, run, publish)

    def resume(self, run_id: str | None = None) -> None:
        """Finish a run that stopped, failed or was cancelled; without an id the night.

        Raises:
            As `run`; InputError: there is no such run.
        """
        with self._leading() as ledger:
            run = self._existing(ledger, run_id)
            catch_up(ledger, self._date, run.run_id, self._context.announcer, self._echo)
            self._go_on(ledger, run, bool(run.settings.get("publish", True)))

    def retry_failed(self, run_id: str | None = None) -> None:
        """Draw the failed tasks of a run again and publish it again; without an id the night.

        Raises:
            As `run`; InputError: there is no such run.
        """
        with self._leading() as ledger:
            run = self._existing(ledger, run_id)
            failed = ledger.count_tasks(run.run_id).get("failed", 0)
            if not failed and not runs.count_pending(ledger, run.run_id):
                self._echo(f"{_name(run)}: no failed tasks, nothing drawn")
                return
            self._draw_and_publish(ledger, run, bool(run.settings.get("publish", True)))

    @contextmanager
    def _leading(self) -> Iterator[Ledger]:
        """A ledger under the night's lease; connections are released at the end."""
        try:
            self._store.check(writes=True)
            with lead(self._engine, "night") as lease:
                yield Ledger(self._engine, lease, self._outages())
        finally:
            self._engine.dispose()
            self._store.s3.close()
            self._images.close()

    def _outages(self) -> OutageRetry:
        return OutageRetry(self._settings.night.outage_seconds, self._stopping)

    def _existing(self, ledger: Ledger, run_id: str | None) -> NightRun:
        run = runs.get_by_id(ledger, run_id) if run_id else ledger.get_run(self._date)
        if run is None:
            raise InputError(
                f"no run {run_id}"
                if run_id
                else f"no night of {self._date}: `pigeon night run --date {self._date}` plans it"
            )
        self._date = run.logical_date
        return run

    def _planner(self, session: Any) -> Planner:
        served = ServedVersions.of(self._context.model())
        return Planner(session, self._settings, self._images, served, self._date)

    def _chunks(self, planner: Planner, scope: Scope) -> Iterator[Chunk]:
        """Yield the plan; refuse it as a whole when the hosts of too many of its images are away."""
        yield from planner.chunks(scope)
        self._images.check_outages()

    def _choose_policy(self, ledger: Ledger) -> str | None:
        """Settle what the policy `auto` means tonight; returns the id of the click model that is chosen by."""
        base_weights = ServedVersions.of(self._context.model()).base_weights
        night, model_id = choose_policy(ledger, self._settings.night, base_weights)
        self._settings = self._settings.model_copy(update={"night": night})
        return model_id

    def _plan(self, ledger: Ledger, scope: Scope, publish: bool) -> NightRun | None:
        start = time.monotonic()
        click_model = self._choose_policy(ledger)

        def plan() -> PlanTotals:
            with ledger.reading() as session:
                read_at = session.scalar(select(func.now()))
                planner = self._planner(session)
                served = ServedVersions.of(self._context.model())
                planned_with = {
                    "scope": scope.json(),
                    "publish": publish,
                    "recipe": drawing_settings(self._settings.night, served.drawing),
                    "served": asdict(served),
                    "click_model": click_model,
                }
                version = planner.drawers.champion.version
                chunks = self._chunks(planner, scope)
                return ledger.save_plan(self._date, version, planned_with, chunks, scope.name, read_at)

        totals = ledger.outages.call(plan)
        reach("planned")
        run = ledger.get_run(self._date, scope.name)
        assert run is not None  # noqa: S101 - just written
        reasons = ledger.count_skips(run.run_id)
        self._plan_seconds = {"plan": time.monotonic() - start}
        self._echo(
            f"{_name(run)}: planned {counted(totals.tasks, 'task')} in {self._plan_seconds['plan']:.1f} s; "
            f"skipped {totals.skipped}: {counts_of(reasons)}"
        )
        with ledger.reading() as session:
            for hint in event_hints(session, self._settings.consumer.positive_kinds):
                self._echo(f"{_name(run)}: {hint}")
        if totals.tasks or totals.returning:
            return run
        figures = {"empty": True, "skips": reasons}
        if scope.name == EVERYBODY:
            ledger.mark_published(run.run_id, figures)
        else:
            runs.mark_drawn(ledger, run.run_id, figures, None)
        self._echo(f"{_name(run)}: nothing to draw; the published posters stay as they are")
        return None

    def _go_on(self, ledger: Ledger, run: NightRun, publish: bool) -> None:
        if run.status == "drawn" and not publish:
            self._echo(f"{_name(run)}: drawn already; the same command with --publish shows its posters to its users")
            return
        if run.status != "published" or runs.count_pending(ledger, run.run_id):
            self._draw_and_publish(ledger, run, publish)
            return
        announced = announce_rest(ledger, run, self._context.announcer)
        self._echo(
            f"{_name(run)}: published already, nothing drawn"
            + (f"; {counted(announced, 'announcement')} caught up" if announced else "")
        )

    def _draw_and_publish(self, ledger: Ledger, run: NightRun, publish: bool) -> None:
        identify(run_id=run.run_id, night=run.logical_date.isoformat())
        # What was planned is drawn as it was planned, whatever the settings are by now.
        self._settings = self._settings.model_copy(update={"night": as_planned(self._settings.night, run.settings)})
        drawers = runs.read_drawers(ledger, run.run_id)
        if drawers:
            ledger.outages.call(lambda: self._check_served(run, drawers))
        pending = ledger.mark_running(run.run_id)
        with SessionLog(ledger, run, self._plan_seconds) as session:
            self._finish(ledger, run, publish, pending, session)

    def _finish(self, ledger: Ledger, run: NightRun, publish: bool, pending: int, session: SessionLog) -> None:
        tally = self._draw(ledger, run, pending, session) if pending else Tally()
        counts = ledger.count_tasks(run.run_id)
        failed, tasks = counts.get("failed", 0), sum(counts.values())
        if failed > self._settings.night.failure_exit_share * tasks:
            message = (
                f"{failed} of {tasks} tasks failed, more than night.failure_exit_share allows; nothing was published. "
                f"Most: {next(iter(ledger.count_reasons(run.run_id)), 'unknown')}; `pigeon night resume` tries them again"
            )
            ledger.mark_failed(run.run_id, message)
            raise TooManyFailures(message)
        if not runs.begin_publishing(ledger, run.run_id):
            raise _cancelled(run, tally, pending)
        if publish:
            self._publish(ledger, run, tally, session)
        else:
            self._keep(ledger, run, tally, session)
        if failed:
            raise PartialFailure(
                f"published, but {failed} of {tasks} tasks failed: {counts_of(ledger.count_reasons(run.run_id))}; "
                "`pigeon night retry-failed` or the next night tries them again"
            )

    def _check_served(self, run: NightRun, drawers: Sequence[tuple[str, int]]) -> None:
        self._context.ensure_served(drawers)
        check_served(ServedVersions.of(self._context.model()), run.settings)

    def _draw(self, ledger: Ledger, run: NightRun, pending: int, session: SessionLog) -> Tally:
        model = self._context.model()
        policy = policy_of(self._settings.night, read_planned(ledger, run.settings, model.base_weights))
        shared = (self._settings, ledger, self._store, self._images, model)
        drawing = self._context.draw_with(*shared, run.run_id, self._context.safety, policy)
        watch = CancelWatch(ledger, run.run_id, drawing.stop)

        def stop(_: int) -> None:
            self._stopping.set()
            drawing.stop()

        def tick(tally: Tally) -> None:
            progress.show(tally)
            watch.look()
            session.look()

        signals, bar = (
            stop_signals(stop, once=True),
            NightProgress(pending, as_json=self._settings.log_format == "json"),
        )
        try:
            with session.drawing(lambda: drawing.tally), signals as received, bar as progress:
                tally = drawing.run(tick)
        except ServerUnavailable as error:
            if not received:
                raise
            raise self._interrupted(received[0], drawing.tally, pending) from error
        if received:
            raise self._interrupted(received[0], tally, pending)
        if watch.cancelled:
            raise _cancelled(run, tally, pending)
        return tally

    @staticmethod
    def _interrupted(number: int, tally: Tally, pending: int) -> Interrupted:
        return Interrupted(
            number, f"stopped: {tally.finished} of {pending} tasks finished and kept; `pigeon night resume` continues"
        )

    def _publish(self, ledger: Ledger, run: NightRun, tally: Tally, session: SessionLog) -> None:
        patiently, start = ledger.outages.call, time.monotonic()
        patiently(lambda: make_current(ledger, run.run_id, self._date))
        reach("judged")
        stored = patiently(lambda: store_manifest(self._store, ledger, run, self._settings))
        ref, counts = stored.ref, stored.counts
        reach("manifest stored")
        session.stage("manifest", time.monotonic() - start)
        session.end(FINISHED)
        figures = run_figures(ledger, run.run_id, counts.drawn, counts.carried, counts.withheld)
        report_key = self._report(ledger, run, figures)
        patiently(lambda: sync_withdrawn(self._store, self._engine))
        if self._settings.online.redis_url:
            self._echo(export(self._settings, ref))
        led = patiently(
            lambda: flip(self._store, ledger, ref, run.fencing_token, lambda session: check_claim(session, run.run_id))
        )
        if not led:
            figures["announced"] = "never: readers are led to a later night"
        ledger.mark_published(run.run_id, figures, ref, report_key)
        reach("published")
        if not led:
            self._echo("a later night is published: readers stay with it, this night's set can be read by its key")
        announced = "0 announced"
        try:
            if led:
                published = runs.get_by_id(ledger, run.run_id) or run
                announced = f"{announce_rest(ledger, published, self._context.announcer)} announced"
        except ServerUnavailable as error:
            announced = "announcements wait"
            raise ServerUnavailable(
                f"published, but not announced: {error}; `pigeon night resume --date {self._date}` or the next night does it"
            ) from error
        finally:
            self._echo(
                f"{_name(run)}: {counted(counts.drawn, 'poster')} drawn, {counts.carried} carried over, "
                f"{counts.withheld} withheld, {announced}; {session_words(figures, tally)}; "
                f"{self._store.uri(ref.manifest_key)}"
            )

    def _keep(self, ledger: Ledger, run: NightRun, tally: Tally, session: SessionLog) -> None:
        """End a trial whose posters are shown to nobody: its report shows them to the operator."""
        session.end(FINISHED)
        figures = run_figures(ledger, run.run_id, runs.count_posters(ledger, run.run_id), 0, 0)
        report_key = self._report(ledger, run, figures)
        runs.mark_drawn(ledger, run.run_id, figures, report_key)
        self._echo(
            f"{_name(run)}: {counted(figures['posters_drawn'], 'poster')} drawn and shown to nobody; "
            f"{session_words(figures, tally)}" + (f"; {self._store.uri(report_key)}" if report_key else "")
        )

    def _report(self, ledger: Ledger, run: NightRun, figures: dict[str, Any]) -> str | None:
        context = ReportContext(self._settings, self._store, ledger, self._images)
        return ledger.outages.call(lambda: write_report(context, run, figures, self._echo))


def find_open(settings: Settings) -> tuple[date, str]:
    """Date and id of the latest run that is not published, or not announced; nights before trials.

    Raises:
        InputError: there is none.
    """
    engine = connect(settings.database)
    try:
        run = runs.find_open(Ledger(engine))
    finally:
        engine.dispose()
    if run is None:
        raise InputError("no unfinished night: `pigeon night run` starts one")
    return run.logical_date, run.run_id


def _name(run: NightRun) -> str:
    return f"night of {run.logical_date}" if run.scope == EVERYBODY else f"trial {run.run_id}"


def _cancelled(run: NightRun, tally: Tally, pending: int) -> Refused:
    return Refused(
        f"{_name(run)} was cancelled: {tally.finished} of {pending} tasks finished and kept; "
        f"`pigeon night resume --run {run.run_id}` goes on with it"
    )
