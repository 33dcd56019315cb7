"""What a benchmark found: figures with their goals, and the machine that they are from."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    full: bool = False
    """Full sizes instead of small ones."""


@dataclass(frozen=True)
class Figure:
    """One measured ratio or count."""

    row: str
    """Name of the benchmark, as `--only` takes it."""
    what: str
    value: float
    goal: str = ""
    """As `>= 3.5`; empty where there is none."""
    detail: str = ""
    """What went into it, and how it was measured."""

    @property
    def verdict(self) -> str:
        """Whether the goal is met; empty without one."""
        if not self.goal:
            return ""
        sign, bound = self.goal.split()[:2]
        met = self.value >= float(bound) if sign == ">=" else self.value <= float(bound)
        return "met" if met else "missed"


def table(figures: Iterable[Figure]) -> str:
    """The figures in Markdown, a line each."""
    lines = ["| row | measured | | goal | | from |", "|---|---|---|---|---|---|"]
    for one in figures:
        cells = (one.row, one.what, f"{one.value:.2f}", one.goal, one.verdict, one.detail)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """The machine and what else it was doing."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def described(found: dict[str, Any]) -> str:
    """One line about the machine."""
    return (
        f"{found['cores']} cores of {found['cpu']}, {found['memory_gib']} GiB, {found['system']}, Python {found['python']}, "
        f"load average {found['load_average']}"
    )


def write_json(path: Path, figures: Sequence[Figure], options: Options, before: dict[str, Any]) -> None:
    """Figures, sizes, date and machine, its load at both ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**before, "load_average_at_the_end": machine()["load_average"]},
        "options": asdict(options),
        "figures": [{**asdict(one), "verdict": one.verdict} for one in figures],
    }
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
