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
    models.command("rollback")(rollback)
    models.command("sync")(sync)
    models.command("adopt")(adopt)


def _context() -> RetrainContext:
    from generator.feedback.backends import open_context
    from schemas.settings import load_settings

    return open_context(load_settings(), typer.echo)


@contextmanager
def _context_on_servers() -> Iterator[RetrainContext]:
    from generator.feedback.ports import clear_errors

    context = _context()
    with clear_errors(context):
        yield context


def retrain(
    ctx: typer.Context,
    day: Annotated[str | None, typer.Option("--date", metavar="D", help="Last day of the window, UTC; today.")] = None,
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
    from generator.feedback.retrain import retrain as run

    context = _context()
    run(
        context,
        _day(day),
        min_pairs=min_pairs or context.settings.retrain.min_pairs,
        promote=promote_to.value,
        dry_run=dry_run,
    )


def erase(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
) -> None:
    """Delete snapshots with pairs of users erased since, with proof in `erasures`."""
    from sqlalchemy.orm import Session

    from generator.feedback.snapshot import erase_users
    from generator.storage.lease import lead
    from generator.storage.objects import Store
    from generator.storage.postgres import connect, plain_errors
    from schemas.settings import load_settings

    settings = load_settings()  # and no checkpoint: the scheduler's upkeep runs this on machines that have none
    engine = connect(settings.database)
    with lead(engine, "retrain"), plain_errors(engine), Session(engine) as session, session.begin():
        erased = erase_users(session, Store(settings.s3), dry_run=dry_run)
    for one in erased:
        typer.echo(f"snapshot {one.snapshot_id}: {_counted(one.pairs, 'pair')} of {_counted(one.users, 'erased user')}")
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
    """Let a version draw for retrain.canary_share of the users from the next night on."""
    from generator.feedback import rollout

    with _context_on_servers() as context:
        rollout.canary(context, version, reason)


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


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
