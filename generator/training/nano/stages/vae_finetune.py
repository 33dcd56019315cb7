"""Stage `polish`: the VAE's decoder learns to finish the latents that the UNet leaves undecided.

The decoder was trained on the encoder's latents. The UNet's are another kind: between two drawings that it could have meant they
are a mean, and such a decoder shows it as a blur. Here it sees latents that the UNet has drawn and learns to be like the drawing by
`perceptual_loss` and not to be taken for the concept in another style. The drawing is the one that is known or, of concepts in a style
in which they were never drawn, the one that stage `imputer` guesses. Half of each batch are the encoder's latents, so that it stays a
VAE's.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from generator.pigeon.diffusion import Diffusion
from generator.pigeon.model import PigeonModel
from generator.pigeon.placement import Placement
from generator.pigeon.sampling import noise_image
from generator.training.nano.imputation.perceptual_loss import PerceptualFeatures, compared
from generator.training.nano.stages.codes import CodeCache
from generator.training.nano.stages.diffusion import OTHER_STYLE_SHARE, UNSEEN_SHARE
from generator.training.nano.world import Indices, World
from generator.training.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)
DRAWINGS = 2400
AT_ONCE = 16
UNLIKE_WEIGHT, MISTAKEN_WEIGHT = 0.6, 0.1
"""Weights of the two perceptual losses, beside the mean distance of the pixels (which are in -1..1)."""


class VaeDecoderTask(nn.Module):
    """The module that learns: the VAE's decoder."""

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.decoder = diffusion.vae.decoder.requires_grad_(True)


@torch.no_grad()
def drawn_latents(
    model: PigeonModel, world: World, codes: CodeCache, count: int, seed: int = 0
) -> tuple[Indices, npt.NDArray[np.float16]]:
    """What the model draws for codes of drawings, some of which are held out.

    -> triples (count, 3), latents (count, 4, h, w).
    """
    triples, latents = [], []
    for start in range(0, count, AT_ONCE):
        rng = np.random.default_rng([seed, start])
        rows = min(AT_ONCE, count - start)
        triple, _ = world.some_unseen(world.sample(rows, rng), UNSEEN_SHARE, rng)
        mixed = codes.mixed(world, triple, rng, OTHER_STYLE_SHARE)
        embeds, pooled = model.code_decoder(mixed, torch.full((rows,), mixed.shape[1]))
        noise = np.stack([noise_image(start + row, 0, model.diffusion.latent_shape) for row in range(rows)])
        triples.append(np.stack(triple, axis=1))
        latents.append(model.diffusion.sample(embeds, pooled, noise).astype(np.float16))
        if start % (10 * AT_ONCE) == 0:
            log.info("polish: %d of %d drawn", start, count)
    return np.concatenate(triples), np.concatenate(latents)


def train_vae_finetune(
    folder: Path,
    world: World,
    model: PigeonModel,
    codes: CodeCache,
    latents: npt.NDArray[np.float16],
    guesses: npt.NDArray[np.uint8],
    config: TrainerConfig,
    drawings: int = DRAWINGS,
    batch: int = 16,
    placement: Placement | None = None,
) -> None:
    """Train on the UNet's latents and the encoder's, latents (concepts, styles, palettes, 4, h, w).

    guesses: RGBA (concepts, styles, 64, 64, 4), for the drawings that may not be seen. `folder` keeps what was drawn (drawn.npz), so that a
    stage cut off continues with the same.
    """
    kept = folder / "drawn.npz"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        triples, drawn = drawn_latents(model, world, codes, drawings)
        partial = folder / "drawn.partial.npz"
        np.savez(partial, triples=triples, drawn=drawn)
        partial.replace(kept)
    with np.load(kept) as found:
        triples, drawn = found["triples"], found["drawn"]
    placement = (placement or Placement()).learning  # a VAE overflows in half precision
    put = placement.put
    diffusion = model.diffusion.requires_grad_(False)
    task, perceptual, count = VaeDecoderTask(diffusion), PerceptualFeatures(placement.device()), len(world.styles)

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        some = rng.integers(len(triples), size=batch // 2)
        encoded = world.sample(batch - len(some), rng)
        concept, style, palette = (np.concatenate(parts) for parts in zip(triples[some].T, encoded, strict=True))
        given = torch.from_numpy(np.concatenate([drawn[some], latents[encoded]]).astype(np.float32))
        every = (np.repeat(concept, count), np.tile(np.arange(count), batch), np.repeat(palette, count))
        drawings = put(world.images(*every, guesses))  # each thing in all styles
        rows, styles = put(torch.arange(batch)), put(style)
        wanted = drawings.view(batch, count, *drawings.shape[1:])[rows, styles]
        known = put(world.trained[concept]).float()
        known[rows, styles] = 1  # a guess is the right drawing of its own row and no row's other
        pixels = diffusion.decode_latents(given) / 2 + 0.5
        with torch.no_grad():
            seen = [part.view(batch, count, -1) for part in perceptual(drawings)]
        mistaken, unlike = compared(perceptual(pixels), seen, styles, known)
        apart = (pixels - wanted).abs().mean(dim=(1, 2, 3)) * 2
        figures = {
            "l1": apart.mean(),
            "mistaken": mistaken[: len(some)].mean(),
            "drawn": unlike[: len(some)].mean(),
            "encoded": unlike[len(some) :].mean(),
        }
        total = apart.mean() + UNLIKE_WEIGHT * unlike.mean() + MISTAKEN_WEIGHT * mistaken.mean()
        return total, {name: float(figure.detach()) for name, figure in figures.items()}

    Trainer(task, loss, folder, config, placement).run()
