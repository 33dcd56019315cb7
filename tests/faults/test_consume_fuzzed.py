"""Whatever comes in is stored, a dead letter or a counted skip.

Nothing else ever happens, and nothing blocks.

Batches of mutated events, half-broken JSON and plain bytes go through decoding, the writer and Postgres; only Kafka is left out.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as examples
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from consumers.write.batch import Batch
from consumers.write.dead_letter_sender import headers_of
from consumers.write.decode import Decoded, Limits, decode
from consumers.write.letter_index import DeadLetter, IndexRow
from consumers.write.writer import Writer
from schemas.events import CATALOG, CONSUMED, DLQ_SUFFIX, ERASURE, FEEDBACK, INTERACTIONS, OBJECTION, RECOMMENDATIONS
from schemas.settings import Settings
from tests.support.consume_world import CASES, REPORT, SEED, query

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(300 + CASES)]
PER_BATCH = 40
LIMITS = Limits(max_event_bytes=4_096, max_future=timedelta(seconds=300))
TIME = "2026-11-01T00:00:00Z"
IDS = [str(uuid.UUID(int=number, version=4)) for number in range(30)]
GOOD: dict[str, dict[str, Any]] = {
    CATALOG: {"item_id": "i1", "title": "t", "genres": ["g"], "attributes": {"a": 1}, "occurred_at": TIME},
    INTERACTIONS: {
        "event_id": IDS[0],
        "user_id": "u1",
        "item_id": "i1",
        "kind": "click",
        "occurred_at": TIME,
        "context": {},
    },
    RECOMMENDATIONS: {"user_id": "u1", "item_ids": ["i1", "i2"], "occurred_at": TIME},
    FEEDBACK: {
        **{
            "event_id": IDS[0],
            "poster_id": "p",
            "user_id": "u1",
            "item_id": "i1",
            "action": "click",
            "occurred_at": TIME,
        },
        **{"position": 1, "surface": "s", "propensity": 0.5},
    },
    ERASURE: {"user_id": "u1", "occurred_at": TIME},
    OBJECTION: {"user_id": "u1", "objects": True, "occurred_at": TIME, "reason": "r"},
}

text = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["", "\x00", "\ud800", "\\.", "\\N", "a\tb\nc\rd", "\u2028", "x" * 300]
)
numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, 10**400, 1e-320, 1e-44, 1e308, -0.0])
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
times = st.datetimes(datetime(1969, 1, 1), datetime(2250, 1, 1)).map(lambda time: time.isoformat() + "Z")  # noqa: DTZ001
likely = {
    "event_id": st.sampled_from(IDS),
    "user_id": st.sampled_from(["u1", "u2", "u3"]),
    "item_id": st.sampled_from(["i1", "i2"]),
    "occurred_at": times,
}


@st.composite
def records(draw: st.DrawFn) -> tuple[str, bytes | None, bytes | None, int]:
    """(topic, key, value, timestamp in ms)."""
    topic = draw(st.sampled_from([INTERACTIONS, *CONSUMED]))
    event = dict(GOOD[topic])
    for name in sorted(draw(st.sets(st.sampled_from(sorted(event)), max_size=3))):
        event[name] = draw(likely[name] | values if name in likely else values)
    value: bytes | None = json.dumps(event).encode()
    assert value is not None
    match draw(st.integers(0, 11)):
        case 0:
            value = draw(st.none() | st.binary(max_size=60))
        case 1:
            value = value[: draw(st.integers(0, len(value)))]
        case 2:
            place = draw(st.integers(0, len(value) - 1))
            value = value[:place] + draw(st.binary(min_size=1, max_size=2)) + value[place + 1 :]
        case 3:
            depth = draw(st.sampled_from([5, 50, 150, 2_000]))
            value = b'{"more": ' + b"[" * depth + b"]" * depth + b", " + value[1:]
        case 4:
            value = value + b" " * draw(st.sampled_from([1, 5_000]))
    key = draw(st.none() | st.binary(max_size=8) | st.sampled_from([b"i1", b"u1"]))
    return topic, key, value, draw(st.sampled_from([-1, 0, 1_793_000_000_000, 2**62]))


class Sink:
    """Takes the place of the dead-letter topics."""

    def __init__(self) -> None:
        self.taken: list[Decoded] = []
        self.offset = -1

    def send(self, poison: list[Decoded]) -> list[IndexRow]:
        self.taken += poison
        return [IndexRow.of(self._letter(d)) for d in poison]

    def _letter(self, decoded: Decoded) -> DeadLetter:
        self.offset += 1
        record = decoded.record
        return DeadLetter(
            decoded.topic + DLQ_SUFFIX, "", 0, self.offset, record.key, record.value, (*headers_of(decoded),)
        )

    def close(self) -> None:
        """Nothing to let go of."""


class Mill:
    """The way of a record from its bytes to Postgres, and the account of it."""

    def __init__(self, settings: Settings) -> None:
        lenient = settings.consumer.model_copy(update={"dlq_max_count": 10**9, "dlq_max_share": 1.0})
        self.settings = settings.model_copy(update={"consumer": lenient})
        self.sink = Sink()
        self.writer = Writer(self.settings, owner="mill")
        self.writer._dead_letters = self.sink  # type: ignore[assignment]
        self.next = {TopicPartition(topic, 0): 0 for topic in CONSUMED}
        self.writer.claim(dict.fromkeys(self.next, (0, None)))
        self.records = 0

    def grind(self, given: list[tuple[str, bytes | None, bytes | None, int]]) -> None:
        batch = Batch(self.settings.consumer)
        for topic, key, value, timestamp in given:
            tp = TopicPartition(topic, 0)
            record = ConsumerRecord(topic, 0, 0, self.next[tp], timestamp, 0, key, value, [], None, 0, 0, 0)
            self.next[tp] += 1
            batch.add(tp, [decode(record, topic, LIMITS, datetime.now(UTC))])
        before = len(self.sink.taken)
        written = self.writer.write(batch)
        dead = len(self.sink.taken) - before
        stored = sum(written.rows.values())
        skipped = written.duplicates + written.stale + written.forgotten + written.unknown_tombstones
        assert stored + skipped + dead == len(given)
        assert dead == len(batch.poison), "what Postgres refused is in the batch's account as well"
        self.records += len(given)


@pytest.fixture
def mill(settings: Settings) -> Iterator[Mill]:
    made = Mill(settings)
    yield made
    made.writer.close()


def test_everything_is_stored_or_a_dead_letter_or_a_counted_skip(mill: Mill):
    """Fault 5: generated records, seeded; none is lost, none stops the others."""

    @seed(SEED)
    @examples(
        max_examples=max(8, CASES // PER_BATCH),
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a batch that failed has moved the offsets: shrinking would try another one
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(records(), min_size=PER_BATCH, max_size=PER_BATCH))
    def batches(given: list[tuple[str, bytes | None, bytes | None, int]]) -> None:
        mill.grind(given)

    batches()
    assert mill.records >= min(CASES, 320)
    offsets = dict(query(mill.settings, "SELECT topic, next_offset FROM consumer_offsets"))
    assert offsets == {tp.topic: offset for tp, offset in mill.next.items()}
    assert query(mill.settings, "SELECT count(*) FROM dead_letters") == [(len(mill.sink.taken),)], "each is indexed"
    poison = {d.poison.reason for d in mill.sink.taken if d.poison}
    assert {"bad_json", "invalid", "null_value", "too_large"} <= poison
    # Erasures among them may have emptied the table again, so what must be found in it is a click of somebody else.
    unharmed = {**GOOD[INTERACTIONS], "event_id": str(uuid.UUID(int=99, version=4)), "user_id": "after all that"}
    mill.grind([(INTERACTIONS, b"u", json.dumps(unharmed).encode(), -1)])
    ((stored,),) = query(mill.settings, "SELECT count(*) FROM interactions WHERE user_id = 'after all that'")
    assert stored == 1
    REPORT.append(f"fuzz to Postgres: seed {SEED}, {mill.records} records, {len(mill.sink.taken)} of them dead letters")


def test_a_row_that_only_postgres_refuses_is_a_dead_letter_too(mill: Mill):
    """Fault 5: what decoding lets pass and the table does not."""
    query(mill.settings, "ALTER TABLE interactions ADD CONSTRAINT no_seven CHECK (item_id <> 'i7')")
    good = GOOD[INTERACTIONS]
    events = [{**good, "event_id": IDS[n], "item_id": f"i{n}"} for n in range(20)]
    mill.grind([(INTERACTIONS, b"k", json.dumps(event).encode(), 0) for event in events])
    assert [(d.record.offset, d.poison.reason) for d in mill.sink.taken if d.poison] == [(7, "refused_by_database")]
    assert query(mill.settings, "SELECT count(*) FROM interactions") == [(19,)]
