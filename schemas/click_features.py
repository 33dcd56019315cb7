"""Features that a click model reads of a task's answers, for its fit and for the night.

Only numpy. What all answers of a task have in common cannot decide among them, so features are differences to the task's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.answers import StoredAnswer

Array = npt.NDArray[np.float64]

CODE_BUCKETS = 64
"""Buckets that visual codes are hashed into, so that any codebook gives a summary of one width."""
LOWEST_LOG_SHARE = -4.0
"""Natural log of the smallest share that log π is told apart by; an answer less likely counts as this likely."""
PERSONAL_PREVIEWS = 6
"""Directions of previews that are multiplied with the history's, at most."""
GROUPS = ("preference", "preview", "codes", "scores", "personal")
"""Kinds of features in the order of their columns; the features of one kind have one prior width."""


@dataclass(frozen=True)
class Candidates:
    """The distinct answers of one task, which are chosen among, and the user's history."""

    logprobs: Array
    """(N,): log π at temperature 1."""
    previews: Array
    """(N, D)"""
    codes: tuple[tuple[int, ...], ...]
    scores: Array
    """(N, 2): CS and history CIS, 100 x cosine; 0 where the preview's space has no texts."""
    history: Array
    """(E,): mean of the embeddings of the history's pictures."""

    @classmethod
    def of(cls, answers: Sequence[StoredAnswer], history: Array) -> Candidates:
        """`answers` are distinct; `history`: (H, E), or (0, E) where nothing is known of it."""
        scores = np.array([(answer.cs, answer.cis_history) for answer in answers], np.float64)
        return cls(
            np.array([answer.logprob for answer in answers], np.float64),
            np.array([answer.preview for answer in answers], np.float64),
            tuple(answer.codes for answer in answers),
            np.nan_to_num(scores),
            history.mean(axis=0) if len(history) else np.zeros(history.shape[1]),
        )


@dataclass(frozen=True)
class Basis:
    """Directions and scales, found in the data of a fit, that features are measured by."""

    preview: Array
    """(K, D): directions in which the previews of one task differ, scaled to a deviation of 1."""
    codes: Array
    """(C, CODE_BUCKETS): the same of hashed codes."""
    scores: Array
    """(2,): inverse deviation within a task of CS and history CIS."""
    history_mean: Array
    """(E,)"""
    history: Array
    """(M, E): directions in which histories differ, scaled to a deviation of 1."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Kind of each column of `choice_features`."""
        personal = min(PERSONAL_PREVIEWS, len(self.preview)) * len(self.history)
        widths = (1, len(self.preview), len(self.codes), 2, personal)
        return tuple(name for name, width in zip(GROUPS, widths, strict=True) for _ in range(width))


def choice_features(candidates: Candidates, basis: Basis) -> Array:
    """(N, F): how each answer differs from the task's others; columns as `Basis.groups` names them."""
    preview = candidates.previews @ basis.preview.T
    codes = hashed(candidates.codes) @ basis.codes.T
    taste = basis.history @ (candidates.history - basis.history_mean)
    personal = (preview[:, :PERSONAL_PREVIEWS, None] * taste).reshape(len(preview), -1)
    shares = log_shares(candidates.logprobs)[:, None]
    columns = np.hstack([shares, preview, codes, candidates.scores * basis.scores, personal])
    centred: Array = columns - columns.mean(axis=0)
    return centred


def log_shares(logprobs: Array) -> Array:
    """(N,): natural log of each answer's share of the softmax, at least LOWEST_LOG_SHARE."""
    shifted = logprobs - logprobs.max()
    shares: Array = np.maximum(shifted - np.log(np.exp(shifted).sum()), LOWEST_LOG_SHARE)
    return shares


def hashed(answers: Sequence[Sequence[int]]) -> Array:
    """(N, CODE_BUCKETS), unit rows: how often each code occurs, by its bucket and sign."""
    mixed = np.array([code for codes in answers for code in codes], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    signs = np.where(mixed >> np.uint64(63), 1.0, -1.0)
    buckets = ((mixed >> np.uint64(32)) % np.uint64(CODE_BUCKETS)).astype(np.int64)
    rows = np.repeat(np.arange(len(answers)), [len(codes) for codes in answers])
    counts = np.bincount(rows * CODE_BUCKETS + buckets, weights=signs, minlength=len(answers) * CODE_BUCKETS)
    table = counts.reshape(len(answers), CODE_BUCKETS)
    unit: Array = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    return unit
