"""The folder of a simulation: its plan, and the result of each arm as soon as there is one.

plan.json                          the options; a folder goes on with the same ones only, but for more seeds, strengths and arms
runs/<strength>-<seed>-<arm>.json  one arm in one world; written whole, so that a killed run leaves no half of one
figures.json, table.md, plot.svg   what is made of all of them
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from generator.feedback.simulation.arms import ARMS, ArmResult
from schemas.errors import InputError

MAY_GROW = ("seeds", "strengths", "arms")
"""Options that a folder may go on with others of: each world and arm is by itself."""


@dataclass(frozen=True)
class Plan:
    """The options of a simulation."""

    mode: str
    nights: int
    retrains: int
    seeds: tuple[int, ...]
    strengths: tuple[float, ...]
    arms: tuple[str, ...]
    users: int
    showings: int
    items: int
    settings: dict[str, Any]
    """Settings of the product that decide what is shown and learned."""

    def keys(self) -> Iterator[Key]:
        """What is to be run, all arms of a world together."""
        for seed in self.seeds:
            for strength in self.strengths:
                for arm in ARMS:
                    if arm in self.arms:
                        yield Key(strength, seed, arm)


@dataclass(frozen=True)
class Key:
    """An arm in a world."""

    strength: float
    seed: int
    arm: str

    @property
    def file_name(self) -> str:
        """Where its result is."""
        return f"{self.strength:g}-{self.seed}-{self.arm}.json"


class Store:
    """A simulation's folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Create the folder, or go on with it.

        Raises:
            InputError: it holds a simulation with other options; the message names them.
        """
        self.folder = folder
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(asdict(plan)))
        path = folder / "plan.json"
        if path.exists():
            _check_same(json.loads(path.read_text(encoding="utf-8")), wanted, folder)
        else:
            write_whole(path, json.dumps(wanted, indent=1) + "\n")

    def get(self, key: Key) -> ArmResult | None:
        """A result of an earlier run; None where there is none."""
        path = self.folder / "runs" / key.file_name
        return ArmResult(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def put(self, key: Key, result: ArmResult) -> None:
        """Keep a result."""
        write_whole(self.folder / "runs" / key.file_name, json.dumps(asdict(result)) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never there in part."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _check_same(known: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    differ = [
        f"{name}: {known.get(name)} there, {wanted[name]} now"
        for name in wanted
        if name not in MAY_GROW and known.get(name) != wanted[name]
    ]
    if differ:
        raise InputError(
            f"--out {folder} holds a simulation with other options ({'; '.join(differ)}): give another folder, or those options"
        )
