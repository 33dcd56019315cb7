"""`pigeon night upkeep`: nothing grows for ever, and nothing that is shown or can be led back to goes.

Under a lease of its own, by short transactions, so that it never stands in a night's way. Whatever ends it, the next call goes
on: each step deletes what a row names before the row, or rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from generator.upkeep.batches import Upkeep
from generator.upkeep.kept_rows import drop_catalog, drop_feedback, drop_moments
from generator.upkeep.leading import leading
from generator.upkeep.manifests import drop_old_manifests
from generator.upkeep.replaced import drop_runs, drop_skips, retire_clicked, retire_replaced
from generator.upkeep.unused import drop_orphans, drop_unused
from schemas.settings import Settings

LEASE = "upkeep"


def upkeep(
    settings: Settings,
    *,
    dry_run: bool = False,
    now: datetime | None = None,
    further: tuple[Callable[[Upkeep], None], ...] = (),
) -> Iterator[str]:
    """Delete what is older than `retention.*` says; yields a line for each step, in numbers.

    Args:
        dry_run: only say what would go. What one step would leave over for the next is not counted.
        now: what ages are counted from, with a time zone; the present when None.
        further: other parts' steps.

    Raises:
        LockHeld: another upkeep is under way.
        ServerUnavailable: Postgres or S3 is away; the next call goes on.
    """
    with leading(settings, LEASE) as (store, ledger):
        one = Upkeep(settings, store, ledger, dry_run, now or datetime.now(UTC))
        yield drop_old_manifests(one)
        steps: tuple[Callable[[Upkeep], None], ...] = (
            retire_replaced,
            retire_clicked,
            drop_skips,
            drop_runs,
            lambda upkeep: drop_unused(upkeep, "compositions"),
            lambda upkeep: drop_unused(upkeep, "pictures"),
            drop_orphans,
            drop_feedback,
            drop_catalog,
            drop_moments,
            *further,
        )
        for step in steps:
            known = one.removed.copy()
            step(one)
            new = one.removed - known
            if new:
                yield _line(new, dry_run=dry_run)
        if not one.removed.total():
            yield "retention: nothing is older than retention.* says"


def _line(removed: dict[str, int], *, dry_run: bool) -> str:
    words = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in removed.items())
    return f"retention: {words} {'would go' if dry_run else 'deleted'}"
