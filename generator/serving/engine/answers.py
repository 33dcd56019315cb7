"""Which answer each row of an engine's batch is, and what our sampler drew for it.

An engine puts requests into rows, moves them and takes them out between steps. A row's place in its answer is the number of
tokens that the engine holds for it: a step that the engine computes again, or throws away because the prompt was not
computed to its end, is drawn again with the same uniform.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from generator.pigeon.sampling import SamplingRule, check_temperatures

Floats = NDArray[np.float32]
UNTOUCHED = -1
"""Id of a row that is none of our answers."""


@dataclass
class SampledAnswer:
    """One answer while it is drawn, the end token included."""

    uniforms: NDArray[np.float64]
    temperature: float
    drawn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    problem: str | None = None
    """Why the answer is not valid; it ends where this was found."""

    def put(self, place: int, token: int, logprob: float, sampling_logprob: float) -> None:
        """Note what was drawn at `place`; what was noted there and behind it does not count any more."""
        self.drawn[place:] = [token]
        self.logprobs[place:] = [logprob]
        self.sampling_logprobs[place:] = [sampling_logprob]

    def tokens(self, end_id: int) -> list[int]:
        """What was drawn, the end token left out."""
        return [token for token in self.drawn if token != end_id]

    @property
    def logprob(self) -> float:
        """Natural logarithm at temperature 1 over the allowed ids, as `AnswerSampler.logprobs`."""
        return float(np.cumsum(self.logprobs)[-1]) if self.logprobs else 0.0

    @property
    def sampling_logprob(self) -> float:
        """The same under the rule that drew, as `AnswerSampler.sampling_logprobs`."""
        return float(np.cumsum(self.sampling_logprobs)[-1]) if self.sampling_logprobs else 0.0


@dataclass(frozen=True)
class Row:
    """A row of the batch: its answer, and the engine's own list of its tokens, which grows."""

    answer: SampledAnswer
    output: Sequence[int]


class AnswerRows:
    """The rows of an engine's batch. Answers are opened before their request and closed after it."""

    def __init__(self, rule: SamplingRule) -> None:
        self._rule = rule
        self._answers: dict[str, SampledAnswer] = {}
        self._rows: dict[int, Row] = {}

    def open(self, key: str, seed: int, variant: int, temperature: float | None) -> SampledAnswer:
        """Make the answer that will be asked for as `key`.

        Temperature None is the checkpoint's own, 0 is greedy.

        Raises:
            ValueError: a temperature out of range.
        """
        if temperature is not None:
            check_temperatures([temperature])
        asked = self._rule.config.temperature if temperature is None else temperature
        answer = self._answers[key] = SampledAnswer(self._rule.uniforms(seed, variant), asked)
        return answer

    def close(self, key: str) -> SampledAnswer:
        """The answer as far as it was drawn; the engine may not ask for it any more."""
        return self._answers.pop(key)

    def update(
        self,
        removed: Iterable[int],
        added: Iterable[tuple[int, str | None, Sequence[int]]],
        moved: Iterable[tuple[int, int, bool]],
    ) -> None:
        """Follow the engine's changes to its batch, in its order: rows emptied, filled, and moved or swapped.

        added: (row, the answer's key or None for a request that is not ours, the engine's list of its tokens); a filled row
        replaces the one that was there. moved: (from, to, whether they change places).
        """
        for row in removed:
            self._rows.pop(row, None)
        for row, key, output in added:
            answer = self._answers.get(key) if key is not None else None
            self._rows.pop(row, None)
            if answer is not None:
                self._rows[row] = Row(answer, output)
        for first, second, swap in moved:
            mine, theirs = self._rows.pop(first, None), self._rows.pop(second, None)
            if mine is not None:
                self._rows[second] = mine
            if swap and theirs is not None:
                self._rows[first] = theirs

    def draw(self, logits: Floats) -> NDArray[np.int64]:
        """Draw each row's next token: logits (B, V) -> ids (B,).

        The id is UNTOUCHED where the row is none of our answers. An answer whose logits are not finite gets a `problem` and its
        end token: the other answers go on.
        """
        ids = np.full(len(logits), UNTOUCHED, dtype=np.int64)
        rows = sorted(row for row in self._rows if row < len(logits))
        going = [row for row in rows if self._goes_on(self._rows[row], logits[row])]
        ids[rows] = self._rule.end_id
        if going:
            ids[going] = self._draw(going, logits[going])
        return ids

    def _goes_on(self, row: Row, logits: Floats) -> bool:
        place = len(row.output)
        if place < len(row.answer.uniforms) and not np.isfinite(logits).all():
            row.answer.problem = (
                f"language model: logits of step {place} are not finite; check its weights and precision"
            )
        return row.answer.problem is None and place < len(row.answer.uniforms)

    def _draw(self, rows: Sequence[int], logits: Floats) -> NDArray[np.int64]:
        held = [self._rows[row] for row in rows]
        places = [len(row.output) for row in held]
        uniforms = np.array([row.answer.uniforms[place] for row, place in zip(held, places, strict=True)])
        drawn = self._rule.draw(logits, places, uniforms, [row.answer.temperature for row in held])
        for row, place, *values in zip(
            held, places, drawn.ids.tolist(), drawn.logprobs.tolist(), drawn.sampling_logprobs.tolist(), strict=True
        ):
            row.answer.put(place, *values)
        return drawn.ids
