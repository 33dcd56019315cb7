"""Stage `tokenizer`: keep, merge and quantize, so that about 16 codes say what is drawn, how and on what.

The token decoder's prompt_embeds must rebuild from the codes the picture at half size and, from their mean, which
concept, style and palette it shows. That mean is what the language model sees of a reference, so it must name the
concept. LaVIT rebuilds the features of a large pretrained encoder instead; ours is trained here, with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.config import PigeonConfig
from generator.pigeon.decoder import HighresVQDecoder
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from generator.training.scorer import normalise
from generator.training.pictures import World
from generator.training.trainer import Trainer, TrainerConfig

DRAWN_SIZE = 32
CONTINUOUS_STEPS = 600
WORD_WEIGHTS = (1.0, 2.0, 0.3)
"""Concept, style, palette: style is what taste is about, and the hardest to see in sixteen codes."""


@dataclass(frozen=True)
class TokenizerWeights:
    """Weights of the stage's losses."""

    picture: float = 4.0
    words: float = 0.2
    commitment: float = 0.25
    decision: float = 0.3


class TokenizerTask(nn.Module):
    """Tokenizer, token decoder and the heads that only training needs."""

    grid: Tensor

    def __init__(self, config: PigeonConfig, words: int) -> None:
        super().__init__()
        self.tokenizer = DynamicVisualTokenizer(config.tokenizer)
        self.decoder = HighresVQDecoder(config.decoder, config.tokenizer.code_dim)
        width = config.decoder.prompt_width
        side = int(config.decoder.queries**0.5)
        self.cell = DRAWN_SIZE // side
        self.side = side
        self.register_buffer("grid", kept_grid(config.tokenizer.vision.patches), persistent=False)
        self.picture_head = nn.Linear(width, 3 * self.cell**2)
        self.word_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, words))

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"usage": self.tokenizer.quantize.usage}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.tokenizer.quantize.usage.copy_(state["usage"])

    def codes(self, pixels: Tensor, quantized: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised pixels -> kept code vectors (B, 16, d), keep decision's loss, commitment loss.

        Without `quantized` the vectors stay continuous: a codebook that follows an untrained encoder collapses.
        """
        model = self.tokenizer
        features = model.features(pixels)
        keep = self.grid.expand(len(pixels), -1)
        # Taught, not found by straight-through gradients: those of 64 hard decisions drowned everything else at this size.
        logprobs = model.token_predictor(features)
        decision = F.nll_loss(logprobs.flatten(0, 1), (1 - keep).long().flatten())
        raw = model.encode_task_layer(model.causal_encoder(features, keep))[:, self.grid > 0]
        if not quantized:
            return F.normalize(raw, dim=-1), decision, raw.new_zeros(())
        vectors, _, commitment = model.quantize(raw)
        return vectors, decision, commitment

    def drawn(self, embeds: Tensor) -> Tensor:
        """prompt_embeds (B, Q, C) -> picture (B, 3, 32, 32) in about [0, 1]; query q draws cell q of the grid, row by row."""
        cells = self.picture_head(embeds).reshape(-1, self.side, self.side, 3, self.cell, self.cell)
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, DRAWN_SIZE, DRAWN_SIZE)


def kept_grid(patches: int) -> Tensor:
    """(P,) of 0/1: one patch of each 2x2 block. The decision is taught to keep these, so that the i-th code always
    speaks of the i-th block: of ten bits a code would otherwise spend six on saying where it is.
    """
    side = int(patches**0.5)
    place = torch.arange(side) % 2 == 1
    return (place[:, None] & place[None, :]).flatten().float()


def build_task(config: PigeonConfig, world: World) -> TokenizerTask:
    return TokenizerTask(config, len(world.concepts) + len(world.styles) + len(world.palettes))


def train_tokenizer(
    folder: Path,
    cache: Path,
    model: PigeonConfig,
    config: TrainerConfig,
    batch: int = 16,
    weights: TokenizerWeights | None = None,
) -> None:
    """Train encoder, keep decision, merger, quantizer and the token decoder's trunk together, from scratch."""
    weights = weights or TokenizerWeights()
    world = World(cache)
    vision = model.tokenizer.vision
    task = build_task(model, world)
    sizes = [len(world.concepts), len(world.styles), len(world.palettes)]

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = world.batch(batch, rng)
        pixels = torch.from_numpy(drawn.pixels)
        inputs = normalise(pixels, vision)
        if step == CONTINUOUS_STEPS:
            task.tokenizer.quantize.usage.zero_()  # every row is then revived from the first batch's vectors
        vectors, decision, commitment = task.codes(inputs, quantized=step >= CONTINUOUS_STEPS)
        embeds, _ = task.decoder(vectors, torch.full((batch,), vectors.shape[1]))
        small = F.avg_pool2d(pixels, pixels.shape[-1] // DRAWN_SIZE)
        picture = (task.drawn(embeds) - small).abs().mean()
        logits = task.word_head(embeds.mean(dim=1)).split(sizes, dim=1)
        truths = [torch.from_numpy(x) for x in (drawn.concept, drawn.style, drawn.palette)]
        words = torch.stack([F.cross_entropy(given, truth) for given, truth in zip(logits, truths, strict=True)])
        total = (
            weights.picture * picture
            + weights.words * (words * torch.tensor(WORD_WEIGHTS)).sum()
            + weights.commitment * commitment
            + weights.decision * decision
        )
        concept, style, _ = (
            float((given.argmax(1) == truth).float().mean()) for given, truth in zip(logits, truths, strict=True)
        )
        figures = {
            "picture": float(picture.detach()),
            "words": float(words.sum().detach()),
            "commitment": float(commitment.detach()),
            "decision": float(decision.detach()),
            "codes_used": float((task.tokenizer.quantize.usage > 0.05).float().sum()),
            "concept_accuracy": concept,
            "style_accuracy": style,
        }
        return total, figures

    trainer = Trainer(task, loss, folder, config)
    trainer.run()
