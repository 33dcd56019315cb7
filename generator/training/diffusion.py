"""Stage `diffusion`: the UNet draws latents from the token decoder's conditions.

Of a thing in a style in which it was never drawn the decoder's sketch is a guess from its other drawings, and a UNet that has
seen only sketches of what was learned by heart believes it to the last blur. So half of the sketches are such guesses, of
drawings that are known: there the UNet learns what to make of one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.config import PigeonConfig
from generator.pigeon.ddim import DdimSchedule
from generator.pigeon.decoder import CodeDecoder
from generator.pigeon.diffusion import Diffusion, cells
from generator.training.caches import CodeCache
from generator.training.critic import Critic, Critique, Latents
from generator.training.pictures import World
from generator.training.trainer import Part, Trainer, TrainerConfig

DROPPED_SHARE = 0.1
OTHER_STYLE_SHARE = 0.4
GUESSED_SHARE = 0.5
MISTAKEN_WEIGHT, UNLIKE_WEIGHT = 0.05, 0.1
"""Of what the critique says, beside the distance from the drawing."""
NOISY_HALF_SHARE = 0.6
"""Extra share of samples in the noisier half of the schedule, where what is drawn is decided."""


class DiffusionTask(nn.Module):
    """What learns: the UNet and the decoder's pooled condition. The prompt_embeds are the tokenizer stage's, frozen,
    because the language model's reference condition is made of them.
    """

    def __init__(self, diffusion: Diffusion, decoder: CodeDecoder) -> None:
        super().__init__()
        self.unet = diffusion.unet.requires_grad_(True)
        self.decoder = decoder
        decoder.requires_grad_(False)
        decoder.decoder.unet_attnpool.requires_grad_(True)


def training_alphas(scheduler: dict[str, object]) -> Tensor:
    """Cumulative alphas (T,) of the schedule that sampling uses."""
    steps = int(str(scheduler.get("num_train_timesteps", 1000)))
    spaced = DdimSchedule.from_config({**scheduler, "timestep_spacing": "trailing"}, steps)
    return torch.from_numpy(spaced.alphas[::-1].copy()).float()


def train_diffusion(
    folder: Path,
    world: World,
    model: PigeonConfig,
    diffusion: Diffusion,
    decoder: CodeDecoder,
    codes: CodeCache,
    latents: Latents,
    imputed: Latents,
    critic: Critic,
    config: TrainerConfig,
    batch: int = 16,
) -> DiffusionTask:
    """v-prediction on cached latents (concepts, styles, palettes, 4, h, w), half from the sketches `imputed`, of the same shape;
    a tenth of the conditions are dropped (zero). The critic compares the picture that each prediction means with the drawing, and
    with the thing's drawings in other styles: squares alone are content with a blur.
    """
    task = DiffusionTask(diffusion, decoder)
    critique = Critique(critic, world, latents)
    alphas = training_alphas(dict(diffusion.scheduler))

    def loss(step: int, rng: np.random.Generator) -> Part:
        triple = world.sample(batch, rng)
        clean = torch.from_numpy(latents[triple].astype(np.float32))
        rows = codes.mixed(world, triple, rng, OTHER_STYLE_SHARE)
        embeds, pooled = decoder(rows, torch.full((batch,), rows.shape[1]))
        guess = cells(
            torch.from_numpy(imputed[triple].astype(np.float32)), embeds.shape[1]
        )  # (B, Q, numbers of a cell)
        numbers = guess.shape[2]
        guessed = torch.from_numpy(rng.random(batch) < GUESSED_SHARE)[:, None, None]
        embeds = torch.cat([torch.where(guessed, guess, embeds[..., :numbers]), embeds[..., numbers:]], dim=2)
        kept = torch.from_numpy(rng.random(batch) >= DROPPED_SHARE).float()
        embeds, pooled = embeds * kept[:, None, None], pooled * kept[:, None]
        noisiest = rng.random(batch) < NOISY_HALF_SHARE
        timesteps = torch.from_numpy(rng.integers(np.where(noisiest, len(alphas) // 2, 0), len(alphas)))
        signal = alphas[timesteps].sqrt()[:, None, None, None]
        noise_level = (1 - alphas[timesteps]).sqrt()[:, None, None, None]
        noise = torch.randn_like(clean)
        noisy = signal * clean + noise_level * noise
        predicted = diffusion.unet_output(noisy, timesteps, embeds, pooled)
        squares = F.mse_loss(predicted, signal * noise - noise_level * clean)
        # Without a condition nothing is right but the squares.
        mistaken, unlike = (
            (kept * part).sum() / batch for part in critique(triple, signal * noisy - noise_level * predicted)
        )
        figures = {"squares": squares, "mistaken": mistaken, "unlike": unlike}
        total = squares + MISTAKEN_WEIGHT * mistaken + UNLIKE_WEIGHT * unlike
        return total, {name: float(figure.detach()) for name, figure in figures.items()}

    Trainer(task, loss, folder, config).run()
    return task
