"""What keeps an erased user out while a night writes.

The night and the erasure know each other by this alone.

- A task whose row is gone, or whose user is to be erased, writes nothing more (`hold_task`). The erasure deletes the task's row
  first: whoever waits for it finds nothing.
- A plan that was read before the request came leaves the user's rows out at its end (`drop_erased`), under a lock that the
  erasure takes before it reads its requests.
- A set is written under a claim (`night_runs.figures.publishing`). While its process lives, a request stays open: the set may
  have been read before the request came, and is edited when it is there. A dead process' claim is taken away (`live_publishers`),
  and one that was only thought dead does not lead readers to its set any more (`check_claim`).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from generator.storage.lease import is_led
from schemas.errors import LockHeld
from schemas.tables import Erasure, NightTask

FENCE_LOCK = 7_046_004
"""Key of the advisory lock between plans' ends and erasures' beginnings; its neighbours are in consumers/ and migrations/."""

# An erasure that was completed after the plan's snapshot was taken may be one that the snapshot did not see; one that was
# completed before deleted the user's history before, and what the plan has is new.
_DROP = """
DELETE FROM {table} t USING erasures e
WHERE t.user_id = e.user_id AND {of_plan}
  AND (e.completed_at IS NULL OR e.completed_at >= coalesce(CAST(:read_at AS timestamptz), now()))
RETURNING 1
"""
_DROPS = tuple(
    text(_DROP.format(table=table, of_plan=of_plan))
    for table, of_plan in (
        ("night_tasks", "t.run_id = :run_id"),
        ("night_skips", "t.run_id = :run_id"),
        ("planned_users", "CAST(:run_id AS text) IS NOT NULL"),
    )
)
_CLAIMED = text("""
SELECT r.run_id, r.fencing_token = coalesce(l.token, 0) AS is_leaders
FROM night_runs r LEFT JOIN leases l ON l.name = 'night'
WHERE r.figures ? 'publishing'
""")
_TAKE_AWAY = text("UPDATE night_runs SET figures = figures - 'publishing' WHERE run_id = ANY(:run_ids)")


class TaskGone(Exception):
    """The task's user is erased, or about to be: nothing was written."""


def hold_task(session: Session, task: NightTask) -> None:
    """Keep the task's row until the transaction ends.

    Raises:
        TaskGone: it must not be written for.
    """
    there = session.execute(
        select(NightTask.run_id)
        .where(
            NightTask.run_id == task.run_id,
            NightTask.user_id == task.user_id,
            NightTask.item_id == task.item_id,
            NightTask.user_id.not_in(select(Erasure.user_id).where(Erasure.completed_at.is_(None))),
        )
        .with_for_update(key_share=True)
    )
    if there.one_or_none() is None:
        raise TaskGone(f"{task.run_id}/{task.user_id}/{task.item_id}")


def drop_erased(session: Session, run_id: str, read_at: datetime | None) -> tuple[int, int]:
    """Delete a new plan's rows of users who were erased meanwhile, right before it is committed.

    `read_at`: when the plan's snapshot was taken, by the database's clock; None for the start of this transaction.

    Returns:
        How many tasks and skips went.
    """
    session.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": FENCE_LOCK})
    given = {"run_id": run_id, "read_at": read_at}
    tasks, skips, _ = (len(session.execute(statement, given).all()) for statement in _DROPS)
    return tasks, skips


def live_publishers(session: Session, *, end_dead: bool = True) -> set[str]:
    """Runs whose sets are being written at this moment.

    Claims of dead processes are taken away (`end_dead`).
    """
    led = is_led(session.connection(), "night")
    claimed = {run_id: led and is_leaders for run_id, is_leaders in session.execute(_CLAIMED)}
    dead = [run_id for run_id, lives in claimed.items() if not lives]
    if dead and end_dead:
        session.execute(_TAKE_AWAY, {"run_ids": dead})
    return {run_id for run_id, lives in claimed.items() if lives}


def check_claim(session: Session, run_id: str) -> None:
    """Refuse to go on when an erasure took our process for dead.

    Raises:
        LockHeld: the claim to publish was taken away; the run can be resumed.
    """
    held = session.scalar(
        text("SELECT figures ? 'publishing' FROM night_runs WHERE run_id = :run_id FOR SHARE"), {"run_id": run_id}
    )
    if not held:
        raise LockHeld(
            f"an erasure took the process of {run_id} for dead; nothing was published, `pigeon night resume`"
        )
