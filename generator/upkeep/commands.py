"""Commands `pigeon night forget` and `pigeon night upkeep`; registered by generator/cli.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from generator.nightly.commands import night

if TYPE_CHECKING:
    from schemas.settings import Settings


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon night`."""
    night.command("forget")(erase)
    night.command("upkeep")(upkeep)


def erase() -> None:
    """Erase users with an open request from rows, images, manifests and reports; with proof.

    Readers leave them out at once, also users who object to drawn posters. A night may run meanwhile: while it writes its set, a
    request stays open and is completed by the next call (schedule.erasure_cron).
    """
    from generator.upkeep.erase import erase_users

    settings, tell = _prepared()
    tell(erase_users(settings))


def upkeep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Erase who asked for it, and delete what is older than retention.* says.

    Replaced posters, unused files, old sets, feedback, adapters and more; it may run beside a night. What readers see, or can be
    led back to, stays.
    """
    from generator.feedback.retention import drop_adapters, drop_snapshots
    from generator.nightly.recheck import recheck
    from generator.safety.open_nsfw import load_check
    from generator.upkeep.batches import Upkeep
    from generator.upkeep.erase import erase_users
    from generator.upkeep.retention import upkeep as run
    from schemas.errors import LockHeld

    def of_loop(one: Upkeep) -> None:
        for kind, drop in (("snapshots", drop_snapshots), ("adapters", drop_adapters)):
            one.removed[kind] += drop(one.ledger.engine, one.store, one.settings, one.now, dry_run=one.dry_run)

    settings, tell = _prepared()
    if not dry_run:
        try:
            tell(erase_users(settings))
        except LockHeld as error:
            tell(f"erasure: {error}")
    for line in run(settings, dry_run=dry_run, further=(of_loop,)):
        tell(line)
    if not dry_run:
        check = load_check(settings.safety)  # last: an extra that is missing keeps nobody from being erased
        if check is not None:
            tell(recheck(settings, check, minutes=settings.safety.recheck_minutes))


def _prepared() -> tuple[Settings, Callable[[str], None]]:
    """The settings, by which this process now also logs, and what tells an operator a line."""
    from schemas.runtime import logs
    from schemas.settings import load_settings

    settings = load_settings()
    logs.configure(settings)
    return settings, logs.teller(settings, "pigeon.upkeep", typer.echo)
