"""Faults 1 to 3: consumers killed, stopped and slow at named points, in seeded rounds.

On all three brokers.

Checked by history: the producer's acknowledgements say which event is at which offset; after every kill exactly the events
below the stored offsets are in the table, and at the end all of them, once, in the right histories.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from consumers import metrics
from consumers.loop.ingest import Ingest
from schemas import faultpoints
from schemas.events import INTERACTIONS
from schemas.settings import Settings
from tests.support.apache_kafka import BROKERS
from tests.support.consume_world import POINTS, REPORT, ROUNDS, SEED, Ledger, Victim, changed, consume, events

pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.timeout(300 + 60 * ROUNDS),
]  # a hang ends, a busy machine does not fail
GROUPS = BROKERS[1:]  # where two members share a group's partitions


def broker(settings: Settings) -> str:
    """The broker's, for the report."""
    if settings.kafka.topic_prefix.startswith("apache."):
        return "Apache Kafka"
    return "noida-db" if settings.kafka.group_instance_id else "tansu"


@pytest.fixture
def at_points() -> Iterator[None]:
    yield
    faultpoints.handler = None


@pytest.mark.parametrize("point", POINTS)
def test_fault_1_killed_at_a_point_of_the_write(quick: Settings, point: str):
    """Fault 1."""
    chance = random.Random(f"{SEED} {point}")
    ledger = Ledger(quick)
    kills = 0
    for _ in range(2 * ROUNDS):
        ledger.send_mixed(chance, 36)
        number = 1 if point in ("claimed", "dead_letters_sent") else chance.choice([1, 2, 3])
        with Victim(quick, point, number, until_idle=0.3) as victim:
            code = victim.ended()
        assert code in (0, -signal.SIGKILL), f"after {kills} kills"
        ledger.check()
        kills += code == -signal.SIGKILL
        if kills == ROUNDS:
            break
    assert kills == ROUNDS, "the kills that hit"
    consume(quick)
    ledger.check_end()
    REPORT.append(
        f"1 {point} on {broker(quick)}: seed {SEED}, {kills} kills, {len(ledger.at)} records, each accounted for once"
    )


@pytest.mark.parametrize("point", ["staged", "before_commit"])
def test_fault_2_the_late_write_of_a_former_owner_is_refused(quick: Settings, point: str):
    """Fault 2: the old owner wakes after another has taken the partition over."""
    chance = random.Random(f"{SEED} late {point}")
    ledger = Ledger(quick)
    for number in range(ROUNDS):
        ledger.send_mixed(chance, 36, poison=0)
        # Claiming reaches before_commit as well: from its second time on it is a write.
        with Victim(quick, point, chance.choice([2, 3]), "SIGSTOP") as zombie:
            assert zombie.stopped(), f"round {number}: it stopped itself in the middle of a write"
            before = ledger.check()
            assert before < len(ledger.at), "a write is under way"
            assert consume(quick).records == len(ledger.at) - before
            zombie.goes_on()
            zombie.told(lambda records, refused, rebalances: refused > 0)  # or it ended, put out by the broker
            ledger.check_end()
    REPORT.append(f"2 {point} on {broker(quick)}: seed {SEED}, {ROUNDS} late writes refused, {len(ledger.at)} records")


def test_fault_2_the_former_owner_comes_back_as_a_member_like_any_other(quick: Settings):
    """Fault 2: refused, it joins again."""
    chance = random.Random(SEED)
    ledger = Ledger(quick)
    ledger.send(events(chance, 60))
    with Victim(quick, "staged", 2, "SIGSTOP") as zombie:
        assert zombie.stopped()
        if not quick.kafka.group_instance_id:  # a static member that was replaced may not come back
            consume(quick)
        zombie.goes_on()
        ledger.send(events(chance, 40))
        deadline = time.monotonic() + 200
        while ledger.check() < len(ledger.at):
            assert time.monotonic() < deadline, "the former owner did not come back"
            time.sleep(0.2)
        zombie.process.terminate()
        assert zombie.ended() == 0
    ledger.check_end()


@pytest.mark.parametrize(
    "quick", GROUPS, indirect=True
)  # with Tansu a second member gets nothing while the first one lives
@pytest.mark.parametrize("rebalance", ["eager", "cooperative"])
def test_fault_2_two_members_come_and_go_and_nothing_is_lost_or_doubled(quick: Settings, rebalance: str):
    """Fault 2: rebalances in the middle of batches, with kills."""
    chance = random.Random(f"{SEED} two")
    quick = changed(quick, "kafka", rebalance=rebalance)
    ledger = Ledger(quick)
    rounds = max(3, ROUNDS // 4)
    with contextlib.ExitStack() as members:

        def begin(name: str) -> Victim:
            """A member that kills itself somewhere in its first batches, or lives on."""
            point, number = chance.choice(POINTS), chance.choice([1, 2, 3, 10_000])
            own = changed(quick, "kafka", group_instance_id=name)
            return members.enter_context(Victim(own, point, number))

        running = {name: begin(name) for name in ("one", "two")}
        deaths = 0
        for _ in range(rounds):
            ledger.send_mixed(chance, 48)
            loser = chance.choice(sorted(running))
            running[loser].process.join(2 * chance.random())  # it may have done it itself
            deaths += 1
            running[loser].process.kill()
            assert running[loser].ended() == -signal.SIGKILL
            running[loser] = begin(loser)
            ledger.check()
        deadline = time.monotonic() + 400
        while ledger.check() < len(ledger.at):
            assert time.monotonic() < deadline, "the members that are left did not read the rest"
            for name, member in running.items():
                if not member.process.is_alive():
                    assert member.ended() == -signal.SIGKILL
                    running[name] = begin(name)
                    deaths += 1
            time.sleep(0.2)
    ledger.check_end()
    REPORT.append(
        f"2 two {rebalance} members on {broker(quick)}: seed {SEED}, {deaths} deaths, {len(ledger.at)} records, "
        "each accounted for once"
    )


@pytest.mark.parametrize("quick", GROUPS, indirect=True)
def test_fault_2_a_cooperative_member_keeps_what_stays_its_own_when_another_comes(quick: Settings):
    """Fault 2: a cooperative rebalance."""
    chance = random.Random(f"{SEED} cooperative")
    quick = changed(quick, "kafka", rebalance="cooperative")
    ledger = Ledger(quick)
    ledger.send(events(chance, 40))
    assignments: list[float] = []

    def reads(count: int) -> Callable[[float, float, float], bool]:
        def enough(records: float, refused: float, rebalances: float) -> bool:
            assignments.append(rebalances)
            return records >= count

        return enough

    with (
        Victim(changed(quick, "kafka", group_instance_id="stays")) as stays,
        contextlib.ExitStack() as later,
    ):
        assert stays.told(reads(40))
        comes = later.enter_context(Victim(changed(quick, "kafka", group_instance_id="comes")))
        assert comes.told(lambda records, refused, rebalances: rebalances >= 1), "it was given partitions"
        ledger.send(events(chance, 80))
        assert stays.told(reads(41)), "both read on"
        deadline = time.monotonic() + 200
        while ledger.check() < len(ledger.at):
            assert time.monotonic() < deadline, "the two did not read it all"
            time.sleep(0.1)
    assert max(assignments) == 1, "the member that stayed was assigned its partitions once"
    ledger.check_end()


@pytest.mark.parametrize("quick", BROKERS, indirect=True)
def test_a_cooperative_member_alone_reads_all_and_ends_when_idle(quick: Settings):
    """Fault 2: a cooperative group of one."""
    quick = changed(quick, "kafka", rebalance="cooperative")
    ledger = Ledger(quick)
    ledger.send_mixed(random.Random(SEED), 40)
    consume(quick)
    ledger.check_end()


def test_fault_3_a_member_slower_than_max_poll_interval_leaves_rejoins_and_loses_nothing(quick: Settings):
    """Fault 3: the member stands still."""
    chance = random.Random(f"{SEED} slow")
    slow = changed(quick, "kafka", max_poll_interval_ms=1_500)
    ledger = Ledger(slow)
    for _ in range(ROUNDS):
        ledger.send_mixed(chance, 36)
        # The point of the loop's own thread: nothing is polled meanwhile.
        with Victim(slow, "after_kafka_commit", chance.choice([1, 2]), "sleep") as victim:
            assert victim.told(lambda records, refused, rebalances: rebalances >= 2), (
                "it was put out and has joined again"
            )
            victim.process.kill()
            assert victim.ended() == -signal.SIGKILL
        ledger.check()
    consume(slow)
    ledger.check_end()
    REPORT.append(
        f"3 on {broker(quick)}: seed {SEED}, {ROUNDS} members put out, back and killed, {len(ledger.at)} records"
    )


@pytest.mark.usefixtures("at_points")
def test_fault_3_a_slow_write_does_not_keep_the_loop_from_polling(quick: Settings):
    """Fault 3: only its write is slow."""
    ledger = Ledger(quick)
    ledger.send(events(random.Random(SEED), 50))
    slow = changed(quick, "kafka", max_poll_interval_ms=1_500)
    held = threading.Event()

    def hold(point: str) -> None:
        if point == "staged" and not held.is_set():
            held.set()
            time.sleep(1.9)  # the fault itself; the transaction's own timeout is 2 s

    faultpoints.handler = hold
    before = metrics.REBALANCES._value.get()
    consume(slow)
    assert held.is_set()
    assert metrics.REBALANCES._value.get() == before + 1, "polling went on meanwhile: the member was never put out"
    ledger.check_end()


@pytest.mark.usefixtures("at_points")
def test_a_stop_keeps_its_deadline_when_the_write_hangs(quick: Settings):
    """Fault 3: asked to stop while the write hangs."""
    ledger = Ledger(quick)
    ledger.send(events(random.Random(SEED), 60))
    hanging, release = threading.Event(), threading.Event()

    def hang(point: str) -> None:
        if point == "staged" and not hanging.is_set():
            hanging.set()
            release.wait(60)

    faultpoints.handler = hang
    short = changed(quick, "consumer", stop_deadline_seconds=0.5)
    ingest = Ingest(short, [INTERACTIONS], progress=lambda *_: ingest.stop() if hanging.is_set() else None)
    assert ingest.run().records == 0
    assert hanging.is_set()
    assert not release.is_set(), "it did not wait for the write"
    release.set()
    consume(quick)
    ledger.check_end()
