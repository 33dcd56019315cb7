"""Commands `pigeon night` and `pigeon schedule`; registered by generator/cli.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.errors import InputError

if TYPE_CHECKING:
    from generator.nightly.run import NightContext
    from generator.serving.client import TritonPigeon
    from schemas.settings import Settings

night = typer.Typer(help="Draw, publish and look at nights.", no_args_is_help=True)

Day = Annotated[datetime | None, typer.Option("--date", formats=["%Y-%m-%d"], help="Logical date of the night.")]
First = Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First date of several nights.")]
Last = Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last date of several nights.")]
RunId = Annotated[str | None, typer.Option("--run", help="A run by its id, as `pigeon night status` shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Kept with the withdrawal, for whoever looks later.")]
Subject = Annotated[str | None, typer.Option(metavar="ID", help="Its id.")]
Users = Annotated[str | None, typer.Option("--users", help="Only these users: a,b,c or @FILE with one id per line.")]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="At most N users that have something to draw; other ones on other dates."),
]


class Engine(StrEnum):
    """Where tasks are drawn from."""

    local = "local"
    ray = "ray"


EngineName = Annotated[
    Engine | None,
    typer.Option(
        "--engine",
        help="local: threads of this process. ray: workers of a Ray cluster (extra `ray`). By default night.engine.",
        show_default=False,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", help="host:port of the cluster's head; by default ray.address, else workers on this machine."
    ),
]


class Job(StrEnum):
    """What the scheduler runs."""

    night = "night"
    retrain = "retrain"
    upkeep = "upkeep"
    erasure = "erasure"


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
    app.add_typer(night, name="night")
    app.command("schedule")(schedule)


@night.command("run")
def run(
    day: Day = None,
    users: Users = None,
    limit: Limit = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Show a trial's posters (--users, --limit) to its users as well.")
    ] = False,
    first: First = None,
    last: Last = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be drawn and skipped, and estimate what it needs.")
    ] = False,
    engine: EngineName = None,
    ray_address: RayAddress = None,
) -> None:
    """Plan, draw, publish and announce one night; a second run does only what is missing.

    With --users or --limit it is a trial: a run of its own, which never stands in for the night of its date. Its posters are
    drawn and shown to nobody: its report has them. --publish shows them to its users, also of a trial that was drawn before.

    With --from and --to each day is a night of its own, drawn from the histories as they are now; readers stay with the latest.
    """
    from generator.nightly.backfill import backfill
    from generator.nightly.doctor import PROBES
    from generator.nightly.plan import Scope
    from generator.nightly.run import Night
    from schemas.runtime import checkup

    settings = _drawn_with(_settings(), engine, ray_address)
    checkup.require(PROBES, settings)
    scope = Scope(_user_list(users), limit)
    if publish and scope == Scope():
        raise InputError("--publish is for trials (--users, --limit): a night is published anyway")
    if (first or last) and (day or dry_run or scope != Scope()):
        raise InputError("--from and --to go without --date, --users, --limit and --dry-run")
    with _context(settings) as context:
        if first or last:
            if first is None or last is None:
                raise InputError("--from and --to go together")
            backfill(lambda date: Night(context, date), first.date(), last.date(), typer.echo)
            return
        one = Night(context, day.date() if day else _today(settings))
        if dry_run:
            one.dry_run(scope)
        else:
            one.run(scope, publish=publish)


@night.command("resume")
def resume(day: Day = None, run_id: RunId = None, engine: EngineName = None, ray_address: RayAddress = None) -> None:
    """Finish a run that stopped, failed, was cancelled or not announced; without an option the latest."""
    from generator.nightly.run import Night, find_open

    settings = _drawn_with(_settings(), engine, ray_address)
    if day is None and run_id is None:
        latest, run_id = find_open(settings)
    else:
        latest = _date_of(settings, day, run_id)
    with _context(settings) as context:
        Night(context, latest).resume(run_id)


@night.command("retry-failed")
def retry_failed(
    day: Day = None, run_id: RunId = None, engine: EngineName = None, ray_address: RayAddress = None
) -> None:
    """Draw a night's failed tasks again and publish it again with what they give."""
    from generator.nightly.run import Night

    settings = _drawn_with(_settings(), engine, ray_address)
    with _context(settings) as context:
        Night(context, _date_of(settings, day, run_id)).retry_failed(run_id)


@night.command("cancel")
def cancel(day: Day = None, run_id: RunId = None) -> None:
    """Cancel a night that is not published yet.

    It stops within seconds and keeps what is finished; `resume` goes on with it.
    """
    from generator.nightly.ledger import run_id_of
    from generator.nightly.runs import cancel as cancel_run
    from generator.storage.postgres import connect

    settings = _settings()
    found = run_id or run_id_of(_date_of(settings, day, run_id))
    engine = connect(settings.database)
    try:
        cancel_run(engine, found)
    finally:
        engine.dispose()
    typer.echo(f"run {found} is cancelled; `pigeon night resume --run {found}` goes on with it")


@night.command("status")
def status(
    day: Day = None,
    run_id: RunId = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show a night's tasks, skips and outcome; without --date or --run the latest one."""
    import json

    from generator.nightly.status import status_of, words

    found = status_of(_settings(), day.date() if day else None, run_id)
    typer.echo(json.dumps(found, indent=2, default=str) if as_json else words(found))


@night.command("report")
def report(
    day: Day = None,
    run_id: RunId = None,
    out: Annotated[Path, typer.Option("--out", help="Where the HTML file goes.")] = Path("night-report.html"),
) -> None:
    """Save a night's report as one HTML file to look at; without --date or --run the latest one's."""
    from generator.nightly.report.fetch import save_report

    typer.echo(save_report(_settings(), day.date() if day else None, run_id, out))


@night.command("withdraw")
def withdraw(
    reason: Reason, poster: Subject = None, picture: Subject = None, item: Subject = None, user: Subject = None
) -> None:
    """Take back a poster, a picture, an item's or a user's posters; later nights leave them out, too."""
    from generator.nightly.withdraw import withdraw as take_back

    kind, subject = _one_of(poster=poster, picture=picture, item=item, user=user)
    typer.echo(take_back(_settings(), kind, subject, reason=reason))


@night.command("lift")
def lift(
    reason: Reason,
    poster: Subject = None,
    picture: Subject = None,
    item: Subject = None,
    user: Subject = None,
    rolled_back: Annotated[
        str | None, typer.Option("--night", metavar="RUN", help="A night that was rolled back.")
    ] = None,
) -> None:
    """Undo a withdrawal, or the rollback of a night."""
    from generator.nightly.withdraw import lift as give_back

    kind, subject = _one_of(poster=poster, picture=picture, item=item, user=user, night=rolled_back)
    typer.echo(give_back(_settings(), kind, subject, reason=reason))


@night.command("rollback")
def rollback(reason: Reason) -> None:
    """Lead readers back to the set before the newest, and withdraw the newest night."""
    from generator.nightly.withdraw import rollback as roll_back

    typer.echo(roll_back(_settings(), reason=reason))


@night.command("object")
def object_to_posters(
    reason: Reason,
    user: Annotated[str, typer.Option("--user", metavar="ID", help="The user's id.")],
    lifted: Annotated[bool, typer.Option("--lift", help="The user no longer objects.")] = False,
) -> None:
    """Record that a user objects to drawn posters, or no longer does; nothing is erased.

    The same as an event of `users.objection.v1` that occurred now.
    """
    from generator.nightly.objections import set_objection

    typer.echo(set_objection(_settings(), user, objects=not lifted, reason=reason))


@night.command("recheck-safety")
def recheck_safety() -> None:
    """Judge stored pictures again after another safety model or threshold; withdraw what is unsafe.

    A second call finds nothing to do. `pigeon night upkeep` does the same, for safety.recheck_minutes at a time.
    """
    from generator.nightly.recheck import recheck
    from generator.safety.open_nsfw import load_check

    settings = _settings()
    check = load_check(settings.safety)
    if check is None:
        raise InputError("no picture is judged: set PIGEON_SAFETY__ENABLED=true (extra `safety`)")
    typer.echo(recheck(settings, check))


def schedule(
    once: Annotated[Job | None, typer.Option("--once", help="Run this job now, then exit with its code.")] = None,
) -> None:
    """Run all jobs of the schedule by cron until stopped; of several schedulers one leads.

    A job that fails is tried again until schedule.deadline_minutes after its due moment.
    """
    from generator.metrics.collector import register as show_stored
    from generator.metrics.collector import unregister
    from generator.nightly.doctor import PROBES
    from generator.nightly.schedule import Scheduler
    from schemas.runtime import checkup, logs

    settings = _settings()
    checkup.require(PROBES, settings)
    scheduler = Scheduler(settings, echo=logs.teller(settings, "pigeon.schedule", typer.echo))
    if once is not None:
        raise typer.Exit(scheduler.run_now(once.value))
    stored = show_stored(settings)
    try:
        scheduler.run_forever()
    finally:
        unregister(stored)


def _settings() -> Settings:
    """The settings, by which this process now also logs."""
    from schemas.runtime import logs
    from schemas.settings import load_settings

    settings = load_settings()
    logs.configure(settings)
    return settings


def _drawn_with(settings: Settings, engine: Engine | None, ray_address: str | None) -> Settings:
    """The settings with the options' engine and address."""
    from generator.nightly.ray_cluster import require_ray

    night = settings.night.model_copy(update={"engine": engine.value} if engine else {})
    if night.engine == "ray":
        require_ray()
    elif ray_address is not None:
        raise InputError("--ray-address goes with --engine ray (setting night.engine)")
    ray = settings.ray.model_copy(update={"address": ray_address} if ray_address else {})
    return settings.model_copy(update={"night": night, "ray": ray})


def _today(settings: Settings) -> date:
    from zoneinfo import ZoneInfo

    return datetime.now(ZoneInfo(settings.schedule.time_zone)).date()


def _date_of(settings: Settings, day: datetime | None, run_id: str | None) -> date:
    """The date that was asked for; today without one. A run's own date is in its row."""
    if day is not None and run_id is not None:
        raise InputError("--date and --run: give one of them")
    return day.date() if day else _today(settings)


def _one_of(**subjects: str | None) -> tuple[Any, str]:
    """The one kind that was given, with its id."""
    given = [(kind, subject) for kind, subject in subjects.items() if subject is not None]
    if len(given) != 1:
        raise InputError(f"give one of {', '.join(f'--{kind}' for kind in subjects)}")
    return given[0]


def _user_list(users: str | None) -> tuple[str, ...] | None:
    if users is None:
        return None
    if users.startswith("@"):
        path = Path(users[1:])
        try:
            names = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--users {users}: cannot read {path}: {error}") from error
    else:
        names = users.split(",")
    found = tuple(sorted({name.strip() for name in names} - {""}))
    if not found:
        raise InputError(f"--users {users}: names nobody; give ids as a,b,c or @FILE with one id per line")
    return found


@contextmanager
def _context(settings: Settings) -> Iterator[NightContext]:
    """What the night works with: Triton or a pipeline in this process, Kafka and the terminal."""
    import functools

    from generator.nightly.announce import KafkaAnnouncer
    from generator.nightly.generate import Generator
    from generator.nightly.ray_drawing import RayDrawing
    from generator.nightly.run import NightContext
    from generator.safety.open_nsfw import load_check
    from generator.serving.client import TritonPigeon
    from schemas.runtime import logs

    safety = load_check(settings.safety)
    announcer = functools.partial(KafkaAnnouncer, settings.kafka)
    echo = logs.teller(settings, "pigeon.night", typer.echo)
    if settings.models.preset == "pipeline":
        from generator.nightly.in_process import pipeline_context

        yield pipeline_context(settings, announcer, echo, safety)
        return
    with TritonPigeon(settings) as model:

        def served() -> TritonPigeon:
            _load_missing(settings, model)
            return model

        ensure_served = functools.partial(_ensure_served, settings, model)
        draw_with = RayDrawing if settings.night.engine == "ray" else Generator
        yield NightContext(settings, served, announcer, echo, ensure_served, draw_with, safety)


def _load_missing(settings: Settings, model: TritonPigeon) -> bool:
    """Load the repository where the server lacks models of it, as after a restart that nobody watched.

    Returns whether the repository is on this machine.
    """
    from generator.serving.repository import MANIFEST, checkpoint_folder, repository_folder

    has_repository = (repository_folder(settings) / MANIFEST).is_file()
    if has_repository and not model.ready():
        model.load_repository(checkpoint_folder(settings))
        typer.echo("Triton did not have all of our models: loaded from its repository")
    return has_repository


def _ensure_served(settings: Settings, model: TritonPigeon, drawers: Sequence[tuple[str, int]]) -> None:
    """Compare what Triton serves with its repository and the registry, and load what is missing.

    The one place of this package that knows the loop.
    """
    from generator.feedback.backends import open_context
    from generator.feedback.ports import clear_errors
    from generator.feedback.rollout import ensure_drawers

    has_repository = _load_missing(settings, model)
    loop = open_context(settings, typer.echo)
    try:
        with clear_errors(loop):
            ensure_drawers(loop, drawers, has_repository=has_repository)
    finally:
        loop.engine.dispose()
        loop.store.s3.close()
