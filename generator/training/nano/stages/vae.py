"""Stage `vae`: a small AutoencoderKL that turns 64x64 pictures into 16x16x4 latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from generator.pigeon.placement import Placement
from generator.training.nano.world import World
from generator.training.trainer import Trainer, TrainerConfig

KL_WEIGHT = 1e-3
EDGE_WEIGHT = 0.5
COLOUR_WEIGHT = 1.0


def build_vae() -> Any:
    """An untrained VAE: factor 4, 4 latent channels, no attention, whose cost buys nothing on icon art."""
    kind: Any = AutoencoderKL  # diffusers' lazy imports hide its type
    return kind(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


UNIT = "unit"
"""Folder within the stage's: the VAE with latents of unit variance, in diffusers' layout."""


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def train_vae(
    folder: Path, cache: Path, config: TrainerConfig, batch: int = 16, placement: Placement | None = None
) -> None:
    """Train on stickers and posters by L1 and a small KL.

    L1 on pixels, on their finite differences (sharp outlines) and on 4x4 means.
    """
    world = World(cache)
    placement = (placement or Placement()).learning  # a VAE overflows in half precision
    vae = build_vae().to(placement.device())

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pixels = placement.put(world.batch(batch, rng).pixels) * 2 - 1  # (B, 3, 64, 64) in [-1, 1]
        posterior = vae.encode(pixels).latent_dist
        noise = placement.put(torch.randn(posterior.mean.shape))  # the CPU's, as all random numbers
        drawn = vae.decode(posterior.mean + posterior.std * noise).sample
        pixel = (drawn - pixels).abs().mean()
        edge = sum(((a - b).abs().mean() for a, b in zip(edges(drawn), edges(pixels), strict=True)), torch.zeros(()))
        mean, logvar = posterior.mean, posterior.logvar
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        colour = (F.avg_pool2d(drawn, 4) - F.avg_pool2d(pixels, 4)).abs().mean()  # an area's, whatever its lines
        total = pixel + EDGE_WEIGHT * edge + COLOUR_WEIGHT * colour + KL_WEIGHT * kl
        figures = {"l1": pixel, "edge": edge, "colour": colour, "kl": kl, "mse": F.mse_loss(drawn, pixels)}
        return total, {name: float(value.detach()) for name, value in figures.items()}

    Trainer(vae, loss, folder, config, placement).run()


def unit_variance(vae: Any, world: World, images: int = 1024) -> None:
    """Scale the latents to mean 0 and variance 1, by folding that into the convolutions around them.

    A shift and scale per latent channel go into the 1x1 convolutions, exactly, and `scaling_factor` stays 1.
    """
    batch = world.batch(images, np.random.default_rng(1234))
    with torch.no_grad():
        pixels = torch.from_numpy(batch.pixels) * 2 - 1
        means = torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(pixels, 64)])
        shift, scale = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
        into, out = vae.quant_conv, vae.post_quant_conv
        channels = len(shift)
        # z' = (z - shift) / scale: the mean's rows are affine in it, the log-variance's only shift by -2 log(scale).
        into.weight[:channels] /= scale[:, None, None, None]
        into.bias[:channels] = (into.bias[:channels] - shift) / scale
        into.bias[channels:] -= 2 * scale.log()
        out.bias += (out.weight[:, :, 0, 0] * shift).sum(dim=1)
        out.weight *= scale[None, :, None, None]
