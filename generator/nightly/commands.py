"""Commands `pigeon night` and `pigeon schedule`; registered by generator/cli.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.errors import InputError

if TYPE_CHECKING:
    from generator.nightly.run import NightContext
    from schemas.settings import Settings

night = typer.Typer(help="Draw, publish and look at nights.", no_args_is_help=True)

Day = Annotated[datetime | None, typer.Option("--date", formats=["%Y-%m-%d"], help="Logical date of the night.")]
Users = Annotated[str | None, typer.Option("--users", help="Only these users: a,b,c or @FILE with one id per line.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most N users that have something to draw.")]


class Engine(StrEnum):
    """Where tasks are drawn from."""

    local = "local"
    ray = "ray"


class Job(StrEnum):
    """What the scheduler runs."""

    night = "night"
    retrain = "retrain"
    upkeep = "upkeep"


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
    app.add_typer(night, name="night")
    app.command("schedule")(schedule)


@night.command("run")
def run(
    day: Day = None,
    users: Users = None,
    limit: Limit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be drawn and skipped.")] = False,
    engine: Annotated[
        Engine, typer.Option("--engine", help="local: threads of this process. ray: not in this release.")
    ] = Engine.local,
) -> None:
    """Plan, draw, publish and announce one night; a second run does only what is missing."""
    from generator.nightly.plan import Scope
    from generator.nightly.run import Night

    if engine is Engine.ray:
        raise InputError("--engine ray: not in this release; use --engine local, and --users @FILE to share work out")
    settings = _settings()
    scope = Scope(_user_list(users), limit)
    with _context(settings) as context:
        one = Night(context, day.date() if day else _today(settings))
        if dry_run:
            one.dry_run(scope)
        else:
            one.run(scope)


@night.command("resume")
def resume(day: Day = None) -> None:
    """Finish a night that stopped or failed; without --date the latest unfinished one."""
    from generator.nightly.run import Night, find_unfinished

    settings = _settings()
    with _context(settings) as context:
        Night(context, day.date() if day else find_unfinished(settings)).resume()


@night.command("status")
def status(
    day: Day = None, as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False
) -> None:
    """Show a night's tasks, skips and outcome; without --date the latest one."""
    import json

    from generator.nightly.status import status_of, words

    found = status_of(_settings(), day.date() if day else None)
    typer.echo(json.dumps(found, indent=2, default=str) if as_json else words(found))


@night.command("forget")
def erase() -> None:
    """Erase users with an open request from rows, images, manifests and reports; with proof."""
    from generator.nightly.erase import erase_users

    typer.echo(erase_users(_settings()))


@night.command("upkeep")
def upkeep() -> None:
    """Erase users with an open request, then drop all but the newest `night.keep_manifests` sets."""
    from generator.nightly.erase import drop_old_manifests, erase_users

    settings = _settings()
    typer.echo(erase_users(settings))
    typer.echo(drop_old_manifests(settings))


def schedule(
    once: Annotated[Job | None, typer.Option("--once", help="Run this job now, then exit with its code.")] = None,
) -> None:
    """Run night, retrain and upkeep by cron until stopped; of several schedulers one leads."""
    from generator.nightly.schedule import Scheduler

    scheduler = Scheduler(_settings(), echo=typer.echo)
    if once is not None:
        raise typer.Exit(scheduler.run_now(once.value))
    scheduler.run_forever()


def _settings() -> Settings:
    from schemas.settings import load_settings

    return load_settings()


def _today(settings: Settings) -> date:
    from zoneinfo import ZoneInfo

    return datetime.now(ZoneInfo(settings.schedule.time_zone)).date()


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
    """What the night works with: Triton, Kafka and the terminal."""
    import functools

    from generator.nightly.announce import KafkaAnnouncer
    from generator.nightly.run import NightContext
    from generator.serving.client import TritonPigeon

    with TritonPigeon(settings) as model:
        yield NightContext(settings, lambda: model, functools.partial(KafkaAnnouncer, settings.kafka), typer.echo)
