"""Where each partition goes on, stored beside the rows, and the epoch that fences former owners.

A member *claims* a partition when Kafka assigns it: the row's epoch grows by one. Every batch *advances* the offset in the
rows' own transaction, and only if the epoch is still the member's own: a member that lost the partition without noticing
(a stall, a network cut) cannot write, however late it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kafka import TopicPartition
from psycopg2.extras import execute_values


class Claim(NamedTuple):
    """A partition that is ours from now on."""

    next_offset: int
    epoch: int
    topic_id: str | None  # of the topic that the offset counts in


class Fenced(Exception):
    """Other members own some of the batch's partitions now; nothing was written."""

    def __init__(self, partitions: Iterable[TopicPartition]) -> None:
        self.partitions = frozenset(partitions)
        super().__init__(", ".join(f"{tp.topic}-{tp.partition}" for tp in sorted(self.partitions)))


class AlreadyDurable(Exception):
    """Part of the batch is stored already: the connection was lost between COMMIT and its answer.

    Nothing was written now.
    """

    def __init__(self, partitions: Iterable[TopicPartition]) -> None:
        self.partitions = frozenset(partitions)
        super().__init__(", ".join(f"{tp.topic}-{tp.partition}" for tp in sorted(self.partitions)))


def claim(
    cursor: Any,
    group: str,
    owner: str,
    partitions: Mapping[TopicPartition, tuple[int, str | None]],
) -> dict[TopicPartition, Claim]:
    """Take partitions over, given the (offset, topic id) with which one that nobody owned yet begins."""
    rows = execute_values(
        cursor,
        """INSERT INTO consumer_offsets AS o (group_id, topic, partition, next_offset, owner, owner_epoch, topic_id)
           VALUES %s
           ON CONFLICT (group_id, topic, partition) DO UPDATE
           SET owner = EXCLUDED.owner, owner_epoch = o.owner_epoch + 1, updated_at = now(),
               topic_id = coalesce(o.topic_id, EXCLUDED.topic_id)
           RETURNING topic, partition, next_offset, owner_epoch, topic_id""",
        [
            (group, tp.topic, tp.partition, start, owner, 1, topic_id)
            for tp, (start, topic_id) in sorted(partitions.items())  # sorted, so that two members cannot deadlock
        ],
        fetch=True,
    )
    return {TopicPartition(t, p): Claim(offset, epoch, topic_id) for t, p, offset, epoch, topic_id in rows}


def restart(cursor: Any, group: str, tp: TopicPartition, epoch: int, offset: int, topic_id: str | None) -> None:
    """Set a partition that we own back to `offset`, because its topic was recreated.

    Raises:
        Fenced: another member owns it now.
    """
    cursor.execute(
        """UPDATE consumer_offsets SET next_offset = %s, topic_id = %s, updated_at = now()
           WHERE group_id = %s AND topic = %s AND partition = %s AND owner_epoch = %s""",
        (offset, topic_id, group, tp.topic, tp.partition, epoch),
    )
    if cursor.rowcount != 1:
        raise Fenced([tp])


def advance(
    cursor: Any,
    group: str,
    epochs: Mapping[TopicPartition, int],
    spans: Mapping[TopicPartition, tuple[int, int]],
) -> None:
    """Store the next offsets of a batch's `spans` (first, next); the last statement before COMMIT.

    Raises:
        Fenced: a partition's epoch is no longer ours.
        AlreadyDurable: a partition's stored offset is past the batch's first record.
    """
    cursor.execute(
        """SELECT topic, partition, next_offset, owner_epoch FROM consumer_offsets
           WHERE group_id = %s AND (topic, partition) IN %s ORDER BY topic, partition FOR UPDATE""",
        (group, tuple((tp.topic, tp.partition) for tp in spans)),
    )
    stored = {TopicPartition(t, p): (offset, epoch) for t, p, offset, epoch in cursor}
    fenced = [tp for tp in spans if tp not in stored or stored[tp][1] != epochs.get(tp)]
    if fenced:
        raise Fenced(fenced)
    durable = [tp for tp, (first, _) in spans.items() if stored[tp][0] > first]
    if durable:
        raise AlreadyDurable(durable)
    execute_values(
        cursor,
        """UPDATE consumer_offsets o SET next_offset = v.next_offset, updated_at = now()
           FROM (VALUES %s) AS v (group_id, topic, partition, next_offset)
           WHERE o.group_id = v.group_id AND o.topic = v.topic AND o.partition = v.partition""",
        [(group, tp.topic, tp.partition, following) for tp, (_, following) in spans.items()],
    )
