"""The range of every dimension that an engine is built for: rows of a call, and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from generator.serving.configs import TensorSpec
from generator.serving.gpu.backends.rows import ROWS


@dataclass(frozen=True)
class Range:
    """Least, usual and largest size of a dimension; an engine is fastest at the usual one."""

    least: int
    usual: int
    most: int


def row_range(model: str) -> Range:
    """Rows of one call to a batched model."""
    rows = ROWS[model]
    return Range(rows.least, rows.usual, rows.most)


def token_range(positions: int) -> Range:
    """Tokens of the mask generator's rows: those of a whole prompt, LLaMA's positions, at most."""
    return Range(1, positions // 4, positions)


def shapes(rows: Range, tokens: Range, tensors: tuple[TensorSpec, ...]) -> Mapping[str, str]:
    """The options `trt_profile_*_shapes`: `name:8x4x16x16,...` per end of the range.

    tensors: with their dimensions behind the rows; -1 is a number of tokens.
    """

    def written(end: str) -> str:
        count, length = getattr(rows, end), getattr(tokens, end)
        return ",".join(
            f"{tensor.name}:" + "x".join(str(length if dim < 0 else dim) for dim in (count, *tensor.dims))
            for tensor in tensors
        )

    return {
        "trt_profile_min_shapes": written("least"),
        "trt_profile_opt_shapes": written("usual"),
        "trt_profile_max_shapes": written("most"),
    }
