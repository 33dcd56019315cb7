"""Stage `decoder`: the token decoder learns from codes the latents and the words of their pictures.

Both stand in its prompt_embeds.

Trained on the frozen tokenizer's cached codes it sees many times more pictures per second than the UNet does: what is
known of a drawing is learned here, cheaply, and the UNet has to place and sharpen it. Of a drawing that training may not
see, what stage `imputer` guesses from the thing's other drawings is learned in its place. The words keep the mean of the
prompt_embeds, the language model's reference condition, a name of the concept; also when part of the codes is masked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.config import PigeonConfig
from generator.pigeon.decoder import CodeDecoder, HighresVQDecoder
from generator.pigeon.diffusion import sketch
from generator.pigeon.model import PigeonModel
from generator.pigeon.placement import Placement
from generator.training.nano.imputation.latent_critic import taken_for_another
from generator.training.nano.stages.codes import CodeCache
from generator.training.nano.world import World
from generator.training.trainer import Trainer, TrainerConfig

LATENT_SIDE = 16
LATENT_CHANNELS = 4
WORDS_WEIGHT = 0.03
MISTAKEN_WEIGHT = 0.1
MASKED_WORDS_WEIGHT = 0.1
OTHER_STYLE_SHARE = 0.6
GUESSED_SHARE = 0.3
"""Share of the rows that take a style in which the thing was never drawn, where there is one: of three things in seven."""
MASKED_SHARE = 0.15
"""Share of the steps that decode as for a reference and learn the words only; half of them lack a random part of the codes."""


class DecoderTask(nn.Module):
    """Token decoder and the heads that only training needs."""

    def __init__(self, config: PigeonConfig, words: int) -> None:
        super().__init__()
        self.decoder = HighresVQDecoder(config.decoder, config.tokenizer.code_dim)
        width = config.decoder.prompt_width
        self.word_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, words))

    def latents(self, embeds: Tensor) -> Tensor:
        """prompt_embeds (B, Q, C) -> latents (B, 4, 16, 16), which their first numbers are."""
        return sketch(embeds, LATENT_CHANNELS, LATENT_SIDE)


def build_decoder_task(config: PigeonConfig, world: World) -> DecoderTask:
    """A fresh task of this preset."""
    return DecoderTask(config, len(world.concepts) + len(world.styles) + len(world.palettes))


def train_decoder(
    folder: Path,
    world: World,
    model: PigeonModel,
    codes: CodeCache,
    latents: npt.NDArray[np.float16],
    imputed: npt.NDArray[np.float16],
    config: TrainerConfig,
    batch: int = 32,
    placement: Placement | None = None,
) -> None:
    """Train the model's token decoder on cached codes and latents; its codebook stays as it is.

    latents: (concepts, styles, palettes, 4, 16, 16).

    imputed: of the latents' shape, for the drawings that may not be seen.
    """
    task = build_decoder_task(model.config, world)
    task.decoder.load_state_dict(model.code_decoder.decoder.state_dict())
    placement = placement or Placement()
    put = placement.put
    task.to(placement.device())
    decoder = CodeDecoder(task.decoder, put(model.code_decoder.codebook))
    sizes = [len(world.concepts), len(world.styles), len(world.palettes)]

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        triple, guessed = world.some_unseen(world.sample(batch, rng), GUESSED_SHARE, rng)
        concept, _, palette = triple
        rows = codes.mixed(world, triple, rng, OTHER_STYLE_SHARE)
        masked = rng.random() < MASKED_SHARE
        if masked:
            keep = torch.from_numpy(rng.random(rows.shape) < rng.choice([rng.uniform(0.3, 1.0), 1.0])).float()
            keep[:, 0] = 1.0
            embeds = decoder.decode_kept(put(rows), put(keep))
        else:
            embeds, _ = decoder(rows, torch.full((batch,), rows.shape[1]))
        logits = torch.split(task.word_head(embeds.mean(dim=1)), sizes, dim=1)
        truths = [put(part) for part in triple]
        words = torch.stack([F.cross_entropy(given, truth) for given, truth in zip(logits, truths, strict=True)]).sum()
        right = [float((given.argmax(1) == truth).float().mean()) for given, truth in zip(logits, truths, strict=True)]
        if masked:
            return MASKED_WORDS_WEIGHT * words, {"masked_concept": right[0]}
        known = np.where(guessed[:, None, None, None], imputed[triple], latents[triple])
        wanted = put(known.astype(np.float32))
        made = task.latents(embeds)
        image = F.mse_loss(made, wanted)
        # The thing in all styles; what may not be seen counts where it is asked for, as it was guessed.
        drawings = put(latents[concept, :, palette].astype(np.float32))
        every = torch.arange(batch, device=drawings.device)
        drawings[every, truths[1]] = wanted
        counts = put(world.trained[concept]).float()
        counts[every, truths[1]] = 1.0
        taken, _ = taken_for_another(made.flatten(1), drawings.flatten(2), truths[1], counts)
        mistaken = taken.mean()
        figures = {
            "latents": float(image.detach()),
            "mistaken": float(mistaken.detach()),
            "concept_accuracy": right[0],
            "style_accuracy": right[1],
        }
        return image + WORDS_WEIGHT * words + MISTAKEN_WEIGHT * mistaken, figures

    Trainer(task, loss, folder, config, placement).run()
