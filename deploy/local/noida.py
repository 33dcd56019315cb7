"""noida-db, the second broker of the ingest's tests: right where Tansu is wrong, and vice versa.

`pigeon up` never starts it: killed, it loses what it took in its last second.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import ClassVar

from deploy.local.process import Command
from deploy.local.server import LOCALHOST, Server, is_listening
from schemas.errors import InputError


class Noida(Server):
    """One broker, plain text."""

    name: ClassVar[str] = "noida"

    @property
    def address(self) -> str:
        return f"{LOCALHOST}:{self.ports['kafka']}"

    @property
    def executables(self) -> tuple[Path, ...]:
        spec = importlib.util.find_spec("noida_db")
        if spec is None or spec.origin is None:
            raise InputError("the tests' second broker is not installed: pip install 'pigeon-posters[dev]'")
        return (Path(spec.origin).parent / "noida-db",)

    def settings(self) -> dict[str, str]:
        return {"PIGEON_KAFKA__BOOTSTRAP_SERVERS": self.address}

    def command(self) -> Command:
        return Command(
            argv=[
                str(self.executables[0]),
                "start",
                *("--data-dir", str(self.folder)),
                *("--host", LOCALHOST),
                *("--only", "kafka"),
                *("--kafka-port", str(self.ports["kafka"])),
            ],
            folder=self.folder,
            log=self.log,
            environment={"PATH": os.defpath},
        )

    def answers(self) -> bool:
        return is_listening(self.ports["kafka"])
