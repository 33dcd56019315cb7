"""Batches, the poison limit, outages, months: the parts of the write path that need no server."""

from __future__ import annotations

from datetime import date

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from consumers import partitions
from consumers.kafka.quirks import sendable_headers
from consumers.outage import Backoff, is_data_error, is_outage
from consumers.write.batch import Batch
from consumers.write.dead_letter_sender import PoisonLimit, headers_of
from consumers.write.decode import Decoded, Poison
from schemas.errors import PoisonLimitExceeded
from schemas.settings import ConsumerSettings

# A busy machine is no failure.
UNTIMED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
POISON = Poison("invalid", "field: why", "ValidationError", "stack")


def record(partition: int, offset: int, topic: str = "t") -> ConsumerRecord:
    return ConsumerRecord(
        topic, partition, 0, offset, 0, 0, b"k", b"v", [("own", b"1"), ("empty", None)], None, 0, 0, 0
    )


def batch_of(partitions_: list[int], limits: ConsumerSettings | None = None) -> Batch:
    batch = Batch(limits or ConsumerSettings())
    nexts: dict[int, int] = {}
    for p in partitions_:
        offset = nexts.get(p, 10 * p)
        nexts[p] = offset + 1
        batch.add(TopicPartition("t", p), [Decoded(record(p, offset), "t", ("row",), None, False)])
    return batch


@UNTIMED
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_halves_in_order_equal_the_whole(order):
    whole = batch_of(order)
    first, second = whole.halves()
    assert [*first.records, *second.records] == whole.records
    for part in (whole, first, second):
        assert part.lines.get("t", []) == [f"{place}\trow" for place in range(len(part))]
    for tp, (begin, end) in whole.spans.items():
        left, right = first.spans.get(tp), second.spans.get(tp)
        assert (left or right)[0] == begin
        assert (right or left)[1] == end
        if left and right:
            assert left[1] == right[0], "no gap and no overlap between the halves"


@UNTIMED
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.sets(st.integers(0, 3)))
def test_partitions_that_are_lost_leave_the_others_whole(order, lost):
    whole = batch_of(order)
    rest = whole.without({TopicPartition("t", p) for p in lost})
    assert rest.spans == {tp: span for tp, span in whole.spans.items() if tp.partition not in lost}


def test_a_batch_closes_on_count_and_on_bytes():
    counted = batch_of([0, 0], ConsumerSettings(batch_max_records=2, batch_max_seconds=1e6))
    assert (counted.room, counted.due_in) == (0, 0.0)
    heavy = batch_of([0] * 20, ConsumerSettings(batch_max_bytes=1_024, batch_max_seconds=1e6))
    assert (heavy.room, heavy.due_in) == (0, 0.0)
    assert Batch(ConsumerSettings()).due_in == float("inf")


def test_the_poison_limit_counts_a_window():
    limit = PoisonLimit(ConsumerSettings(dlq_max_count=10, dlq_max_share=1.0, dlq_window_seconds=60))
    limit.admit(1_000, 10, now=0.0)
    limit.admit(1_000, 10, now=61.0)  # the first ten are forgotten
    with pytest.raises(PoisonLimitExceeded, match="dlq_max_count"):
        limit.admit(1_000, 1, now=62.0)


def test_the_poison_share_needs_a_hundred_records():
    limit = PoisonLimit(ConsumerSettings(dlq_max_count=1_000, dlq_max_share=0.5))
    limit.admit(99, 99, now=0.0)
    with pytest.raises(PoisonLimitExceeded, match="dlq_max_share"):
        limit.admit(1, 1, now=1.0)


def test_a_dead_letter_says_where_it_came_from():
    headers = headers_of(Decoded(record(2, 77), "t", None, POISON, False))
    said = dict(headers)
    assert headers[:2] == [("own", b"1"), ("empty", b"")], "its own headers come first, untouched"
    assert said["pigeon-null-headers"] == b"empty"
    assert (said["pigeon-source-topic"], said["pigeon-source-partition"], said["pigeon-source-offset"]) == (
        b"t",
        b"2",
        b"77",
    )
    assert (said["pigeon-reason"], said["pigeon-detail"]) == (b"invalid", b"field: why")
    assert sendable_headers([("a", b"1")]) == [("a", b"1")]


class _Coded(psycopg2.Error):
    def __init__(self, code: str) -> None:
        super().__init__("made for the test")
        self.code = code

    @property
    def pgcode(self) -> str:
        return self.code


@pytest.mark.parametrize(
    ("code", "outage", "data"),
    [
        ("57P01", True, False),  # admin_shutdown
        ("57014", True, False),  # query_canceled, our statement_timeout
        ("25006", True, False),  # read_only_sql_transaction
        ("55P03", True, False),  # lock_not_available
        ("53100", True, False),  # disk_full
        ("40P01", True, False),  # deadlock_detected
        ("22P05", False, True),  # untranslatable_character
        ("23514", False, True),  # check_violation
        ("54000", False, True),  # program_limit_exceeded
        ("42P01", False, False),  # undefined_table: neither, the schema is not ours
    ],
)
def test_outages_and_bad_data_are_told_apart(code, outage, data):
    error = _Coded(code)
    assert (is_outage(error), is_data_error(error)) == (outage, data)


def test_a_lost_connection_is_an_outage():
    assert is_outage(psycopg2.OperationalError("server closed the connection unexpectedly"))
    assert is_outage(psycopg2.InterfaceError("connection already closed"))
    assert not is_outage(psycopg2.ProgrammingError("no such thing"))


def test_backoff_grows_to_its_ceiling_and_starts_over():
    backoff = Backoff(ceiling=5.0, first=1.0)
    delays = [backoff.next() for _ in range(6)]
    assert all(0.8 * bound <= delay <= bound for delay, bound in zip(delays, [1, 2, 4, 5, 5, 5], strict=True))
    backoff.reset()
    assert backoff.next() <= 1.0


@UNTIMED
@given(st.dates(date(1970, 1, 1), date(2190, 1, 1)), st.integers(-24, 24))
def test_months_are_added_like_a_calendar(day, count):
    moved = partitions.add_months(day, count)
    assert moved.day == 1
    assert (moved.year * 12 + moved.month) - (day.year * 12 + day.month) == count
    assert partitions.Span.of_month(moved).name == f"interactions_{moved.year}_{moved.month:02}"
