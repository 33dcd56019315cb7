"""The device that is measured, what is written down, and how seconds and memory are taken."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from generator.pigeon.placement import Placement

GIB = 2**30


@dataclass
class Rig:
    """Where a part runs, and its file of rows.

    It is written again after each row, so that what was measured survives a limit.
    """

    part: str
    out: Path
    device: torch.device
    rehearse: bool
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def half(self) -> Placement:
        """bf16 weights and autocast."""
        return Placement("bf16", str(self.device))

    @property
    def full(self) -> Placement:
        return Placement("fp32", str(self.device))

    def row(self, name: str, **figures: Any) -> None:
        """Print a row and write all rows so far."""
        self.rows.append({"name": name, **figures})
        line = ", ".join(f"{key} {shown(value)}" for key, value in figures.items())
        print(f"{self.part}: {name}: {line}", flush=True)  # noqa: T201 -- a command prints
        (self.out / f"{self.part}.json").write_text(json.dumps(self.rows, indent=1) + "\n")

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What fails in here is a row, and the part goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whatever it was, it is what was found
            lines = str(error).strip().splitlines()
            self.row(name, failed=f"{type(error).__name__}: {lines[0] if lines else ''}"[:300])
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], times: int, warm: int = 1) -> float:
        """Mean seconds of `work`, after `warm` runs that do not count."""
        for _ in range(warm):
            work()
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - started) / times

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """Most memory of torch's tensors since `forget_peak`; none on the CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / GIB


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine(device: torch.device, rehearse: bool) -> dict[str, Any]:
    """What a figure must be read with."""
    import diffusers
    import peft
    import transformers

    cuda = device.type == "cuda"
    return {
        "rehearsal": rehearse,
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))) if cuda else None,
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / GIB if cuda else None,
        "cuda": torch.version.cuda,
        "driver": driver() if cuda else None,
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, transformers, diffusers, peft)},
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def driver() -> str | None:
    """The driver's version, as its own file says it."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0] if path.is_file() else None


def imported() -> list[str]:
    """Packages that are not the standard library's, so that a test sees what a machine must have."""
    names = {name.partition(".")[0] for name in sys.modules}
    return sorted(names - set(sys.stdlib_module_names))
