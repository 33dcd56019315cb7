"""DDIM without noise (Song et al., ICLR 2021, arXiv 2010.02502) and SDXL's time ids.

Only numpy, no project import: serving copies this file as it is. Reads diffusers' scheduler_config.json; agrees with DDIMScheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class DdimSchedule:
    """The timesteps of one denoising and what each step needs; `sample` starts as standard normal noise."""

    timesteps: NDArray[np.int64]  # (steps,), falling
    alphas: NDArray[np.float64]  # (steps,) cumulative alpha at each timestep
    previous_alphas: NDArray[np.float64]  # (steps,) at the timestep after it
    prediction_type: str
    clip: float | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], steps: int) -> DdimSchedule:
        """config: diffusers' scheduler configuration.

        Raises:
            ValueError: an unknown beta_schedule, timestep_spacing or prediction_type, or more steps than were trained.
        """
        trained = int(config.get("num_train_timesteps", 1000))
        if not 0 < steps <= trained:
            raise ValueError(f"diffusion.steps: {steps} must lie between 1 and num_train_timesteps {trained}")
        cumulative = cumulative_alphas(config, trained)
        spacing = config.get("timestep_spacing", "leading")
        if spacing == "linspace":
            timesteps = np.linspace(0, trained - 1, steps).round()[::-1].astype(np.int64)
        elif spacing == "leading":
            timesteps = np.arange(steps)[::-1] * (trained // steps) + int(config.get("steps_offset", 0))
        elif spacing == "trailing":
            timesteps = np.round(np.arange(trained, 0, -trained / steps)).astype(np.int64) - 1
        else:
            raise ValueError(f"scheduler timestep_spacing: {spacing!r} must be linspace, leading or trailing")
        prediction = str(config.get("prediction_type", "epsilon"))
        if prediction not in {"epsilon", "v_prediction", "sample"}:
            raise ValueError(f"scheduler prediction_type: {prediction!r} must be epsilon, v_prediction or sample")
        previous = timesteps - trained // steps
        final = 1.0 if config.get("set_alpha_to_one", True) else cumulative[0]
        return cls(
            timesteps=timesteps.astype(np.int64),
            alphas=cumulative[timesteps],
            previous_alphas=np.where(previous >= 0, cumulative[np.maximum(previous, 0)], final),
            prediction_type=prediction,
            clip=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else None,
        )

    def step(
        self, index: int, sample: FloatArray, predicted: FloatArray, start: FloatArray | None = None
    ) -> FloatArray:
        """Step `index` of the denoising: sample and the network's output, any same shape -> the next sample.

        `start`, the first sample, does not count: no noise is added.
        """
        alpha, previous = float(self.alphas[index]), float(self.previous_alphas[index])
        original, noise = original_of(self.prediction_type, alpha, sample, predicted)
        if self.clip is not None:
            original = np.clip(original, -self.clip, self.clip)
        stepped: FloatArray = (previous**0.5 * original + (1 - previous) ** 0.5 * noise).astype(np.float32)
        return stepped


def original_of(
    prediction_type: str, alpha: float, sample: FloatArray, predicted: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Data and noise that the sample is made of, going by the network's output; same shapes.

    `alpha`: the cumulative alpha of the sample.
    """
    beta = 1 - alpha
    if prediction_type == "epsilon":
        return (sample - beta**0.5 * predicted) / alpha**0.5, predicted
    if prediction_type == "v_prediction":
        return alpha**0.5 * sample - beta**0.5 * predicted, alpha**0.5 * predicted + beta**0.5 * sample
    return predicted, (sample - alpha**0.5 * predicted) / beta**0.5


def cumulative_alphas(config: Mapping[str, Any], trained: int) -> NDArray[np.float64]:
    """(trained,) of diffusers' scheduler configuration.

    Raises:
        ValueError: an unknown beta_schedule.
    """
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        betas = np.linspace(start, end, trained)
    elif name == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, trained) ** 2
    elif name == "squaredcos_cap_v2":
        times = np.arange(trained + 1) / trained
        level = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], 0.999)
    else:
        raise ValueError(f"scheduler beta_schedule: {name!r} must be linear, scaled_linear or squaredcos_cap_v2")
    cumulative: NDArray[np.float64] = np.cumprod(1 - betas, dtype=np.float64)
    if config.get("rescale_betas_zero_snr", False):
        # Lin et al. 2024 (arXiv 2305.08891), algorithm 1: the last step is to be pure noise.
        root = np.sqrt(cumulative)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        cumulative = root**2
    return cumulative


def guide(predicted_without: FloatArray, predicted_with: FloatArray, guidance: float) -> FloatArray:
    """Classifier-free guidance (Ho and Salimans 2022): same shapes in and out."""
    return (predicted_without + guidance * (predicted_with - predicted_without)).astype(np.float32)


def sdxl_time_ids(batch: int, size: int) -> FloatArray:
    """SDXL's size conditions (batch, 6): original height, width, crop top, left, target height, width."""
    return np.tile(np.array([size, size, 0, 0, size, size], dtype=np.float32), (batch, 1))


def to_uint8(decoded: FloatArray) -> NDArray[np.uint8]:
    """VAE output (B, 3, S, S) in -1..1 -> RGB (B, S, S, 3)."""
    return (np.clip(decoded / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
