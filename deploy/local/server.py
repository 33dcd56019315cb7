"""What every embedded server has in common."""

from __future__ import annotations

import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from deploy.local.process import Command
from deploy.local.state import Secrets, StateDir

LOCALHOST = "127.0.0.1"


class Server(ABC):
    """One embedded server: how to prepare, start, probe and furnish it; the supervisor does the rest.

    `clean` and `prepare` run while nothing of the server runs; `answers` is asked until it is true; `furnish` runs once after.
    """

    name: ClassVar[str]
    needs: ClassVar[str | None] = None
    start_seconds: ClassVar[float] = 60.0
    stop_seconds: ClassVar[float] = 10.0

    def __init__(self, state: StateDir, ports: Mapping[str, int], secrets: Secrets) -> None:
        self.state = state
        self.ports = ports
        self.secrets = secrets

    @property
    def folder(self) -> Path:
        """Its data and the working directory of its processes, by which a process is recognised as ours."""
        return self.state.path / self.name

    @property
    def log(self) -> Path:
        return self.state.logs / f"{self.name}.log"

    @property
    @abstractmethod
    def address(self) -> str:
        """What a person would call its address."""

    @property
    @abstractmethod
    def executables(self) -> tuple[Path, ...]:
        """The programs its processes run.

        Raises:
            InputError: the wheel that holds them is not installed.
        """

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """PIGEON_* names and values that lead to it."""

    @abstractmethod
    def command(self) -> Command:
        """How to start it."""

    @abstractmethod
    def answers(self) -> bool:
        """One quick attempt to use it; False when it is not up yet."""

    def prepare(self) -> str | None:
        """Make what it needs on disk; a sentence when that was worth telling.

        Raises:
            PigeonError: that is not possible; the message says why.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return None

    def clean(self) -> None:
        """Remove what a killed run leaves behind, once none of its processes is left."""
        return None

    def furnish(self) -> str | None:
        """Make what a new installation must find in it; may return a few words for `up`'s line.

        Raises:
            ServerUnavailable: the server refuses or does not answer.
        """
        return None

    def resume(self) -> None:
        """After a restart: bring back what the server kept in memory only.

        Raises:
            ServerUnavailable: the server refuses or does not answer.
        """
        return None

    def purge(self) -> None:
        """Delete its data."""
        shutil.rmtree(self.folder, ignore_errors=True)


def is_listening(port: int) -> bool:
    """Whether something accepts connections on 127.0.0.1:port."""
    try:
        socket.create_connection((LOCALHOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True
