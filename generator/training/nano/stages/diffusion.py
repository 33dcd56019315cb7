"""Stage `diffusion`: the UNet draws latents from the token decoder's conditions.

Of a thing in a style in which it was never drawn the decoder's sketch is a guess from its other drawings, and a UNet that has
seen only sketches of what was learned by heart believes it to the last blur. So half of the sketches are such guesses, of
drawings that are known: there the UNet learns what to make of one. And a share of what it draws are things in a style in which
they were never drawn: the guess then stands for the drawing, too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from generator.pigeon.ddim import DdimSchedule
from generator.pigeon.decoder import CodeDecoder
from generator.pigeon.diffusion import Diffusion, cells
from generator.pigeon.model import PigeonModel
from generator.pigeon.placement import Placement
from generator.training.nano.imputation.latent_critic import Critic, Critique, Latents
from generator.training.nano.stages.codes import CodeCache
from generator.training.nano.world import World
from generator.training.processes import ProcessGroup
from generator.training.trainer import Part, Trainer, TrainerConfig

DROPPED_SHARE = 0.1
OTHER_STYLE_SHARE = 0.4
GUESSED_SHARE = 0.5
UNSEEN_SHARE = 0.6
"""Share of the rows that take a style in which the thing was never drawn, where there is one: of three things in seven."""
MISTAKEN_WEIGHT, UNLIKE_WEIGHT = 0.05, 0.1
"""Weights of the critique's two losses, beside the squared distance from the drawing."""
NOISY_HALF_SHARE = 0.6
"""Extra share of samples in the noisier half of the schedule, where what is drawn is decided."""


class DiffusionTask(nn.Module):
    """The modules that learn: the UNet and the decoder's pooled condition.

    The prompt_embeds are the tokenizer stage's, frozen, because the language model's reference condition is made of them.
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
    model: PigeonModel,
    codes: CodeCache,
    latents: Latents,
    imputed: Latents,
    critic: Critic,
    config: TrainerConfig,
    batch: int = 16,
    placement: Placement | None = None,
) -> None:
    """Train the UNet by v-prediction on cached latents (concepts, styles, palettes, 4, h, w).

    Half of the sketches are `imputed`, of the latents' shape, which is also what is drawn of drawings that may not be seen; a tenth of
    the conditions are dropped (zero). The critic compares the picture that a prediction under conditions means with the drawing, and with
    the concept's drawings in other styles: squares alone are content with a blur.
    """
    diffusion, decoder = model.diffusion, model.code_decoder
    task = DiffusionTask(diffusion, decoder)
    placement = placement or Placement()
    put = placement.put
    critique, group = Critique(critic, world, latents, imputed), ProcessGroup.join(placement.device().type)
    alphas = training_alphas(dict(diffusion.scheduler))

    def loss(step: int, rng: np.random.Generator) -> Part:
        drawn, unseen = world.some_unseen(world.sample(batch, rng), UNSEEN_SHARE, rng)
        mixed = codes.mixed(world, drawn, rng, OTHER_STYLE_SHARE)
        by_guess, kept_rows = rng.random(batch) < GUESSED_SHARE, rng.random(batch) >= DROPPED_SHARE
        noisiest = rng.random(batch) < NOISY_HALF_SHARE
        times = rng.integers(np.where(noisiest, len(alphas) // 2, 0), len(alphas))
        noise = torch.randn(batch, *latents.shape[3:])
        (mine,) = group.parts(batch)
        triple = (drawn[0][mine], drawn[1][mine], drawn[2][mine])
        rows, noise, timesteps = mixed[mine], noise[mine], torch.from_numpy(times[mine])
        imagined = imputed[triple]
        drawing = np.where(unseen[mine, None, None, None], imagined, latents[triple])
        clean = put(drawing.astype(np.float32))
        embeds, pooled = decoder(rows, torch.full((len(rows),), rows.shape[1]))
        guess = cells(put(imagined.astype(np.float32)), embeds.shape[1])  # (B, Q, numbers of a cell)
        numbers = guess.shape[2]
        guessed = put(by_guess[mine])[:, None, None]
        embeds = torch.cat([torch.where(guessed, guess, embeds[..., :numbers]), embeds[..., numbers:]], dim=2)
        kept = put(kept_rows[mine]).float()
        embeds, pooled = embeds * kept[:, None, None], pooled * kept[:, None]
        signal = put(alphas[timesteps].sqrt()[:, None, None, None])
        noise_level = put((1 - alphas[timesteps]).sqrt()[:, None, None, None])
        noise = put(noise)
        noisy = signal * clean + noise_level * noise
        predicted = diffusion.unet_output(noisy, timesteps, embeds, pooled)
        wanted = signal * noise - noise_level * clean
        squares = (predicted - wanted).square().mean(dim=(1, 2, 3)).sum() / batch
        meant = signal * noisy - noise_level * predicted
        # Without a condition nothing is right but the squares.
        mistaken, unlike = ((kept * part).sum() / batch for part in critique(triple, meant))
        figures = {"squares": squares, "mistaken": mistaken, "unlike": unlike}
        total = squares + MISTAKEN_WEIGHT * mistaken + UNLIKE_WEIGHT * unlike
        return total, {name: float(figure.detach()) for name, figure in figures.items()}

    Trainer(task, loss, folder, config, placement).run()
