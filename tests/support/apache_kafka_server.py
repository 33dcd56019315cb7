"""Apache Kafka itself (KRaft) from a folder of jars: the tests' third broker, alone or as three.

`pigeon up` never starts it: no package brings it. It needs Java 17 or newer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from deploy.local.process import Command, run_tool
from deploy.local.server import LOCALHOST, Server, is_listening
from deploy.local.state import Secrets, StateDir
from schemas.errors import InputError, ServerUnavailable

HOME_VARIABLE = "PIGEON_TEST_KAFKA_HOME"
"""Name of the variable with the folder in whose `libs` the jars are."""
OLDEST_JAVA = 17
JAVA_PACKAGE = "Debian: apt-get install openjdk-17-jre-headless"
_CLUSTER_ID = "pigeonTestKafka0000000"
_HEAP_MIB = 400


@dataclass(frozen=True)
class Node:
    """One broker of a cluster: its number, and the controllers' ports by number (its own among them)."""

    number: int = 1
    controllers: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What a broker has beside the plain one that everybody may use.

    listeners: name -> (protocol, port), beside the plain listener, which brokers also use among themselves.
    passwords: SCRAM-SHA-512 logins.
    properties: further lines of server.properties.
    java: further arguments of the virtual machine.
    """

    listeners: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    passwords: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    java: tuple[str, ...] = ()


class ApacheKafka(Server):
    """One broker that is its own controller, or one of several."""

    name: ClassVar[str] = "apache_kafka"

    def __init__(
        self,
        state: StateDir,
        ports: Mapping[str, int],
        secrets: Secrets,
        home: Path,
        node: Node | None = None,
        options: Options | None = None,
    ) -> None:
        """`ports` has `kafka` and `kafka_controller`; of a cluster's node the latter is what `node` says."""
        super().__init__(state, ports, secrets)
        self._home = home
        self._node = node or Node(1, {1: ports["kafka_controller"]})
        self._options = options or Options()

    @property
    def address(self) -> str:
        return f"{LOCALHOST}:{self.ports['kafka']}"

    @property
    def executables(self) -> tuple[Path, ...]:
        if not jars(self._home):
            raise InputError(f"{HOME_VARIABLE} {self._home}: no kafka_*.jar in its folder `libs`")
        return (java(),)

    def settings(self) -> dict[str, str]:
        return {"PIGEON_KAFKA__BOOTSTRAP_SERVERS": self.address}

    def prepare(self) -> str | None:
        super().prepare()
        self._config.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
        self._logging.write_text(_LOGGING)
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()
        return None

    def command(self) -> Command:
        return Command(
            argv=[*self._java(), "kafka.Kafka", str(self._config)],
            folder=self.folder,
            log=self.log,
            environment={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        )

    def answers(self) -> bool:
        return is_listening(self.ports["kafka"])

    @property
    def _config(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _logging(self) -> Path:
        return self.folder / "log4j2.properties"

    def _java(self) -> list[str]:
        return [
            str(self.executables[0]),
            "-Xms128m",
            f"-Xmx{_HEAP_MIB}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",  # the tests' brokers live for minutes: quick to compile, not to run
            f"-Dlog4j2.configurationFile={self._logging}",
            *self._options.java,
            *("-cp", str(self._home / "libs" / "*")),
        ]

    def _format(self) -> None:
        users = [
            argument
            for name, password in self._options.passwords.items()
            for argument in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]")
        ]
        code, output = run_tool(
            [
                *self._java(),
                *("kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER_ID),
                *("--config", str(self._config), *users),
            ],
            folder=self.folder,
        )
        if code:
            raise ServerUnavailable(f"apache kafka: its folder cannot be formatted: {output[-500:]}")

    def _properties(self) -> dict[str, str]:
        nodes, own = self._node.controllers, self._options.listeners
        plain = {"BROKER": ("PLAINTEXT", self.ports["kafka"])}
        listeners = [f"{name}://{LOCALHOST}:{port}" for name, (_, port) in {**plain, **own}.items()]
        protocols = [f"{name}:{protocol}" for name, (protocol, _) in {**plain, **own}.items()]
        replicas = str(len(nodes))
        enough = str(max(1, len(nodes) - 1))
        return {
            "process.roles": "broker,controller",
            "node.id": str(self._node.number),
            "controller.quorum.voters": ",".join(f"{n}@{LOCALHOST}:{port}" for n, port in nodes.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "BROKER",
            "listener.security.protocol.map": ",".join(["CONTROLLER:PLAINTEXT", *protocols]),
            "listeners": ",".join([*listeners, f"CONTROLLER://{LOCALHOST}:{nodes[self._node.number]}"]),
            "advertised.listeners": ",".join(listeners),
            "log.dirs": str(self.folder / "data"),
            "num.network.threads": "2",
            "num.io.threads": "4",
            "offsets.topic.num.partitions": "8",
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": enough,
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": enough,
            "default.replication.factor": replicas,
            "min.insync.replicas": enough,
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "500",  # of the tests' short sessions; Kafka's own is 6 s
            **self._options.properties,
        }


def jars(home: Path) -> list[Path]:
    """The broker's own jars in a folder; none when it is no folder of Apache Kafka."""
    return sorted((home / "libs").glob("kafka_*.jar"))


def version(home: Path) -> str:
    """The version of Apache Kafka in a folder, such as 4.3.1."""
    return next((jar.stem.rpartition("-")[2] for jar in jars(home)), "unknown")


def java() -> Path:
    """The Java of JAVA_HOME or PATH.

    Raises:
        InputError: there is none, or it is too old.
    """
    folder = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(folder) / "bin") if folder else None)
    if found is None:
        raise InputError(f"Apache Kafka needs Java {OLDEST_JAVA}: no java on PATH ({JAVA_PACKAGE})")
    told = subprocess.run([found, "-version"], check=False, capture_output=True, text=True, timeout=60)
    number = re.search(r'version "(\d+)', told.stderr + told.stdout)
    if number is None or int(number[1]) < OLDEST_JAVA:
        raise InputError(f"Apache Kafka needs Java {OLDEST_JAVA}: {found} is older ({JAVA_PACKAGE})")
    return Path(found).resolve()


_LOGGING = """\
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1} %m%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
"""
