"""A click model as it is stored and scored: plain arrays, `ClickModel.pack` and `ClickModel.unpack`.

The probability of a click is sigmoid(slope · (context + choice) + intercept): context is where a poster is shown and of which
item it is, choice is which of the task's answers it shows (schemas/click_features.py). Of the choice's weights the posterior's
mean and covariance are kept, so that a policy knows how sure it may be. No user and no item is named in a model.

Packed, little endian:  "PGC1"  uint32 length of a JSON header  header  float64 arrays, one after the other.

Only numpy and the standard library: the loop writes it, the night reads it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from schemas.click_features import Array, Basis, Candidates, choice_features

MAGIC = b"PGC1"
_START = struct.Struct("<4sI")
_BASIS = tuple(field.name for field in fields(Basis))
_ARRAYS = ("weights", "covariance", "positions", "surface_weights", "item_mean", "item", "item_weights", "calibration")


@dataclass(frozen=True)
class Utilities:
    """What a model expects of a task's answers beside each other, in log-odds of a click."""

    mean: Array
    """(N,)"""
    covariance: Array
    """(N, N)"""


@dataclass(frozen=True)
class ClickModel:
    """A fitted click model."""

    base_weights: str
    """Checkpoint whose previews it reads (`ServedPigeon.base_weights`)."""
    basis: Basis
    weights: Array
    """(F,): posterior mean of the choice features' weights."""
    covariance: Array
    """(F, F)"""
    positions: Array
    """(P + 1,): log-odds by position, further ones counting as the last; the first is of showings without a position."""
    surfaces: tuple[str, ...]
    surface_weights: Array
    """(S,); a surface that is not named counts as 0."""
    item_mean: Array
    """(D,)"""
    item: Array
    """(I, D): directions in which items' previews differ."""
    item_weights: Array
    """(I,)"""
    calibration: Array
    """(2,): intercept and slope."""

    @property
    def model_id(self) -> str:
        """Hash of all that it is."""
        return hashlib.sha256(self.pack()).hexdigest()[:32]

    def fits(self, candidates: Candidates) -> bool:
        """Whether it was made for embeddings of these widths."""
        widths = self.basis.preview.shape[1], self.basis.history.shape[1]
        return (candidates.previews.shape[1], len(candidates.history)) == widths

    def utilities(self, candidates: Candidates) -> Utilities:
        """Log-odds of the answers, the same number for all of them left out."""
        features = choice_features(candidates, self.basis) * float(self.calibration[1])
        return Utilities(features @ self.weights, features @ self.covariance @ features.T)

    def probabilities(self, candidates: Candidates, position: int = 0, surface: str = "") -> Array:
        """(N,): probability of a click on each answer, shown there to a mean user of a mean item."""
        intercept, slope = self.calibration
        context = float(self.positions[min(position, len(self.positions) - 2) + 1])
        if surface in self.surfaces:
            context += float(self.surface_weights[self.surfaces.index(surface)])
        context += float(self.item_weights @ (self.item @ (candidates.previews.mean(axis=0) - self.item_mean)))
        logits = intercept + slope * context + self.utilities(candidates).mean
        chances: Array = 1 / (1 + np.exp(-logits))
        return chances

    def pack(self) -> bytes:
        """As stored; the same model gives the same bytes."""
        arrays = {**{name: getattr(self, name) for name in _ARRAYS}}
        arrays |= {f"basis.{name}": getattr(self.basis, name) for name in _BASIS}
        header = {
            "base_weights": self.base_weights,
            "surfaces": list(self.surfaces),
            "arrays": [[name, list(array.shape)] for name, array in arrays.items()],
        }
        text = json.dumps(header, sort_keys=True).encode()
        return b"".join(
            [_START.pack(MAGIC, len(text)), text, *(np.asarray(array, "<f8").tobytes() for array in arrays.values())]
        )

    @classmethod
    def unpack(cls, data: bytes) -> ClickModel:
        """Inverse of `pack`.

        Raises:
            ValueError: not such bytes, or cut off.
        """
        if data[:4] != MAGIC:
            raise ValueError(f"click model: format {data[:4]!r}, this release reads {MAGIC!r}")
        try:
            _, length = _START.unpack_from(data)
            place = _START.size + length
            header: dict[str, Any] = json.loads(data[_START.size : place])
            arrays = {}
            for name, shape in header["arrays"]:
                count = int(np.prod(shape))
                arrays[name] = np.frombuffer(data, "<f8", count, place).reshape(shape)
                place += 8 * count
            basis = Basis(**{name: arrays.pop(f"basis.{name}") for name in _BASIS})
            return cls(base_weights=header["base_weights"], basis=basis, surfaces=tuple(header["surfaces"]), **arrays)
        except (struct.error, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"click model: {len(data)} bytes that are none: {error}") from error
