"""Few steps: the sampler of latent consistency models, and which sampler a scheduler names.

Luo et al. 2023, arXiv 2310.04378. Only numpy and `ddim`: serving copies this file as it is.
Reads diffusers' scheduler_config.json; agrees with LCMScheduler.

    LCMScheduler     LcmSchedule: for UNets or LoRAs that were distilled into a consistency model, with guidance 1
    any other name   DdimSchedule; with timestep_spacing "trailing" and guidance 1 also what distilled models for a few Euler
                     steps (Lightning) are drawn with
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from generator.pigeon.ddim import DdimSchedule, FloatArray, cumulative_alphas, original_of

SIGMA_DATA = 0.5
"""The consistency function's scale of data, as in every published LCM."""


class Schedule(Protocol):
    """The timesteps of one denoising, and its steps."""

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """(steps,), falling."""

    def step(self, index: int, sample: FloatArray, predicted: FloatArray, start: FloatArray) -> FloatArray:
        """Step `index`: sample and the network's output (B, ...) -> the next sample.

        `start` (B, ...): the noise that denoising began with.
        """


def schedule_from_config(config: Mapping[str, Any], steps: int) -> Schedule:
    """The sampler that diffusers' scheduler configuration names.

    Raises:
        ValueError: a field has a value that the sampler does not know, or more steps than it has.
    """
    if config.get("_class_name") == "LCMScheduler":
        return LcmSchedule.from_config(config, steps)
    return DdimSchedule.from_config(config, steps)


@dataclass(frozen=True)
class LcmSchedule:
    """Each step guesses the picture and, but for the last, adds noise of the next level to it."""

    timesteps: NDArray[np.int64]  # (steps,), falling
    alphas: NDArray[np.float64]  # (steps,) cumulative alpha at each timestep
    prediction_type: str
    clip: float | None
    timestep_scaling: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any], steps: int) -> LcmSchedule:
        """config: diffusers' scheduler configuration.

        Raises:
            ValueError: an unknown beta_schedule or prediction_type, or more steps than the model was distilled from.
        """
        trained = int(config.get("num_train_timesteps", 1000))
        original = int(config.get("original_inference_steps", 50))
        if not 0 < steps <= original:
            raise ValueError(f"diffusion.steps: {steps} must lie between 1 and original_inference_steps {original}")
        prediction = str(config.get("prediction_type", "epsilon"))
        if prediction not in {"epsilon", "v_prediction", "sample"}:
            raise ValueError(f"scheduler prediction_type: {prediction!r} must be epsilon, v_prediction or sample")
        origins = (np.arange(1, original + 1) * (trained // original) - 1)[::-1]
        timesteps = origins[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]
        return cls(
            timesteps=timesteps.astype(np.int64),
            alphas=cumulative_alphas(config, trained)[timesteps],
            prediction_type=prediction,
            clip=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None,
            timestep_scaling=float(config.get("timestep_scaling", 10.0)),
        )

    def step(self, index: int, sample: FloatArray, predicted: FloatArray, start: FloatArray) -> FloatArray:
        """Step `index`: sample and the network's output (B, ...) -> the next sample.

        `start` (B, ...): the noise that denoising began with, which decides over the noise of each step.
        """
        original, _ = original_of(self.prediction_type, float(self.alphas[index]), sample, predicted)
        if self.clip is not None:
            original = np.clip(original, -self.clip, self.clip)
        scaled = float(self.timesteps[index]) * self.timestep_scaling
        skip, out = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
        denoised: NDArray[np.float32] = (out * original + skip * sample).astype(np.float32)
        if index == len(self.timesteps) - 1:
            return denoised
        following = float(self.alphas[index + 1])
        noisy = following**0.5 * denoised + (1 - following) ** 0.5 * step_noise(start, index)
        stepped: FloatArray = noisy.astype(np.float32)
        return stepped


def step_noise(start: FloatArray, index: int) -> FloatArray:
    """Standard normal noise of step `index` for each row of `start` (B, ...).

    It depends on its own row alone.
    """
    rows = []
    for row in np.ascontiguousarray(start, dtype=np.float32):
        key = np.frombuffer(hashlib.sha256(row.tobytes()).digest()[:16], dtype="<u8")
        stream = np.random.Generator(np.random.Philox(key=key, counter=index << 64))
        rows.append(stream.standard_normal(size=row.shape, dtype=np.float32))
    return np.stack(rows)
