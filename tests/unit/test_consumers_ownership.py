"""What a member does when partitions are taken, fenced, cut or recreated, without servers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition, errors

from consumers import metrics
from consumers.kafka import clients, quirks
from consumers.loop import ownership
from consumers.loop.assignment import Assignments
from consumers.loop.ingest import Ingest
from consumers.loop.ownership import Ownership
from consumers.write.offsets import Claim
from schemas.errors import InputError, Refused
from schemas.events import INTERACTIONS
from schemas.settings import ConsumerSettings, KafkaSettings, Settings

TP = TopicPartition("t", 0)
OTHER = TopicPartition("t", 1)


class Consumer:
    """As much of kafka-python's consumer as ownership needs."""

    def __init__(self, *assigned: TopicPartition) -> None:
        self.assigned = set(assigned)
        self.ends: dict[TopicPartition, int | None] = {}
        self.paused: set[TopicPartition] = set()
        self.position: dict[TopicPartition, int] = {}
        self._subscription = SimpleNamespace(assignment={tp: SimpleNamespace(highwater=None) for tp in assigned})

    def assignment(self) -> set[TopicPartition]:
        return set(self.assigned)

    def highwater(self, tp: TopicPartition) -> int | None:
        return self.ends.get(tp)

    def pause(self, *partitions: TopicPartition) -> None:
        assert set(partitions) <= self.assigned
        self.paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused -= set(partitions)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.position[tp] = offset


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(ownership, "time", made)
    return made


def owned_by(consumer: Consumer, policy: str = "stop", **next_offsets: int) -> Ownership:
    settings = Settings.model_validate({"consumer": {"on_topic_recreated": policy}})
    writer: Any = SimpleNamespace(claim=lambda begin: {tp: Claim(5, 1, "id-1") for tp in begin})
    owned = Ownership(settings, consumer, writer)
    owned.note_assigned(consumer.assigned)
    owned.note_joined(consumer.assigned)
    for tp in consumer.assigned:
        owned._begin(tp, 5)
        owned._identity[tp] = "id-1"
    owned._unclaimed.clear()
    return owned


def test_a_fenced_partition_is_claimed_again_only_if_the_group_still_gives_it_to_us():
    consumer = Consumer(TP, OTHER)
    owned = owned_by(consumer)
    consumer.assigned = {TP}  # a rebalance took the other one while the write was under way
    owned.give_up({TP, OTHER}, claim_at=10.0)
    assert owned.next_offset(TP) is owned.next_offset(OTHER) is None
    assert owned._unclaimed == {TP: 10.0}
    assert owned.claim(9.0) is None
    assert owned.claim(10.0) is not None
    owned.give_up({TP})
    owned.note_joined(())
    assert owned.settled, "nothing of ours is waited for"


def test_an_end_before_our_offset_is_believed_when_it_lasts(clock: Clock):
    consumer = Consumer(TP)
    owned = owned_by(consumer)
    consumer.ends[TP] = 3
    owned.verify()
    assert not owned.settled, "a run until idle does not end in doubt"
    consumer.ends[TP] = 5  # the new leader has caught up
    clock.now += ownership.CUT_SECONDS
    owned.verify()
    consumer.ends[TP] = 3
    owned.verify()
    clock.now += ownership.CUT_SECONDS
    with pytest.raises(Refused, match="ends at 3, before our offset 5"):
        owned.verify()


def test_an_end_from_before_others_read_on_is_forgotten():
    consumer = Consumer(TP)
    owned = owned_by(consumer)
    state = consumer._subscription.assignment[TP]
    state.highwater = consumer.ends[TP] = 9
    owned._begin(TP, 9)
    assert state.highwater == 9
    owned._begin(TP, 12)
    assert state.highwater is None


@pytest.mark.parametrize("kind", [errors.OffsetOutOfRangeError, errors.LogTruncationError])
def test_what_the_broker_says_of_a_lost_position_is_heard(kind: type[Exception]):
    """LogTruncation is what Apache Kafka says after an unclean election; no broker of the tests can."""
    consumer = Consumer(TP)
    ingest = Ingest(Settings(), [INTERACTIONS])
    ingest._owned = owned_by(consumer)

    def poll(**_: Any) -> None:
        raise kind({TP: 5, OTHER: 7})

    ingest._consumer = SimpleNamespace(poll=poll)
    with pytest.raises(Refused, match="does not have our offset 5"):
        ingest._poll()


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        (errors.TopicAuthorizationFailedError({"t"}), "sasl_username"),
        (errors.InconsistentGroupProtocolError(), "rebalance: other members of the group have another"),
        (errors.FencedInstanceIdError(), "group_instance_id"),
    ],
)
def test_what_the_broker_refuses_for_good_is_not_waited_for(error: Exception, setting: str):
    ingest = Ingest(Settings(), [INTERACTIONS])
    ingest._owned = owned_by(Consumer(TP))

    def poll(**_: Any) -> None:
        raise error

    ingest._consumer = SimpleNamespace(poll=poll)
    with pytest.raises(InputError, match=rf"^kafka\.{setting}") as refused:
        ingest._poll()
    assert refused.value.exit_code == 2


def test_another_id_is_noticed_while_running_and_at_once_after_an_outage(monkeypatch: pytest.MonkeyPatch):
    ids = {"t": "id-1"}
    monkeypatch.setattr(clients, "admin", lambda settings: None)
    monkeypatch.setattr(clients, "topic_ids", lambda admin, topics: dict(ids))
    owned = owned_by(Consumer(TP), policy="restart")

    def identify(now: float) -> bool:
        job = owned.identify(now)
        if job is None:
            return False
        work, settle = job
        settle(work())
        return True

    assert identify(100.0)
    assert not identify(101.0)
    owned.identify_soon()
    ids["t"] = "id-2"
    assert identify(102.0)
    assert owned.restarting
    assert owned.next_offset(TP) is None, "nothing is read of it until its offset is set back"


def member(monkeypatch: pytest.MonkeyPatch, **kafka: Any) -> tuple[Assignments, list[str]]:
    """What a group's decisions become, and what was asked of the group."""
    asked: list[str] = []
    consumer = Consumer(TP, OTHER)
    consumer._coordinator = SimpleNamespace(request_rejoin=lambda: asked.append("join"))  # type: ignore[attr-defined]
    monkeypatch.setattr(clients, "consumer", lambda *_, **__: consumer)
    return Assignments(KafkaSettings(**kafka), ConsumerSettings()), asked


def test_a_revocation_asks_for_the_join_that_follows_it(monkeypatch: pytest.MonkeyPatch):
    """Seen with kafka-python 3.0.12 on every broker: else a join that outlasts one poll is forgotten."""
    assignments, asked = member(monkeypatch)
    assignments.on_partitions_revoked({TP})
    assert asked == ["join"]
    assert list(assignments.changes()) == [("revoked", frozenset({TP}))]


def test_an_eager_group_gives_all_partitions_again_each_time(monkeypatch: pytest.MonkeyPatch):
    assignments, _ = member(monkeypatch)
    assignments.on_partitions_assigned([TP, OTHER])
    both = frozenset({TP, OTHER})
    assert list(assignments.changes()) == [("assigned", both), ("given", both)]
    assert assignments.consumer.paused == both, "until they are claimed"


def test_a_cooperative_join_that_brings_nothing_new_is_heard_of(monkeypatch: pytest.MonkeyPatch):
    """kafka-python calls the listener for what is new only.

    And nothing would ever say that the group has spoken.
    """
    assignments, asked = member(monkeypatch, rebalance="cooperative")
    assignor = quirks.Cooperative(assignments)
    assignor.metadata({"t"})
    assert asked == ["join"], "a join that outlasts one poll is not forgotten"
    assignor.on_assignment(SimpleNamespace(partitions=lambda: [TP]), 1)
    assert list(assignments.changes()) == [("given", frozenset({TP}))]
    assignments.on_partitions_assigned([OTHER])
    assert list(assignments.changes()) == [("assigned", frozenset({OTHER}))]


def test_a_member_is_settled_when_all_that_it_was_given_is_being_read():
    consumer = Consumer(TP, OTHER)
    owned = Ownership(Settings(), consumer, SimpleNamespace())  # type: ignore[arg-type]
    assert not owned.settled, "the group has not spoken"
    owned.note_joined(())
    assert owned.settled, "a member may be given nothing"
    owned.note_joined({TP})
    assert not owned.settled
    owned._begin(TP, 5)
    assert owned.settled


def test_the_lag_of_a_partition_that_was_given_up_is_nobodys():
    """F20: a gauge that stays would be another member's lag twice."""
    consumer = Consumer(TP, OTHER)
    owned = owned_by(consumer)
    consumer.ends = {TP: 9, OTHER: 7}
    assert owned.lag() == (6, True)
    assert lags() == {0.0: 4.0, 1.0: 2.0}
    owned.give_up({TP})
    assert lags() == {1.0: 2.0}
    owned.give_up({TP, OTHER})
    assert lags() == {}


def lags() -> dict[float, float]:
    """What the gauge tells of topic "t", by partition."""
    (family,) = metrics.LAG_RECORDS.collect()
    return {float(one.labels["partition"]): one.value for one in family.samples if one.labels["topic"] == TP.topic}
