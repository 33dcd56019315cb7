"""Commands `pigeon retrain` and `pigeon models ...` of the loop; registered by generator/cli.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from generator.feedback.ports import RetrainContext

Reason = Annotated[str, typer.Option("--reason", help="Kept in the registry's history.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="As `pigeon models list` shows it.")]


class PromoteTo(StrEnum):
    """How far a challenger that passed the gate goes by itself."""

    none = "none"
    canary = "canary"
    champion = "champion"


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
    group = typer.Typer(help="Retrain on what users did with the posters.", invoke_without_command=True)
    group.callback()(retrain)
    group.command("forget")(erase)
    app.add_typer(group, name="retrain")
    models.command("list")(list_versions)
    models.command("promote")(promote)
    models.command("canary")(canary)
    models.command("judge")(judge)
    models.command("override")(override)
    models.command("unload")(unload)
    models.command("rollback")(rollback)
    models.command("sync")(sync)
    models.command("adopt")(adopt)


def _context() -> RetrainContext:
    from generator.feedback.backends import open_context
    from schemas.runtime import logs
    from schemas.settings import load_settings

    settings = load_settings()
    logs.configure(settings)
    return open_context(settings, logs.teller(settings, "pigeon.loop", typer.echo))


@contextmanager
def _context_on_servers() -> Iterator[RetrainContext]:
    from generator.feedback.ports import clear_errors

    context = _context()
    with clear_errors(context):
        yield context


def retrain(
    ctx: typer.Context,
    day: Annotated[
        str | None, typer.Option("--date", metavar="D", help="Last day of the window, UTC; today, which ends now.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="MOMENT", help="End of the window instead, as 2026-11-02T05:00:00Z."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the pairs, write nothing.")] = False,
    min_pairs: Annotated[
        int | None, typer.Option("--min-pairs", min=1, metavar="N", help="Instead of retrain.min_pairs.")
    ] = None,
    promote_to: Annotated[
        PromoteTo, typer.Option("--promote", help="How far a challenger goes that passes the gate.")
    ] = PromoteTo.canary,
) -> None:
    """Train a challenger on feedback, put it through the gate and load it beside the champion."""
    if ctx.invoked_subcommand:
        return
    from generator.feedback.retrain import Window
    from generator.feedback.retrain import retrain as run

    if day and until:
        raise _input_error("--date and --until: give one of them")
    moment, last_day = _moment(until, "--until"), _day(day)
    context = _context()
    days = context.settings.retrain.window_days
    run(
        context,
        Window.until(moment, days) if moment else Window.of_day(last_day, days, datetime.now(UTC)),
        min_pairs=min_pairs or context.settings.retrain.min_pairs,
        promote=promote_to.value,
        dry_run=dry_run,
    )


def erase(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
) -> None:
    """Delete snapshots with pairs of users erased since, name adapters trained on them.

    The rows in `erasures` keep the proof.
    """
    from sqlalchemy.orm import Session

    from generator.feedback.erasure import erase_users
    from generator.storage.lease import lead
    from generator.storage.objects import Store
    from generator.storage.postgres import connect, plain_errors
    from schemas.settings import load_settings

    settings = load_settings()  # and no checkpoint: the scheduler's upkeep runs this on machines that have none
    engine, policy = connect(settings.database), settings.retrain.erased_adapters
    with lead(engine, "retrain"), plain_errors(engine), Session(engine) as session, session.begin():
        erased, adapters = erase_users(session, Store(settings.s3), dry_run=dry_run, policy=policy)
    for one in erased:
        typer.echo(f"snapshot {one.snapshot_id}: {_counted(one.pairs, 'pair')} of {_counted(one.users, 'erased user')}")
    for adapter in adapters:
        typer.echo(f"adapter {adapter.version} ({adapter.state}) was trained on users erased since: {adapter.policy}")
    found = _counted(len(erased), "snapshot")
    typer.echo(f"{found} with erased users" if dry_run else f"{found} deleted")


def list_versions(as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False) -> None:
    """List model versions: state, parent, the gate's metrics, and the reasons of their states."""
    import json

    from sqlalchemy.orm import Session

    from generator.feedback import registry
    from generator.storage.postgres import connect, plain_errors
    from schemas.settings import load_settings

    engine = connect(load_settings().database)
    with plain_errors(engine), Session(engine) as session:
        rows: list[dict[str, Any]] = [
            {
                "version": version.version,
                "number": version.number,
                "state": version.state,
                "parent": version.parent,
                "snapshot_id": version.snapshot_id,
                "metrics": version.metrics,
                "history": [
                    {
                        "from": e.from_state,
                        "to": e.to_state,
                        "reason": e.reason,
                        "actor": e.actor,
                        "at": e.at.isoformat(),
                        "figures": e.figures,
                    }
                    for e in registry.list_events(session, version.version)
                ],
            }
            for version in registry.list_versions(session)
        ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo(
            "no versions yet: the checkpoint as shipped serves; `pigeon retrain` registers it and its challengers"
        )
    for row in rows:
        last = row["history"][-1] if row["history"] else {"at": "", "reason": ""}
        typer.echo(f"{row['version']:12} {row['state']:10} {last['at'][:16]:16}  {last['reason']}")


def promote(version: Version, reason: Reason) -> None:
    """Make a version champion: it draws for all users from the next night on."""
    from generator.feedback import rollout

    with _context_on_servers() as context:
        rollout.promote(context, version, reason)


def canary(version: Version, reason: Reason) -> None:
    """Let a version draw for retrain.canary_share of the users from the next night on.

    Says how long it will take.
    """
    from generator.feedback.canary import begin

    with _context_on_servers() as context:
        begin(context, version, reason)


def judge(
    until: Annotated[
        str | None, typer.Option("--until", metavar="MOMENT", help="What users did up to then counts; now.")
    ] = None,
) -> None:
    """Judge the running canary by what users did: promote it, withdraw it, or let it run on."""
    from generator.feedback.canary import judge as look

    moment = _moment(until, "--until") or datetime.now(UTC)
    with _context_on_servers() as context:
        look(context, moment)


def override(
    version: Version,
    reason: Reason,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides against the gate.")],
    hours: Annotated[
        float,
        typer.Option("--hours", min=0.1, help="Until then it may be made canary or champion; a canary ends then."),
    ] = 168.0,
) -> None:
    """Let a version that the gate refused be loaded after all.

    It may then be made canary or champion until the override expires.
    """
    from generator.feedback import rollout

    with _context_on_servers() as context:
        rollout.override(context, version, by, reason, hours)


def unload() -> None:
    """Take adapters out of Triton that were retired or refused retrain.unload_after_hours ago.

    The bucket keeps them.
    """
    from generator.feedback import rollout

    with _context_on_servers() as context:
        gone = rollout.unload(context)
    typer.echo(f"{_counted(len(gone), 'adapter')} unloaded")


def rollback(reason: Reason) -> None:
    """Withdraw the running canary; without one, bring back the champion before this one."""
    from generator.feedback import rollout

    with _context_on_servers() as context:
        rollout.rollback(context, reason)


def sync() -> None:
    """Load champion, canary and waiting challengers into Triton, as after `pigeon models build`."""
    from generator.feedback import rollout

    with _context_on_servers() as context:
        rollout.sync(context)


def adopt(reason: Reason) -> None:
    """Make another checkpoint champion as it is; versions of the one before are retired."""
    from generator.feedback import rollout

    with _context_on_servers() as context:
        rollout.adopt(context, reason)


def _day(text: str | None) -> date:
    from schemas.errors import InputError

    if text is None:
        return datetime.now(UTC).date()
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"--date {text!r} is not YYYY-MM-DD") from None


def _moment(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _input_error(f"{option} {text!r} is not like 2026-11-02T05:00:00Z") from None
    if moment.tzinfo is None:
        raise _input_error(f"{option} {text!r} has no offset from UTC; give it as 2026-11-02T05:00:00Z")
    return moment.astimezone(UTC)


def _input_error(message: str) -> Exception:
    from schemas.errors import InputError

    return InputError(message)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
