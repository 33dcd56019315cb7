"""A user's history is the newest N items of what is known, whatever the order and batches it came in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as checked
from hypothesis import strategies as st

from consumers.write.rebuild import Rebuilt, rebuild
from schemas.events import CatalogItem, Erasure, Event, Interaction
from schemas.settings import DatabaseSettings, load_settings
from tests.support.ingest_world import POSITIVE, Tombstone, connect, store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]  # a hang ends, a busy machine does not fail
SIZE = 4
START = datetime(2026, 1, 30, tzinfo=UTC)  # the events lie on both sides of a month's end
# A busy machine is no failure; the database is emptied for each example.
UNTIMED = checked(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@dataclass
class Model:
    """What `user_histories` should hold, in plain Python: everything that is known, sorted when asked."""

    known: dict[UUID, Interaction] = field(default_factory=dict)
    erased: dict[str, datetime] = field(default_factory=dict)

    def take(self, batch: list[Event | Tombstone]) -> None:
        """A batch's erasures come first; a deleted item changes no history."""
        for event in batch:
            if isinstance(event, Erasure):
                self.erased[event.user_id] = max(event.occurred_at, self.erased.get(event.user_id, START))
        self.known = {i: e for i, e in self.known.items() if not self._forgotten(e)}
        for event in batch:
            if isinstance(event, Interaction) and not self._forgotten(event):
                self.known.setdefault(event.event_id, event)

    def _forgotten(self, event: Interaction) -> bool:
        return event.user_id in self.erased and event.occurred_at <= self.erased[event.user_id]

    def histories(self) -> dict[str, tuple[list[str], str]]:
        """User -> (event ids, fingerprint)."""
        newest: dict[str, dict[str, str]] = {}
        for event in sorted(self.known.values(), key=lambda e: (e.occurred_at, e.event_id.int), reverse=True):
            if event.kind in POSITIVE:
                newest.setdefault(event.user_id, {}).setdefault(event.item_id, str(event.event_id))
        histories = {user: list(items.values())[:SIZE] for user, items in newest.items()}
        return {
            user: (ids, hashlib.md5(",".join(ids).encode(), usedforsecurity=False).hexdigest())
            for user, ids in histories.items()
        }


def interaction(number: int, kind: str) -> Interaction:
    """The same number is the same event: one of three users, with many ties in time."""
    digest = hashlib.sha256(str(number).encode()).digest()
    return Interaction(
        event_id=UUID(bytes=digest[:16], version=4),
        user_id=f"u{digest[0] % 3}",
        item_id=f"i{digest[1] % 7}",
        kind=kind if number % 5 else "skip",
        occurred_at=START + timedelta(hours=6 * (digest[2] % 12), microseconds=digest[3] % 2),
    )


events = st.one_of(
    st.builds(lambda n: interaction(n, "click"), st.integers(0, 40)),
    st.builds(lambda n: interaction(n, "click"), st.integers(0, 40)),
    st.builds(lambda n: CatalogItem(item_id=f"i{n}", title="t"), st.integers(0, 3)),
    st.builds(lambda n: Tombstone(f"i{n}"), st.integers(0, 3)),
)
erasures = st.builds(
    lambda user, hours: Erasure(user_id=f"u{user}", occurred_at=START + timedelta(hours=hours)),
    st.integers(0, 2),
    st.integers(0, 80),
)


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    made = connect(DatabaseSettings.model_validate({"url": database_url}))
    yield made
    made.close()


def empty(connection: Any) -> None:
    with connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE interactions, user_histories, items, erasures")


def stored(connection: Any) -> dict[str, tuple[list[str], str]]:
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT user_id, entries, fingerprint, last_occurred_at FROM user_histories")
        found = {}
        for user, entries, fingerprint, last in cursor:
            assert datetime.fromisoformat(entries[0]["occurred_at"]) == last
            found[user] = ([entry["event_id"] for entry in entries], fingerprint)
        return found


@UNTIMED
@given(batches=st.lists(st.lists(st.one_of(events, events, events, erasures), max_size=12), max_size=6))
def test_any_batches_end_in_what_plain_python_says(connection: Any, batches: list[list[Event | Tombstone]]) -> None:
    empty(connection)
    model = Model()
    for batch in batches:
        store(connection, batch, SIZE)
        model.take(batch)
        assert stored(connection) == model.histories()
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT event_id::text FROM interactions")
        assert sorted(i for (i,) in cursor) == sorted(map(str, model.known)), "the log holds every event once"


@UNTIMED
@given(numbers=st.lists(st.integers(0, 40), max_size=40), cuts=st.lists(st.integers(1, 40)), order=st.randoms())
def test_order_and_batches_change_nothing(connection: Any, numbers: list[int], cuts: list[int], order: Any) -> None:
    first = [interaction(number, "like") for number in numbers]
    again = [*first, *first[::2]]
    order.shuffle(again)
    outcomes = []
    for sequence in (first, again):
        empty(connection)
        at = 0
        for cut in [*cuts, len(sequence)]:
            store(connection, sequence[at : at + cut], SIZE)
            at += cut
        outcomes.append(stored(connection))
    assert outcomes[0] == outcomes[1]


def test_an_event_that_the_log_has_lost_enters_the_history_once(connection: Any) -> None:
    """Retention drops months of the log and not of the histories; then the topic is read from its start."""
    sent = [interaction(number, "click") for number in range(1, 30)]
    store(connection, sent, SIZE)
    before = stored(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT user_id, interaction_count FROM user_histories")
        counted = dict(cursor.fetchall())
        cursor.execute("DROP TABLE interactions_2026_01, interactions_2026_02")
    again = store(
        connection, [e for e in sent if str(e.event_id) in {i for ids, _ in before.values() for i in ids}], SIZE
    )
    assert again.partitions_made > 0
    assert stored(connection) == before
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT user_id, interaction_count FROM user_histories")
        assert dict(cursor.fetchall()) == counted


def test_a_retry_with_a_new_time_is_the_same_event(connection: Any) -> None:
    event = interaction(1, "click")
    late = event.model_copy(update={"occurred_at": event.occurred_at + timedelta(days=5)})
    ahead = event.model_copy(
        update={"event_id": UUID(int=7, version=4), "occurred_at": datetime(2150, 1, 1, tzinfo=UTC)}
    )
    store(connection, [event, ahead], SIZE)
    with connection, connection.cursor() as cursor:  # as if it had come in long ago
        cursor.execute("UPDATE interactions SET occurred_at = %s WHERE claimed_at IS NOT NULL", (event.occurred_at,))
    assert store(connection, [late, ahead, late], SIZE).duplicates == 3


def click(number: int, item: str, kind: str = "click") -> Interaction:
    return Interaction(
        event_id=UUID(int=number, version=4),
        user_id="u",
        item_id=item,
        kind=kind,
        occurred_at=START + timedelta(minutes=number),
    )


def items_of(connection: Any) -> list[str]:
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT entries FROM user_histories WHERE user_id = 'u'")
        ((entries,),) = cursor
        return [entry["item_id"] for entry in entries]


@pytest.mark.parametrize("at_once", [True, False])
def test_many_plays_of_one_item_evict_no_others(connection: Any, at_once: bool) -> None:
    """FLAWS F23: fifty plays of one item were a whole history."""
    events = [*(click(n, f"i{n}") for n in range(3)), *(click(n, "serial", "like") for n in range(3, 53))]
    for batch in [events] if at_once else [[event] for event in events]:
        store(connection, batch, SIZE)
    assert items_of(connection) == ["serial", "i2", "i1", "i0"]
    store(connection, [click(60, "i1")], SIZE)
    assert items_of(connection) == ["i1", "serial", "i2", "i0"]
    store(connection, [click(61, "i9")], SIZE)
    assert items_of(connection) == ["i9", "i1", "serial", "i2"]
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT interaction_count FROM user_histories")
        assert cursor.fetchall() == [(55,)]


def test_histories_of_an_earlier_release_are_made_again_from_the_log(connection: Any, database_url: str) -> None:
    """By the rule of before the newest interactions had evicted other items; what the log lost stays."""
    events = [*(click(n, f"i{n}") for n in range(3)), *(click(n, "serial") for n in range(3, 10))]
    store(connection, events, SIZE)
    store(connection, [event.model_copy(update={"user_id": "v", "event_id": uuid4()}) for event in events], SIZE)
    before = stored(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            """UPDATE user_histories SET fingerprint = 'of before', entries = (
                 SELECT jsonb_agg(jsonb_build_object('event_id', event_id, 'item_id', item_id, 'kind', kind,
                                                     'occurred_at', occurred_at) ORDER BY occurred_at DESC)
                 FROM (SELECT * FROM interactions WHERE user_id = 'u' ORDER BY occurred_at DESC LIMIT %s) AS i)
               WHERE user_id = 'u'""",
            (SIZE,),
        )
        cursor.execute("DELETE FROM interactions WHERE user_id = 'v' OR item_id = 'serial'")
    settings = load_settings(
        database={"url": database_url}, consumer={"history_size": SIZE, "positive_kinds": POSITIVE}
    )
    assert items_of(connection) == ["serial"] * SIZE
    assert rebuild(settings) == Rebuilt(users=2, changed=1)
    assert stored(connection) == before
    assert rebuild(settings) == Rebuilt(users=2, changed=0)


def test_two_members_with_events_of_the_same_user(database_url: str, connection: Any) -> None:
    """Neither overwrites what the other has merged: the row is locked before it is read."""

    def write(mine: int) -> None:
        own = connect(DatabaseSettings.model_validate({"url": database_url}))
        for number in range(mine, 60, 2):
            store(own, [interaction(number, "click")], SIZE)
        own.close()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write, n) for n in (0, 1)]:
            done.result(300)
    model = Model()
    model.take([interaction(number, "click") for number in range(60)])
    assert stored(connection) == model.histories()
