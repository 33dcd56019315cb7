"""Sampling an answer's tokens, reproducibly.

Only numpy, no project import: serving copies this file as it is.

Each row draws from its own counter-based stream (Philox keyed by seed and variant), one number per token, so a row's
answer does not depend on its neighbours: a batch of N equals N batches of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is sampled. `suppressed`: half-open ranges of ids that an answer may not hold."""

    min_new_tokens: int = 20
    max_new_tokens: int = 300
    top_k: int = 50
    temperature: float = 1.0
    suppressed: tuple[tuple[int, int], ...] = ()
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} must lie between 0 and max_new_tokens {self.max_new_tokens}"
            )
        if self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be above 0")


def row_stream(seed: int, variant: int) -> np.random.Generator:
    """The random stream of one answer; seed and variant are any non-negative numbers below 2**64."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, variant], dtype=np.uint64)))


def gumbel_row(seed: int, variant: int, count: int) -> NDArray[np.float32]:
    """Standard Gumbel noise (count,) for the mask generator, apart from the token stream of the same seed."""
    stream = np.random.Generator(np.random.Philox(key=np.array([seed, variant], dtype=np.uint64), counter=1 << 64))
    return stream.gumbel(size=count).astype(np.float32)


def noise_image(seed: int, variant: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise for the start latents, apart from the other streams of the same seed."""
    stream = np.random.Generator(np.random.Philox(key=np.array([seed, variant], dtype=np.uint64), counter=2 << 64))
    return stream.standard_normal(size=tuple(shape), dtype=np.float32)


def sample_tokens(
    logits: NDArray[np.float32], uniforms: NDArray[np.float64], top_k: int, temperature: float
) -> NDArray[np.int64]:
    """Top-k sampling by inverse distribution function: logits (B, V), uniforms (B,) in [0, 1) -> ids (B,).

    -inf logits are never drawn; ties go to the lower id.
    """
    count = min(top_k, logits.shape[1])
    candidates = np.argsort(-logits, axis=1, kind="stable")[:, :count]  # (B, k), most likely first
    scores = np.take_along_axis(logits, candidates, axis=1).astype(np.float64) / temperature
    weights = np.exp(scores - scores[:, :1])
    cumulative = np.cumsum(weights, axis=1)
    target = uniforms[:, None] * cumulative[:, -1:]
    place = np.minimum((cumulative <= target).sum(axis=1), count - 1)
    return np.take_along_axis(candidates, place[:, None], axis=1)[:, 0].astype(np.int64)


class AnswerSampler:
    """Draws the answers of a batch step by step until each has met its end token or its limit.

    while not sampler.done: ids = sampler.step(logits)  # feed ids back into the language model
    """

    def __init__(
        self, config: GenerationConfig, streams: Sequence[tuple[int, int]], end_id: int, vocab_size: int
    ) -> None:
        """streams: (seed, variant) per row; end_id: image end."""
        self._config = config
        self._end_id = end_id
        self._uniforms = np.stack([row_stream(*stream).random(config.max_new_tokens) for stream in streams])
        self._forbidden = np.zeros(vocab_size, dtype=bool)
        for first, stop in config.suppressed:
            self._forbidden[first:stop] = True
        self._rows: list[list[int]] = [[] for _ in streams]
        self._finished = np.zeros(len(streams), dtype=bool)
        self._steps = 0

    @property
    def done(self) -> bool:
        return bool(self._finished.all()) or self._steps >= self._config.max_new_tokens

    @property
    def rows(self) -> list[list[int]]:
        """What was drawn so far, per row, the end token not included."""
        return [list(row) for row in self._rows]

    def step(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """logits (B, V) of the next token -> ids (B,); finished rows get the end token again.

        Raises:
            ValueError: logits that are not finite.
        """
        if not np.isfinite(logits).all():
            raise ValueError(
                f"language model: logits of step {self._steps} are not finite; check its weights and precision"
            )
        allowed = np.where(self._forbidden, -np.inf, logits).astype(np.float32)
        if self._steps < self._config.min_new_tokens:
            allowed[:, self._end_id] = -np.inf
        drawn = sample_tokens(allowed, self._uniforms[:, self._steps], self._config.top_k, self._config.temperature)
        drawn[self._finished] = self._end_id
        self._finished |= drawn == self._end_id
        for row, token, finished in zip(self._rows, drawn, self._finished, strict=True):
            if not finished:
                row.append(int(token))
        self._steps += 1
        return drawn


def answer_codes(row: Sequence[int], code_offset: int, max_tokens: int) -> list[int]:
    """An answer's ids -> its visual codes; other ids are dropped and at most max_tokens are kept."""
    return [token - code_offset for token in row if token >= code_offset][:max_tokens]
