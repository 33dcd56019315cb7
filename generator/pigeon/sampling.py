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

Floats = NDArray[np.float32]
LEAST_TEMPERATURE = 0.01
MOST_TEMPERATURE = 100.0


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is sampled. `suppressed`: half-open ranges of ids that an answer may not hold.

    `taste_positions`: half-open ranges of places in an answer (0 is its first token) whose codes say what taste decides. A
    temperature above the checkpoint's own applies to them alone; without any it applies to the whole answer.
    """

    min_new_tokens: int = 20
    max_new_tokens: int = 300
    top_k: int = 50
    temperature: float = 1.0
    suppressed: tuple[tuple[int, int], ...] = ()
    taste_positions: tuple[tuple[int, int], ...] = ()
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
        for first, stop in self.taste_positions:
            if not 0 <= first < stop <= self.max_new_tokens:
                raise ValueError(
                    f"taste_positions {first}..{stop} must be a range within max_new_tokens {self.max_new_tokens}"
                )

    def temperature_at(self, place: int, asked: float) -> float:
        """The temperature of one place of an answer for which `asked` was asked; 0 is greedy, at every place."""
        if not self.taste_positions or any(first <= place < stop for first, stop in self.taste_positions):
            return asked
        return min(asked, self.temperature)


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
    logits: Floats, uniforms: NDArray[np.float64], top_k: int, temperatures: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Top-k sampling by inverse distribution function.

    Logits (B, V), uniforms (B,) in [0, 1), temperatures (B,).

    -> ids (B,) and their natural log-probabilities (B,) under this very rule. Temperature 0 takes the likeliest id, with
    log-probability 0. -inf logits are never drawn; ties go to the lower id.
    """
    count = min(top_k, logits.shape[1])
    candidates = np.argsort(-logits, axis=1, kind="stable")[:, :count]  # (B, k), most likely first
    greedy = temperatures == 0
    scores = np.take_along_axis(logits, candidates, axis=1).astype(np.float64)
    scores /= np.where(greedy, 1.0, temperatures)[:, None]
    weights = np.exp(scores - scores[:, :1])
    cumulative = np.cumsum(weights, axis=1)
    target = uniforms[:, None] * cumulative[:, -1:]
    place = np.where(greedy, 0, np.minimum((cumulative <= target).sum(axis=1), count - 1))[:, None]
    share = np.take_along_axis(weights, place, axis=1) / cumulative[:, -1:]
    ids = np.take_along_axis(candidates, place, axis=1)[:, 0].astype(np.int64)
    return ids, np.where(greedy, 0.0, np.log(share[:, 0]))


def token_logprobs(logits: Floats, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Natural log-probabilities (B,) at temperature 1 of ids (B,).

    logits (B, V), -inf where an id is not allowed."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(scores, ids[:, None], axis=1)[:, 0]
    out: NDArray[np.float64] = chosen - np.log(np.exp(scores).sum(axis=1))
    return out


@dataclass(frozen=True)
class DrawnTokens:
    """What one step drew: ids (B,) and their natural log-probabilities (B,).

    `logprobs` are the model's at temperature 1 over the allowed ids, `sampling_logprobs` those under the rule that drew.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    sampling_logprobs: NDArray[np.float64]


class SamplingRule:
    """One step of sampling: allowed ids, temperature by place, top-k, and a uniform per row.

    Rows may be at different places of their answers.
    """

    def __init__(self, config: GenerationConfig, end_id: int, vocab_size: int) -> None:
        self.config = config
        self.end_id = end_id
        self._forbidden = np.zeros(vocab_size, dtype=bool)
        for first, stop in config.suppressed:
            self._forbidden[first:stop] = True

    def uniforms(self, seed: int, variant: int) -> NDArray[np.float64]:
        """The numbers in [0, 1) that an answer is drawn with, one per place (max_new_tokens,)."""
        return row_stream(seed, variant).random(self.config.max_new_tokens)

    def allowed(self, logits: Floats, places: Sequence[int]) -> Floats:
        """Logits (B, V), -inf where an id may not stand at a row's place.

        Suppressed ids never, the end not before `min_new_tokens`.
        """
        out: Floats = np.where(self._forbidden, -np.inf, logits).astype(np.float32)
        out[np.array(places) < self.config.min_new_tokens, self.end_id] = -np.inf
        return out

    def draw(
        self, logits: Floats, places: Sequence[int], uniforms: NDArray[np.float64], asked: Sequence[float]
    ) -> DrawnTokens:
        """Draw each row's token at its place.

        logits (B, V), places (B), uniforms (B,), the temperatures asked for (B).

        Raises:
            ValueError: logits that are not finite.
        """
        if not np.isfinite(logits).all():
            raise ValueError(
                f"language model: logits of step {min(places)} are not finite; check its weights and precision"
            )
        allowed = self.allowed(logits, places)
        temperatures = np.array([self.config.temperature_at(*row) for row in zip(places, asked, strict=True)])
        ids, rule = sample_tokens(allowed, uniforms, self.config.top_k, temperatures)
        return DrawnTokens(ids, token_logprobs(allowed, ids), rule)


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Raises:
    ValueError: one that is neither 0 nor in 0.01..100.
    """
    if not all(t == 0 or LEAST_TEMPERATURE <= t <= MOST_TEMPERATURE for t in temperatures):
        raise ValueError(
            f"temperatures: {list(temperatures)} must each be 0 (greedy) or lie in {LEAST_TEMPERATURE}..{MOST_TEMPERATURE}"
        )


class AnswerSampler:
    """Draws the answers of a batch step by step until each has met its end token or its limit.

    while not sampler.done: ids = sampler.step(logits)  # feed ids back into the language model
    """

    def __init__(
        self,
        config: GenerationConfig,
        streams: Sequence[tuple[int, int]],
        end_id: int,
        vocab_size: int,
        temperatures: Sequence[float] | None = None,
    ) -> None:
        """streams: (seed, variant) per row.

        End_id: image end; temperatures: per row, 0 is greedy; the checkpoint's by default.

        Raises:
            ValueError: another number of temperatures than of streams, or one that is neither 0 nor in 0.01..100.
        """
        asked = [config.temperature] * len(streams) if temperatures is None else list(temperatures)
        if len(asked) != len(streams):
            raise ValueError(f"temperatures: {len(asked)} for {len(streams)} answers; give one per answer")
        if temperatures is not None:
            check_temperatures(asked)
        self._config = config
        self._rule = SamplingRule(config, end_id, vocab_size)
        self._asked = asked
        self._end_id = end_id
        self._uniforms = np.stack([self._rule.uniforms(*stream) for stream in streams])
        self._rows: list[list[int]] = [[] for _ in streams]
        self._finished = np.zeros(len(streams), dtype=bool)
        self._logprobs = np.zeros(len(streams))
        self._sampling_logprobs = np.zeros(len(streams))
        self._steps = 0

    @property
    def done(self) -> bool:
        return bool(self._finished.all()) or self._steps >= self._config.max_new_tokens

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which rows have met their end token (B,)."""
        return self._finished.copy()

    @property
    def rows(self) -> list[list[int]]:
        """What was drawn so far, per row, the end token not included."""
        return [list(row) for row in self._rows]

    @property
    def logprobs(self) -> NDArray[np.float64]:
        """Natural log-probability of what each row has drawn (B,).

        The model's at temperature 1, over the allowed ids.

        The end token counts, top-k does not.
        """
        return self._logprobs.copy()

    @property
    def sampling_logprobs(self) -> NDArray[np.float64]:
        """The same under the rule that drew it (B,): temperatures and top-k; 0 for a greedy row."""
        return self._sampling_logprobs.copy()

    def step(self, logits: Floats) -> NDArray[np.int64]:
        """logits (B, V) of the next token -> ids (B,); finished rows get the end token again.

        Raises:
            ValueError: logits that are not finite.
        """
        found = self._rule.draw(logits, [self._steps] * len(self._asked), self._uniforms[:, self._steps], self._asked)
        self._logprobs += np.where(self._finished, 0.0, found.logprobs)
        self._sampling_logprobs += np.where(self._finished, 0.0, found.sampling_logprobs)
        drawn = found.ids
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
