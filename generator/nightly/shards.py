"""Shards of a run: its pending tasks cut into ranges of neighbouring users, for workers to draw."""

from __future__ import annotations

from itertools import zip_longest

from sqlalchemy import text

from generator.nightly.ledger import Ledger, waits_out
from generator.nightly.rows import UserRange

# A shard is cut between users, so that none is in two shards.
_CUT = text("""
SELECT min(user_id) AS first FROM (
  SELECT user_id, sum(count(*)) OVER (ORDER BY user_id) - count(*) AS before
  FROM night_tasks WHERE run_id = :run_id AND status = 'pending' GROUP BY user_id
) users GROUP BY div(before, :tasks) ORDER BY first
""")


@waits_out
def cut(ledger: Ledger, run_id: str, tasks: int) -> list[UserRange]:
    """Ranges of users that have all pending tasks of the run, about `tasks` each, in the manifest's order.

    Raises:
        ServerUnavailable: Postgres is away.
    """
    with ledger.reading() as session:
        firsts = list(session.scalars(_CUT, {"run_id": run_id, "tasks": tasks}))
    return [UserRange(*ends) for ends in zip_longest(firsts, firsts[1:])]


def tasks_per_shard(pending: int, workers: int, most: int) -> int:
    """How many tasks a shard should have: a few shards for each worker, so that they end together."""
    return min(most, max(LEAST, -(-pending // (SHARDS_PER_WORKER * workers))))


LEAST = 16
"""Tasks below which a shard costs more than it brings."""
SHARDS_PER_WORKER = 4
