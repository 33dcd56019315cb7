"""A night's task by its parts: encode, answer behind one shared prompt, conditions, UNet, VAE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import DEFAULT_ALPHAS, PigeonPipeline
from generator.pigeon.sampling import noise_image
from tests.gpu.batches import codes_of, task
from tests.gpu.models import large_model, nano_model
from tests.gpu.rig import Rig

TIMED_STEPS = 5
"""Denoising steps that are timed of the large UNet and multiplied."""


def run(rig: Rig) -> None:
    for name, make, sizes in (("nano", nano_model, (1, 8, 32)), ("lavit-7b", large_model, (1, 8))):
        with rig.attempt(f"{name}: made"):
            model = make(rig.half, rig.rehearse)
            with rig.attempt(f"{name}: answers"):
                answers(rig, name, model)
            for size in sizes[:2] if rig.rehearse else sizes:
                with rig.attempt(f"{name}, batch {size}"):
                    pictures(rig, name, model, size)
            del model


def answers(rig: Rig, name: str, model: PigeonModel) -> None:
    """Eleven variants of one task: the prompt before the reference is computed once."""
    asked = task(model.config, DEFAULT_ALPHAS[:2] if rig.rehearse else DEFAULT_ALPHAS)
    rig.forget_peak()

    def encode() -> object:
        return PigeonPipeline(model).encode([asked])  # a new one: it remembers pictures

    pipeline = PigeonPipeline(model)
    with torch.no_grad():
        history, references = pipeline.encode([asked])
        masked = pipeline.mask([asked], history, references)
        found = pipeline.generate([asked], history, *masked)[0]
        encoded = rig.seconds(encode, 1)
        answered = rig.seconds(lambda: pipeline.generate([asked], history, *masked), 1, warm=0)
    rig.row(
        f"{name}: answers",
        variants=len(found),
        codes=sum(map(len, found)),
        encode_seconds=encoded,
        answer_seconds=answered,
        codes_per_second=sum(map(len, found)) / answered,
        peak_gib=rig.peak_gib(),
    )


@torch.no_grad()
def pictures(rig: Rig, name: str, model: PigeonModel, size: int) -> None:
    """Seconds of a batch by part; the UNet's steps are equal, so that five are timed and multiplied."""
    config, diffusion, rng = model.config, model.diffusion, np.random.default_rng(4)
    codes = [codes_of(config, rng) for _ in range(size)]
    pipeline = PigeonPipeline(model)
    noise = np.stack([noise_image(5, number, diffusion.latent_shape) for number in range(size)])
    diffusion.vae.enable_slicing()
    rig.forget_peak()
    conditions = pipeline.decode(codes)
    latents = torch.from_numpy(noise).to(rig.device)
    timed = min(TIMED_STEPS, config.diffusion.steps)
    parts: dict[str, Callable[[], object]] = {
        "decode": lambda: pipeline.decode(codes),
        "unet": lambda: unet_step(model, latents, *conditions),
        "vae": lambda: diffusion.decode_latents(latents).cpu(),
    }
    seconds = {part: rig.seconds(work, timed if part == "unet" else 1) for part, work in parts.items()}
    seconds["unet"] *= config.diffusion.steps
    rig.row(
        f"{name}, batch {size}",
        steps=config.diffusion.steps,
        timed_steps=timed,
        **{f"{part}_seconds": value for part, value in seconds.items()},
        pictures_per_second=size / sum(seconds.values()),
        peak_gib=rig.peak_gib(),
    )


def unet_step(model: PigeonModel, latents: Tensor, prompt_embeds: Tensor, pooled: Tensor) -> Tensor:
    """One step with guidance: both halves in one batch, as `Diffusion.sample` computes it."""
    both = [torch.cat([torch.zeros_like(part), part]) for part in (prompt_embeds, pooled)]
    times = torch.full((2 * len(latents),), 500, dtype=torch.int64)
    return model.diffusion.unet_output(torch.cat([latents, latents]), times, *both)
