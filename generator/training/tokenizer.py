"""Stage `tokenizer`: keep, merge and quantize, so that about 16 codes say what is drawn, how and on what.

The token decoder's prompt_embeds must rebuild from the codes the picture at half size and, from their mean, which
concept, style and palette it shows. That mean is what the language model sees of a reference, so it must name the
concept. Pictures come in pairs of one drawing on two backgrounds, and each is rebuilt from its own outer codes (two at the
top left, two at the bottom right) and the other's remaining ones: so the outer ones say what the background is and the
rest what is drawn, which makes a drawing's codes the same on every background. LaVIT rebuilds the features of a large
pretrained encoder instead; ours is trained here, with the rest.
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
from generator.training.pictures import Batch, World
from generator.training.scorer import normalise
from generator.training.trainer import Trainer, TrainerConfig

DRAWN_SIZE = 32
SMALL = {"width": 128, "depth": 2}
"""Of the decoder that learns along: only the codes are kept, and stage `decoder` trains the one that serves."""
CONTINUOUS_STEPS = 800
WORD_WEIGHTS = (1.0, 2.0, 0.3)
"""Concept, style, palette: style is what taste is about, and the hardest to see in sixteen codes."""


@dataclass(frozen=True)
class TokenizerWeights:
    """Weights of the stage's losses."""

    picture: float = 8.0
    words: float = 0.2
    commitment: float = 0.25
    decision: float = 0.3


class TokenizerTask(nn.Module):
    """Tokenizer, token decoder and the heads that only training needs."""

    grid: Tensor
    outer: Tensor

    def __init__(self, config: PigeonConfig, words: int) -> None:
        super().__init__()
        self.tokenizer = DynamicVisualTokenizer(config.tokenizer)
        self.decoder = HighresVQDecoder(config.decoder.model_copy(update=SMALL), config.tokenizer.code_dim)
        width = config.decoder.prompt_width
        side = int(config.decoder.queries**0.5)
        self.cell = DRAWN_SIZE // side
        self.side = side
        self.register_buffer("grid", kept_grid(config.tokenizer.vision.patches), persistent=False)
        outer = torch.zeros(int(self.grid.sum()))
        outer[[0, 1, -2, -1]] = 1.0
        self.register_buffer("outer", outer, persistent=False)
        self.picture_head = nn.Linear(width, 3 * self.cell**2)
        self.word_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, words))
        seen = config.tokenizer.vision.width
        self.seen_head = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, words))

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"usage": self.tokenizer.quantize.usage}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.tokenizer.quantize.usage.copy_(state["usage"])

    def codes(self, pixels: Tensor, quantized: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised pixels -> kept code vectors (B, 16, d), class token (B, C), keep decision's and commitment loss.

        Without `quantized` the vectors stay continuous: a codebook that follows an untrained encoder collapses.
        """
        model = self.tokenizer
        tokens = model.encoder(pixels)
        features = tokens[:, 1:]
        keep = self.grid.expand(len(pixels), -1)
        # Taught, not found by straight-through gradients: those of 64 hard decisions drowned everything else at this size.
        logprobs = model.token_predictor(features)
        decision = F.nll_loss(logprobs.flatten(0, 1), (1 - keep).long().flatten())
        raw = model.encode_task_layer(model.causal_encoder(features, keep))[:, self.grid > 0]
        if not quantized:
            return F.normalize(raw, dim=-1), tokens[:, 0], decision, raw.new_zeros(())
        vectors, _, commitment = model.quantize(raw)
        return vectors, tokens[:, 0], decision, commitment

    def drawn(self, embeds: Tensor) -> Tensor:
        """prompt_embeds (B, Q, C) -> picture (B, 3, 32, 32) in about [0, 1]; query q draws cell q of the grid, row by row."""
        cells = self.picture_head(embeds).reshape(-1, self.side, self.side, 3, self.cell, self.cell)
        drawn: Tensor = cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, DRAWN_SIZE, DRAWN_SIZE)
        return drawn


def kept_grid(patches: int) -> Tensor:
    """(P,) of 0/1: which patches the decision is taught to keep, 16 of them; with more, one of each block.

    So the i-th code always speaks of the i-th block: of ten bits a code would otherwise spend six on saying where it is.
    """
    side = int(patches**0.5)
    stride = max(1, side // 4)
    place = torch.arange(side) % stride == stride - 1
    return (place[:, None] & place[None, :]).flatten().float()


def plane_waves(side: int, width: int) -> Tensor:
    """(side * side, width): sines and cosines of the place in a square, so that near places begin alike and far ones not."""
    centre = (torch.arange(side) + 0.5) / side
    rate = torch.pi * 2 ** torch.linspace(0, 3, width // 4)
    waves = centre[:, None] * rate  # (side, width / 4)
    line = torch.cat([waves.sin(), waves.cos()], dim=1)  # (side, width / 2)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


@torch.no_grad()
def place_in_the_plane(task: TokenizerTask) -> None:
    """Start all position tables from one picture of the plane: learning it from nothing takes most of a short training."""
    encoder, decoder = task.tokenizer.encoder, task.decoder
    patches, width = encoder.pos_embed.shape[1] - 1, encoder.pos_embed.shape[2]
    encoder.pos_embed[0, 1:] = 0.3 * plane_waves(int(patches**0.5), width)
    decoder.query_embed[0] = plane_waves(task.side, decoder.config.width)
    kept = int(task.grid.sum())
    decoder.pos_embed[0, :kept] = 0.3 * plane_waves(int(kept**0.5), decoder.config.width)


def paired(world: World, count: int, rng: np.random.Generator) -> Batch:
    """A batch whose second half shows the first half's drawings on other palettes."""
    concept, style, palette = world.sample(count // 2, rng)
    concept, style = np.tile(concept, 2), np.tile(style, 2)
    palette = np.concatenate([palette, world.sample_palettes(count // 2, rng)])
    return Batch(world.pictures(concept, style, palette), concept, style, palette)


def build_task(config: PigeonConfig, world: World) -> TokenizerTask:
    return TokenizerTask(config, len(world.concepts) + len(world.styles) + len(world.palettes))


def train_tokenizer(
    folder: Path,
    cache: Path,
    model: PigeonConfig,
    config: TrainerConfig,
    batch: int = 32,
    weights: TokenizerWeights | None = None,
) -> None:
    """Train encoder, keep decision, merger, quantizer and the token decoder's trunk together, from scratch."""
    weights = weights or TokenizerWeights()
    world = World(cache)
    vision = model.tokenizer.vision
    task = build_task(model, world)
    place_in_the_plane(task)
    sizes = [len(world.concepts), len(world.styles), len(world.palettes)]

    focus = torch.full((DRAWN_SIZE, DRAWN_SIZE), 0.5)
    focus[3:-3, 3:-3] = 1.3  # where the icon is

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = paired(world, batch, rng)
        pixels = torch.from_numpy(drawn.pixels)
        inputs = normalise(pixels, vision)
        if step == CONTINUOUS_STEPS:
            task.tokenizer.quantize.usage.zero_()  # every row is then revived from the first batch's vectors
        vectors, summary, decision, commitment = task.codes(inputs, quantized=step >= CONTINUOUS_STEPS)
        # Everything but the outer codes comes from the same drawing on another background.
        outer = task.outer[None, :, None]
        vectors = vectors * outer + vectors.roll(batch // 2, dims=0) * (1 - outer)
        embeds, _ = task.decoder(vectors, torch.full((batch,), vectors.shape[1]))
        small = F.avg_pool2d(pixels, pixels.shape[-1] // DRAWN_SIZE)
        picture = ((task.drawn(embeds) - small).abs() * focus).mean()
        truths = [torch.from_numpy(x) for x in (drawn.concept, drawn.style, drawn.palette)]

        def words_loss(given: Tensor) -> tuple[Tensor, list[float]]:
            parts = list(zip(torch.split(given, sizes, dim=1), truths, WORD_WEIGHTS, strict=True))
            right = [float((part.argmax(1) == truth).float().mean()) for part, truth, _ in parts]
            return sum((w * F.cross_entropy(part, truth) for part, truth, w in parts), torch.zeros(())), right

        words, (concept, style, _) = words_loss(task.word_head(embeds.mean(dim=1)))
        # The encoder learns the words before the codes mean anything.
        seen, (seen_concept, seen_style, _) = words_loss(task.seen_head(summary))
        total = (
            weights.picture * picture
            + weights.words * (words + seen)
            + weights.commitment * commitment
            + weights.decision * decision
        )
        figures = {
            "picture": float(picture.detach()),
            "words": float(words.detach()),
            "commitment": float(commitment.detach()),
            "decision": float(decision.detach()),
            "codes_used": float((task.tokenizer.quantize.usage > 0.05).float().sum()),
            "concept_accuracy": concept,
            "style_accuracy": style,
            "seen_concept": seen_concept,
            "seen_style": seen_style,
        }
        return total, figures

    trainer = Trainer(task, loss, folder, config)
    trainer.run()
