"""Memory of a checkpoint on its devices, computed from shapes before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import InputError

if TYPE_CHECKING:
    import torch

GIB = 2**30


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by what takes them."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __add__(self, other: MemoryNeed) -> MemoryNeed:
        names = [*self.parts, *(name for name in other.parts if name not in self.parts)]
        return MemoryNeed({name: self.parts.get(name, 0) + other.parts.get(name, 0) for name in names})

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {count / GIB:.2f}" for name, count in self.parts.items())
        return f"{self.total / GIB:.2f} GiB ({listed})"


def bytes_of(shapes: Iterable[tuple[int, ...]], item_bytes: int) -> int:
    """Bytes of tensors of these shapes."""
    return item_bytes * sum(prod(shape) for shape in shapes)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody tells.

    On the CPU those that the system calls available.
    """
    import torch

    if device.type != "cpu":
        asked = getattr(torch.get_device_module(device), "mem_get_info", None)
        return int(asked(device)[0]) if callable(asked) else None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def check_memory(need: MemoryNeed, device: torch.device, remedy: str, free: int | None = None) -> None:
    """Refuse what does not fit on a device.

    remedy: what to change, with the names of the settings. free: bytes that are free, if known better than by asking.

    Raises:
        InputError: more is needed than is free.
    """
    there = free_bytes(device) if free is None else free
    if there is not None and need.total > there:
        raise InputError(f"device {device} (compute.device): needs {need}, {there / GIB:.2f} GiB are free: {remedy}")
