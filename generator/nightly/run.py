"""One night from plan to announcement; every step can be repeated, so a night that died goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

from generator.nightly.announce import Announcer, announce
from generator.nightly.frozen_prompt import as_planned, drawing_settings
from generator.nightly.generate import Generator, Tally
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import Ledger
from generator.nightly.manifest_rows import ManifestCounts, make_current
from generator.nightly.online_store import export
from generator.nightly.plan import Planner, Scope
from generator.nightly.progress import NightProgress
from generator.nightly.publish import flip, store_manifest
from generator.nightly.report import write_report
from generator.nightly.withdraw import sync_withdrawn
from generator.nightly.wording import counted
from generator.serving.api import ServedPigeon
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import InputError, PartialFailure, PigeonError, ServerUnavailable
from schemas.faultpoints import reach
from schemas.runtime.stop_signals import stop_signals
from schemas.settings import Settings
from schemas.tables import NightRun


class Interrupted(PigeonError):
    """A signal stopped the night; what is finished is kept."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class NightContext:
    """What a night's steps share; made from the settings by the command line, of doubles by tests."""

    settings: Settings
    model: Callable[[], ServedPigeon]
    announcer: Callable[[], Announcer]
    echo: Callable[[str], None]
    """Prints a line for the operator."""


class Night:
    """The night of one logical date."""

    def __init__(self, context: NightContext, logical_date: date) -> None:
        self._context = context
        self._settings = context.settings
        self._echo = context.echo
        self._date = logical_date
        self._engine = connect(self._settings.database)
        self._store = Store(self._settings.s3)
        cache = self._settings.state_dir / "cache" / "pictures"
        self._images = CatalogImages(self._settings.night, self._store, cache)

    def dry_run(self, scope: Scope) -> dict[str, Any]:
        """Count what a night would draw and skip; nothing is written but the image cache."""
        ledger = Ledger(self._engine)
        with ledger.reading() as session:
            planner = self._planner(session)
            tasks = users = 0
            skips: dict[str, int] = {}
            for chunk in planner.chunks(scope):
                tasks += len(chunk.tasks)
                users += len({task.user_id for task in chunk.tasks})
                for skip in chunk.skips:
                    skips[skip.reason] = skips.get(skip.reason, 0) + 1
        self._echo(
            f"night of {self._date}: would draw {counted(tasks, 'task')} for {counted(users, 'user')}; "
            f"skipped: {_counts(skips)}"
        )
        return {"tasks": tasks, "users": users, "skips": skips}

    def run(self, scope: Scope) -> None:
        """Plan, draw, publish, announce; the same night again does only what is missing.

        Raises:
            InputError: the night was planned for other users.
            LockHeld: another night is under way.
            ServerUnavailable: a server is away; `resume` continues.
            PartialFailure: some tasks failed for good.
            Interrupted: SIGINT or SIGTERM.
        """
        with self._leading() as ledger:
            run = ledger.get_run(self._date)
            if run is not None and run.figures.get("empty"):
                ledger.delete_run(run.run_id)
                run = None
            # Without a scope the command means the night of that date, whatever it was planned for.
            if run is not None and scope != Scope() and run.settings.get("scope") != scope.json():
                raise InputError(
                    f"the night of {self._date} was planned for {_scope_words(run.settings.get('scope', {}))}: "
                    "run it with the same --users and --limit, or choose another --date"
                )
            if run is None:
                run = self._plan(ledger, scope)
                if run is None:
                    return
            self._go_on(ledger, run)

    def resume(self) -> None:
        """Finish a night that stopped.

        Raises:
            As `run`; InputError: there is no such night.
        """
        with self._leading() as ledger:
            run = ledger.get_run(self._date)
            if run is None:
                raise InputError(f"no night of {self._date} to resume: `pigeon night run --date {self._date}` plans it")
            self._go_on(ledger, run)

    @contextmanager
    def _leading(self) -> Iterator[Ledger]:
        """A ledger under the night's lease; connections are released at the end."""
        try:
            self._store.check()
            with lead(self._engine, "night") as lease:
                yield Ledger(self._engine, lease)
        finally:
            self._engine.dispose()
            self._store.s3.close()

    def _planner(self, session: Any) -> Planner:
        return Planner(session, self._settings, self._images, self._context.model().tokenizer_version, self._date)

    def _plan(self, ledger: Ledger, scope: Scope) -> NightRun | None:
        start = time.monotonic()
        with ledger.reading() as session:
            planner = self._planner(session)
            planned_with = {"scope": scope.json(), "recipe": drawing_settings(self._settings.night)}
            version = planner.drawers.champion.version
            tasks, skips = ledger.save_plan(self._date, version, planned_with, planner.chunks(scope))
        reach("planned")
        run = ledger.get_run(self._date)
        assert run is not None  # noqa: S101 - just written
        reasons = ledger.count_skips(run.run_id)
        self._echo(
            f"night of {self._date}: planned {counted(tasks, 'task')} in {time.monotonic() - start:.1f} s; "
            f"skipped {skips}: {_counts(reasons)}"
        )
        if tasks:
            return run
        ledger.mark_published(run.run_id, {"empty": True, "skips": reasons})
        self._echo(f"night of {self._date}: nothing to draw; the published posters stay as they are")
        return None

    def _go_on(self, ledger: Ledger, run: NightRun) -> None:
        if run.status == "published":
            announced = self._announce(ledger, run)
            self._echo(
                f"night of {self._date}: published already, nothing drawn"
                + (f"; {counted(announced, 'announcement')} caught up" if announced else "")
            )
            return
        start = time.monotonic()
        # What was planned is drawn as it was planned, whatever the settings are by now.
        self._settings = self._settings.model_copy(update={"night": as_planned(self._settings.night, run.settings)})
        pending = ledger.mark_running(run.run_id)
        generator = None
        if pending:
            generator = self._draw(ledger, run, pending)
        counts = ledger.count_tasks(run.run_id)
        failed, tasks = counts.get("failed", 0), sum(counts.values())
        if failed > self._settings.night.failure_exit_share * tasks:
            message = (
                f"{failed} of {tasks} tasks failed, more than night.failure_exit_share allows; nothing was published. "
                f"Most: {next(iter(ledger.count_reasons(run.run_id)), 'unknown')}; `pigeon night resume` tries them again"
            )
            ledger.mark_failed(run.run_id, message)
            raise PartialFailure(message)
        seconds = time.monotonic() - start
        self._publish(ledger, run, generator, seconds)
        if failed:
            raise PartialFailure(
                f"published, but {failed} of {tasks} tasks failed: {_counts(ledger.count_reasons(run.run_id))}; "
                "the next night tries them again"
            )

    def _draw(self, ledger: Ledger, run: NightRun, pending: int) -> Generator:
        generator = Generator(self._settings, ledger, self._store, self._images, self._context.model(), run.run_id)
        stopping = stop_signals(lambda _: generator.pipeline.stop(), once=True)
        with stopping as received, NightProgress(pending) as progress:
            tally = generator.run(progress.show)
        if received:
            raise Interrupted(
                received[0],
                f"stopped: {tally.finished} of {pending} tasks finished and kept; `pigeon night resume` continues",
            )
        return generator

    def _publish(self, ledger: Ledger, run: NightRun, generator: Generator | None, seconds: float) -> None:
        make_current(ledger, run.run_id, self._date)
        reach("judged")
        stored = store_manifest(self._store, ledger, run, self._settings)
        ref, counts = stored.ref, stored.counts
        reach("manifest stored")
        figures = self._figures(ledger, run, counts, generator, seconds)
        report_key = write_report(self._store, ledger, run, figures)
        sync_withdrawn(self._store, self._engine)
        if self._settings.online.redis_url:
            self._echo(export(self._settings, ref))
        led = flip(self._store, ledger, ref, run.fencing_token)
        ledger.mark_published(run.run_id, figures, ref, report_key)
        reach("published")
        tally = generator.tally if generator else Tally()
        if not led:
            self._echo("a later night is published: readers stay with it, this night's set can be read by its key")
        announced = "0 announced"
        try:
            if led:
                announced = f"{self._announce(ledger, ledger.get_run(self._date) or run)} announced"
        except ServerUnavailable as error:
            announced = "announcements wait"
            raise ServerUnavailable(
                f"published, but not announced: {error}; `pigeon night resume --date {self._date}`"
            ) from error
        finally:
            self._echo(
                f"night of {self._date}: {counted(counts.drawn, 'poster')} drawn, {counts.carried} carried over, "
                f"{counts.withheld} withheld, {announced}; {counted(tally.finished, 'task')} in {seconds:.1f} s "
                f"({tally.finished / max(seconds, 1e-9):.2f}/s), {tally.refused} refused, {tally.failed} failed; "
                f"{tally.uploaded_bytes / 2**20:.1f} MiB uploaded; s3://{self._store.bucket}/{ref.manifest_key}"
            )

    def _announce(self, ledger: Ledger, run: NightRun) -> int:
        if run.manifest_key is None or not ledger.read_unannounced(run.run_id, page=1):
            return 0
        announcer = self._context.announcer()
        try:
            return announce(ledger, run, announcer)
        finally:
            announcer.close()

    def _figures(
        self,
        ledger: Ledger,
        run: NightRun,
        counts: ManifestCounts,
        generator: Generator | None,
        seconds: float,
    ) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "tasks": ledger.count_tasks(run.run_id),
            "reasons": ledger.count_reasons(run.run_id),
            "skips": ledger.count_skips(run.run_id),
            "posters_drawn": counts.drawn,
            "posters_carried": counts.carried,
            "posters_withheld": counts.withheld,
        }
        if generator:
            tally = generator.tally
            figures["last_session"] = {
                "seconds": round(seconds, 2),
                "tasks": tally.finished,
                "tasks_per_second": round(tally.finished / max(seconds, 1e-9), 3),
                "draw_seconds_per_task": round(tally.draw_seconds / max(1, tally.finished), 3),
                "pictures_tokenized": generator.images_tokenized,
                "model_retries": generator.retries,
                "uploaded_bytes": tally.uploaded_bytes,
            }
        return figures


def find_unfinished(settings: Settings) -> date:
    """The latest night that has not been published.

    Raises:
        InputError: there is none.
    """
    engine = connect(settings.database)
    try:
        run = Ledger(engine).get_latest_run(unfinished=True)
    finally:
        engine.dispose()
    if run is None:
        raise InputError("no unfinished night: `pigeon night run` starts one")
    return run.logical_date


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def _scope_words(scope: dict[str, Any]) -> str:
    users = scope.get("users")
    words = counted(len(users), "given user") if users is not None else "all users"
    return f"{words}, at most {scope['limit']}" if scope.get("limit") is not None else words
