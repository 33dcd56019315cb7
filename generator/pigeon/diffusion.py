"""Conditions -> pictures: a UNet with SDXL's conditioning, a sampler with guidance, a VAE.

PIGEON.md section 4; the networks are diffusers', the sampler is the one that the scheduler names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from generator.pigeon.config import DiffusionConfig
from generator.pigeon.ddim import guide, sdxl_time_ids, to_uint8
from generator.pigeon.lcm import schedule_from_config
from generator.pigeon.placement import in_float32


class Diffusion(nn.Module):
    """UNet and VAE with their schedule.

    Training the UNet: `diffusion.unet_output(noisy, timesteps, prompt_embeds, pooled)`, with zero `prompt_embeds` and `pooled`
    for the share of samples that learn the unconditional case.
    """

    def __init__(self, config: DiffusionConfig, unet: Any, vae: Any, scheduler: Mapping[str, Any]) -> None:
        """Take the networks and diffusers' scheduler configuration.

        unet, vae: a UNet2DConditionModel and an AutoencoderKL (diffusers' lazy imports hide the types).
        """
        super().__init__()
        self.config = config
        self.unet: Any = unet
        self.vae: Any = vae
        self.scheduler = dict(scheduler)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one picture's latents."""
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        side = self.config.image_size // factor
        return int(self.unet.config["out_channels"]), side, side

    def unet_output(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor, pooled: Tensor) -> Tensor:
        """latents (B, 4, h, w), timesteps (B,) int64, prompt_embeds (B, Q, E), pooled (B, p) -> (B, 4, h, w).

        A UNet with more input than output channels sees the condition's sketch of the latents (`config.sketched`) and, in
        the rest, where it draws (`coordinates`): preset nano, trained on few pictures, would otherwise spend most of
        them on learning positions from the convolutions' borders and to read a picture through attention.
        """
        weight = self.unet.conv_in.weight
        latents, prompt_embeds, pooled = (part.to(weight) for part in (latents, prompt_embeds, pooled))
        parts = [latents]
        if self.config.sketched:
            parts.append(sketch(prompt_embeds, latents.shape[1], latents.shape[2]))
        extra = int(self.unet.config["in_channels"]) - sum(part.shape[1] for part in parts)
        if extra:
            where = coordinates(extra, latents.shape[2], latents.shape[3]).to(latents)
            parts.append(where.expand(latents.shape[0], -1, -1, -1))
        latents = torch.cat(parts, dim=1)
        time_ids = torch.from_numpy(sdxl_time_ids(1, self.config.image_size)).to(latents).expand(latents.shape[0], 6)
        out: Tensor = self.unet(
            latents,
            timesteps.to(weight.device),
            encoder_hidden_states=prompt_embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample
        return out

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> RGB (B, 3, S, S) about -1..1, in float32."""
        latents = latents.to(self.vae.decoder.conv_in.weight)
        with in_float32(latents.device):
            out: Tensor = self.vae.decode(latents / float(self.vae.config["scaling_factor"]) + self._shift).sample
        return out

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)

    def draw(
        self, prompt_embeds: Tensor, pooled: Tensor, noise: NDArray[np.float32], **options: Any
    ) -> NDArray[np.uint8]:
        """prompt_embeds (B, Q, E), pooled (B, p), noise (B, 4, h, w) -> RGB (B, S, S, 3) uint8.

        `options` are those of `sample`.
        """
        return self._images(torch.from_numpy(self.sample(prompt_embeds, pooled, noise, **options)))

    @torch.no_grad()
    def sample(
        self,
        prompt_embeds: Tensor,
        pooled: Tensor,
        noise: NDArray[np.float32],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """prompt_embeds (B, Q, E), pooled (B, p), noise (B, 4, h, w) -> scaled latents (B, 4, h, w).

        The negative condition of the guidance is zero embeddings; guidance 1 leaves it out.
        progress: called with (steps done, steps).
        """
        schedule = schedule_from_config(self.scheduler, steps or self.config.steps)
        strength = self.config.guidance if guidance is None else guidance
        latents = noise
        for index, timestep in enumerate(schedule.timesteps):
            current = torch.from_numpy(latents)
            if strength == 1.0:
                predicted = self._predict(current, int(timestep), prompt_embeds, pooled)
            else:
                both = self._predict(
                    torch.cat([current, current]),
                    int(timestep),
                    torch.cat([torch.zeros_like(prompt_embeds), prompt_embeds]),
                    torch.cat([torch.zeros_like(pooled), pooled]),
                )
                predicted = guide(both[: len(latents)], both[len(latents) :], strength)
            latents = schedule.step(index, latents, predicted, noise)
            if progress is not None:
                progress(index + 1, len(schedule.timesteps))
        return latents

    def preview(self, prompt_embeds: Tensor) -> NDArray[np.uint8]:
        """prompt_embeds (B, Q, E) -> RGB (B, S, S, 3) uint8: the condition's sketch, without the UNet.

        Raises:
            ValueError: the conditions of this model sketch nothing (`config.sketched`).
        """
        if not self.config.sketched:
            raise ValueError("diffusion.sketched: false; this model's conditions hold no sketch to preview")
        channels, size, _ = self.latent_shape
        return self._images(sketch(prompt_embeds, channels, size))

    @torch.no_grad()
    def _images(self, latents: Tensor) -> NDArray[np.uint8]:
        return to_uint8(self.decode_latents(latents).cpu().numpy())

    def _predict(self, latents: Tensor, timestep: int, prompt_embeds: Tensor, pooled: Tensor) -> NDArray[np.float32]:
        timesteps = torch.full((len(latents),), timestep, dtype=torch.int64)
        out: NDArray[np.float32] = self.unet_output(latents, timesteps, prompt_embeds, pooled).float().cpu().numpy()
        return out


def sketch(prompt_embeds: Tensor, channels: int, size: int) -> Tensor:
    """prompt_embeds (B, Q, E) -> (B, channels, size, size).

    Query q's first numbers are cell q of the grid, row by row.

    Zero embeddings, the negative condition, give a zero sketch.
    """
    side = round(prompt_embeds.shape[1] ** 0.5)
    cell = size // side
    cells = prompt_embeds[..., : channels * cell * cell].reshape(-1, side, side, channels, cell, cell)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, size, size)


def cells(latents: Tensor, queries: int) -> Tensor:
    """latents (B, channels, size, size) -> (B, queries, channels * cell * cell), the inverse of `sketch`."""
    batch, channels, size = latents.shape[:3]
    side = round(queries**0.5)
    cell = size // side
    parts = latents.reshape(batch, channels, side, cell, side, cell)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(batch, queries, -1)


def coordinates(channels: int, height: int, width: int) -> Tensor:
    """Fixed maps (1, channels, h, w): x and y in -1..1, then their sines and cosines.

    Frequencies double from one pair to the next.

    Raises:
        ValueError: channels is not 2, 6, 10, ...
    """
    if channels < 2 or (channels - 2) % 4:
        raise ValueError(
            f"unet.in_channels: {channels} channels past the latents' cannot be coordinates; use 2, 6, 10, ..."
        )
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    maps = [columns, rows]
    for power in range((channels - 2) // 4):
        maps += [wave(math.pi * 2**power * axis) for axis in (columns, rows) for wave in (torch.sin, torch.cos)]
    return torch.stack(maps)[None]


def new_diffusion(config: DiffusionConfig) -> Diffusion:
    """A diffusion model with random weights from the configured constructor arguments.

    Raises:
        ValueError: the configuration has none (preset lavit-7b: load a checkpoint).
    """
    if not config.unet or not config.vae:
        raise ValueError(
            "diffusion.unet and diffusion.vae: no constructor arguments; load this preset from a checkpoint"
        )
    unet: Any = UNet2DConditionModel
    vae: Any = AutoencoderKL
    return Diffusion(config, unet(**config.unet), vae(**config.vae), config.scheduler)
