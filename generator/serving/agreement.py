"""A network to export, and how far its graph is from PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from generator.serving.backends.graph import Graph

Example = Callable[[int, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Bounds:
    """How far a graph may be from PyTorch."""

    difference: float
    """Largest absolute difference, relative to the largest value where that exceeds 1."""
    flipped: float
    """Largest share of decisions (code ids, keep) that rounding may flip."""


FLOAT32 = Bounds(difference=1e-3, flipped=1e-3)


@dataclass(frozen=True)
class Network:
    """One graph to export."""

    model: str
    file: str
    module: nn.Module
    example: Example
    """(batch, generator) -> inputs by name."""
    dynamic: Mapping[str, Mapping[int, str]]
    """Per input the dimensions that vary, by name."""
    outputs: tuple[str, ...]
    bounds: Bounds = FLOAT32
    reference: nn.Module | None = None
    """What the graph is compared with, where that is not `module` itself: the same weights in float32."""

    @property
    def title(self) -> str:
        return self.model if self.file == "model.onnx" else f"{self.model}/{self.file.removesuffix('.onnx')}"


@dataclass(frozen=True)
class Agreement:
    """How far a graph is from PyTorch on random inputs."""

    title: str
    max_abs_diff: float
    scale: float
    """Largest absolute value of PyTorch's answers."""
    flipped_share: float
    """Share of integer and boolean outputs that differ."""
    decisions: int
    bounds: Bounds = FLOAT32

    @property
    def within(self) -> bool:
        limit = self.bounds.difference * max(1.0, self.scale)
        return self.max_abs_diff <= limit and self.flipped_share <= self.bounds.flipped


@torch.no_grad()
def compare(network: Network, path: Path) -> Agreement:
    """ONNX Runtime and PyTorch on the same random inputs, at two batch sizes other than the traced one."""
    graph = Graph(path)
    reference = network.reference or network.module
    difference, scale, flipped, decisions = 0.0, 0.0, 0, 0
    for count, seed in ((1, 1), (3, 2)):
        feeds = network.example(count, torch.Generator().manual_seed(seed))
        answers = reference(**placed_inputs(feeds, reference))
        answers = answers if isinstance(answers, tuple) else (answers,)
        got = graph({name: value.numpy() for name, value in feeds.items()})
        for name, answer in zip(network.outputs, answers, strict=True):
            want = answer.cpu().numpy()
            if want.dtype.kind == "f":
                difference = max(difference, float(np.abs(got[name] - want).max()))
                scale = max(scale, float(np.abs(want).max()))
            else:
                flipped += int((got[name] != want).sum())
                decisions += want.size
    return Agreement(network.title, difference, scale, flipped / max(decisions, 1), decisions, network.bounds)


def placed_inputs(inputs: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The inputs where the module's weights are; they are drawn on the CPU, the same for every device."""
    device = next(module.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}
