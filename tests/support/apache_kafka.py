"""Apache Kafka for the tests, from the folder that PIGEON_TEST_KAFKA_HOME names.

Where no such folder is known, what needs it does not run, and the summary of the tests says so.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.ports import choose
from deploy.local.process import Child
from deploy.local.state import Secrets, StateDir
from tests.support.apache_kafka_server import HOME_VARIABLE, ApacheKafka, Node, Options, jars

HOME = Path(os.environ[HOME_VARIABLE]) if os.environ.get(HOME_VARIABLE) else None
WITHOUT = f"Apache Kafka: {HOME_VARIABLE} names no folder of it"
needs_apache = pytest.mark.skipif(HOME is None or not jars(HOME), reason=WITHOUT)
BROKERS = ["tansu", "noida", pytest.param("apache", marks=needs_apache)]
"""The brokers that the ingest's tests run on."""
START_SECONDS = 120.0


class ApacheBroker:
    """One broker as a child of the test run; can be killed, stopped and started again on the same data."""

    def __init__(self, server: ApacheKafka) -> None:
        server.state.make()
        self.server = server
        server.prepare()
        self.begin()

    @property
    def address(self) -> str:
        return self.server.address

    def begin(self) -> None:
        """Start it, without waiting until it answers."""
        self._child = Child(self.server.command())

    def await_start(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while not self.server.answers():
            assert time.monotonic() < deadline, self.server.log.read_text()[-2_000:]
            assert self._child.exit_code() is None, self.server.log.read_text()[-2_000:]
            time.sleep(0.05)

    def start(self) -> None:
        self.begin()
        self.await_start()

    def kill(self) -> None:
        self._child.kill()

    def stop(self) -> None:
        """Ask it to end, as a rolling restart does: it hands its partitions over first."""
        self._child.ask_to_stop()
        assert self._child.wait(60), "the broker did not end"

    def freeze(self) -> None:
        """Stop its clock: connections stay open, nothing answers."""
        self._child.identity.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._child.identity.signal(signal.SIGCONT)


class ApacheCluster:
    """Three brokers, each also a controller."""

    def __init__(self, folder: Path) -> None:
        assert HOME
        free = list(choose(folder).values())
        controllers = {number: free[number + 2] for number in (1, 2, 3)}
        quick = Options(
            properties={
                # A broker that went away is noticed after 6 s; the controllers' votes, too, do not wait for longer.
                "broker.session.timeout.ms": "6000",
                "controller.quorum.fetch.timeout.ms": "2000",
                "controller.quorum.election.timeout.ms": "1000",
                "replica.lag.time.max.ms": "6000",
            }
        )
        self.brokers = [
            ApacheBroker(
                ApacheKafka(
                    StateDir(folder / str(number)),
                    {"kafka": free[number - 1], "kafka_controller": controllers[number]},
                    Secrets.new(),
                    HOME,
                    Node(number, controllers),
                    quick,
                )
            )
            for number in controllers
        ]
        for broker in self.brokers:
            broker.await_start()

    @property
    def addresses(self) -> str:
        return ",".join(broker.address for broker in self.brokers)

    def by_number(self, number: int) -> ApacheBroker:
        return self.brokers[number - 1]

    def kill(self) -> None:
        for broker in self.brokers:
            broker.thaw()
            broker.kill()


def one_broker(folder: Path, options: Callable[[list[int]], Options] | None = None) -> ApacheBroker:
    """A broker on free ports; `options` is given further free ones."""
    assert HOME
    free = list(choose(folder).values())
    ports = {"kafka": free[0], "kafka_controller": free[1]}
    made = options(free[2:]) if options else None
    broker = ApacheBroker(ApacheKafka(StateDir(folder), ports, Secrets.new(), HOME, options=made))
    broker.await_start()
    return broker
