"""The answers sampled for a task, as they are stored: `AnswerSet.pack` and `AnswerSet.unpack`.

One byte string per task (column `answer_sets.answers`), little endian:

    "PGA1"  format          K  uint16, answers      W  uint16, codes of the longest      D  uint16, preview width
    counts  uint16 (K)      codes  uint32 (K, W), zeros behind
    alphas, temperatures, logprobs, sampling_logprobs, cs, cis_history, chosen_with   float32 (K) each
    variants  int16 (K), -1 where the answer is not drawn        previews  float16 (K, D)
    choosers  uint8 length and UTF-8: who chose, with its version

Only numpy and the standard library: the night writes it, retraining and the click model read it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MAGIC = b"PGA1"
_HEADER = struct.Struct("<4sHHH")
_FLOATS = ("alpha", "temperature", "logprob", "sampling_logprob", "cs", "cis_history", "chosen_with")


@dataclass(frozen=True)
class StoredAnswer:
    """One sampled answer: what it is, how it was sampled, how it looks, and whether it was chosen."""

    codes: tuple[int, ...]
    """Visual codes 0..K-1."""
    alpha: float
    temperature: float
    """0: greedy."""
    logprob: float
    """Natural log-probability under the model at temperature 1, over the ids that an answer may hold, end included."""
    sampling_logprob: float
    """The same under the rule that it was sampled by; 0 for a greedy answer."""
    preview: npt.NDArray[np.float32] = field(compare=False)
    """(D,), unit length: embedding of the preview."""
    cs: float = float("nan")
    """100 x cosine of preview and text; NaN where the preview's space has no texts."""
    cis_history: float = float("nan")
    """Mean 100 x cosine of preview and history."""
    variant: int = -1
    """Number of the poster variant that shows it; -1 when it is not drawn."""
    chosen_with: float = 0.0
    """Probability with which the policy chose it to be drawn."""


def distinct(answers: Sequence[StoredAnswer]) -> list[int]:
    """Places of the answers that differ, each where it came first; without those that have no codes."""
    first: dict[tuple[int, ...], int] = {}
    for index, answer in enumerate(answers):
        if answer.codes:
            first.setdefault(answer.codes, index)
    return list(first.values())


@dataclass(frozen=True)
class AnswerSet:
    """All answers of a task in the order in which they were sampled, and who chose among them."""

    answers: tuple[StoredAnswer, ...]
    chooser: str = ""
    """Policy and version, for example "model" or "reward 7"."""

    def pack(self) -> bytes:
        """As stored. Previews lose precision (float16), nothing else that a float32 holds.

        Raises:
            ValueError: there is no answer, or previews of different widths.
        """
        if not self.answers:
            raise ValueError("answers: none given")
        widths = {answer.preview.shape for answer in self.answers}
        if len(widths) != 1:
            raise ValueError(f"answers: previews of shapes {sorted(widths)}; all must be (D,) with one D")
        count, longest = len(self.answers), max(len(answer.codes) for answer in self.answers)
        codes = np.zeros((count, longest), dtype="<u4")
        for row, answer in zip(codes, self.answers, strict=True):
            row[: len(answer.codes)] = answer.codes
        previews = np.stack([answer.preview for answer in self.answers]).astype("<f2")
        chooser = self.chooser.encode()
        return b"".join(
            [
                _HEADER.pack(MAGIC, count, longest, previews.shape[1]),
                np.array([len(answer.codes) for answer in self.answers], dtype="<u2").tobytes(),
                codes.tobytes(),
                *(np.array([getattr(a, name) for a in self.answers], dtype="<f4").tobytes() for name in _FLOATS),
                np.array([answer.variant for answer in self.answers], dtype="<i2").tobytes(),
                previews.tobytes(),
                bytes([len(chooser)]),
                chooser,
            ]
        )

    @classmethod
    def unpack(cls, data: bytes) -> AnswerSet:
        """Inverse of `pack`.

        Raises:
            ValueError: not such bytes, or cut off.
        """
        try:
            magic, count, longest, width = _HEADER.unpack_from(data)
            if magic != MAGIC:
                raise ValueError(f"answers: format {magic!r}, this release reads {MAGIC!r}")
            reader = _Reader(data, _HEADER.size)
            counts = reader.take("<u2", count)
            codes = reader.take("<u4", count * longest).reshape(count, longest)
            floats = {name: reader.take("<f4", count) for name in _FLOATS}
            variants = reader.take("<i2", count)
            previews = reader.take("<f2", count * width).reshape(count, width).astype(np.float32)
            chooser = data[reader.place + 1 :].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"answers: {len(data)} bytes that are no answer set: {error}") from error
        return cls(
            tuple(
                StoredAnswer(
                    codes=tuple(codes[row, : counts[row]].tolist()),
                    preview=previews[row],
                    variant=int(variants[row]),
                    **{name: float(values[row]) for name, values in floats.items()},
                )
                for row in range(count)
            ),
            chooser,
        )


class _Reader:
    """Arrays one after the other."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self.place = data, place

    def take(self, kind: str, count: int) -> npt.NDArray[np.generic]:
        start = self.place
        self.place += np.dtype(kind).itemsize * count
        if self.place > len(self._data):
            raise ValueError(f"answers: cut off after {len(self._data)} bytes")
        return np.frombuffer(self._data, kind, count, start)
