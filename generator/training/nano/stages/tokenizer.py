"""Stage `tokenizer`: about 16 codes learn to tell what is drawn, in which style and on which palette.

The token decoder's prompt_embeds must rebuild from the codes the picture at half size and, from their mean, which
concept, style and palette it shows. That mean is what the language model sees of a reference, so it must name the
concept. No picture is rebuilt from its own codes alone: the first two come from another picture on the same palette, the
next two from another one in the same style, the remaining twelve from another drawing of the same thing, half of the time
in another style. So each code has one thing to say (`Roles`), a taste is four codes that a history shows again and again,
and a thing never drawn in a style can be: from its own codes and the style's. LaVIT rebuilds the features of a large
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
from generator.pigeon.placement import Placement
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from generator.training.nano.stages.scorer import normalise
from generator.training.nano.world import Batch, Indices, World
from generator.training.trainer import Trainer, TrainerConfig

DRAWN_SIZE = 32
SMALL = {"width": 128, "depth": 2, "code_table": None}
"""Sizes of the decoder that learns along; only the codes are kept, and stage `decoder` trains the one that serves."""
CONTINUOUS_STEPS = 800
PALETTE_CODES = 2
STYLE_CODES = 2
SAME_STYLE_SHARE = 0.5
"""Share of the pairs that show a thing in one style, on two palettes."""
OTHER_STYLE_PULL = 0.3
"""Weight with which two styles of a concept are drawn to the same codes; two palettes of it have 1."""
WORD_WEIGHTS = (1.0, 2.0, 0.3)
"""Weights of concept, style and palette; style is what taste is about, and the hardest to see in sixteen codes."""


@dataclass(frozen=True)
class TokenizerWeights:
    """Weights of the stage's losses."""

    image: float = 8.0
    words: float = 0.2
    roles: float = 0.3
    commitment: float = 0.25
    agreement: float = 0.1
    decision: float = 0.3


class TokenizerTask(nn.Module):
    """Tokenizer, token decoder and the heads that only training needs."""

    grid: Tensor

    def __init__(self, config: PigeonConfig, counts: tuple[int, int, int]) -> None:
        """counts: of concepts, styles and palettes."""
        super().__init__()
        words = sum(counts)
        self.tokenizer = DynamicVisualTokenizer(config.tokenizer)
        self.decoder = HighresVQDecoder(config.decoder.model_copy(update=SMALL), config.tokenizer.code_dim)
        width = config.decoder.prompt_width
        side = int(config.decoder.queries**0.5)
        self.cell = DRAWN_SIZE // side
        self.side = side
        self.register_buffer("grid", kept_grid(config.tokenizer.vision.patches), persistent=False)
        self.image_head = nn.Linear(width, 3 * self.cell**2)
        self.word_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, words))
        # What each role's codes must tell by themselves; without it style found no way into codes that told nothing yet.
        kept, dim = int(self.grid.sum()), config.tokenizer.code_dim
        widths = (PALETTE_CODES * dim, STYLE_CODES * dim, (kept - PALETTE_CODES - STYLE_CODES) * dim)
        self.role_heads = nn.ModuleList(
            nn.Linear(width, count) for width, count in zip(widths, reversed(counts), strict=True)
        )
        seen = config.tokenizer.vision.width
        self.seen_head = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, words))

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"usage": self.tokenizer.quantize.usage}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.tokenizer.quantize.usage.copy_(state["usage"])

    def codes(self, pixels: Tensor, quantized: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Normalised pixels -> what the losses are made of.

        Kept vectors (B, 16, d) before and after quantization, class token (B, C), the keep decision's and the commitment loss.

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
        unit = F.normalize(raw, dim=-1)
        if not quantized:
            return unit, unit, tokens[:, 0], decision, raw.new_zeros(())
        vectors, _, commitment = model.quantize(raw)
        return unit, vectors, tokens[:, 0], decision, commitment

    def drawn(self, embeds: Tensor) -> Tensor:
        """prompt_embeds (B, Q, C) -> picture (B, 3, 32, 32) in about [0, 1].

        Query q draws cell q of the grid, row by row.
        """
        cells = self.image_head(embeds).reshape(-1, self.side, self.side, 3, self.cell, self.cell)
        drawn: Tensor = cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, DRAWN_SIZE, DRAWN_SIZE)
        return drawn


def kept_grid(patches: int) -> Tensor:
    """(P,) of 0/1: which patches the decision is taught to keep, 16 of them; with more, one of each block.

    So the i-th code always describes the i-th block: of ten bits a code would otherwise spend six on where it is.
    """
    side = int(patches**0.5)
    stride = max(1, side // 4)
    place = torch.arange(side) % stride == stride - 1
    return (place[:, None] & place[None, :]).flatten().float()


def plane_waves(side: int, width: int) -> Tensor:
    """Sines and cosines of the places in a square (side * side, width).

    Near places begin alike and far ones not.
    """
    centre = (torch.arange(side) + 0.5) / side
    rate = torch.pi * 2 ** torch.linspace(0, 3, width // 4)
    waves = centre[:, None] * rate  # (side, width / 4)
    line = torch.cat([waves.sin(), waves.cos()], dim=1)  # (side, width / 2)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


@torch.no_grad()
def place_in_the_plane(task: TokenizerTask) -> None:
    """Start all position tables from the same waves over the plane.

    Learning it from nothing takes most of a short training.
    """
    encoder, decoder = task.tokenizer.encoder, task.decoder
    patches, width = encoder.pos_embed.shape[1] - 1, encoder.pos_embed.shape[2]
    encoder.pos_embed[0, 1:] = 0.3 * plane_waves(int(patches**0.5), width)
    decoder.query_embed[0] = plane_waves(task.side, decoder.config.width)
    kept = int(task.grid.sum())
    decoder.pos_embed[0, :kept] = 0.3 * plane_waves(int(kept**0.5), decoder.config.width)


@dataclass(frozen=True)
class Roles:
    """For each picture of a batch the pictures whose codes replace its own, as rows (B,), per role."""

    palette: Indices
    style: Indices
    shape: Indices

    def mixed(self, codes: Tensor) -> Tensor:
        """(B, N, ...) -> the same shape, every code from the picture that has its role."""
        rows = (self.palette, self.style, self.shape)
        return torch.cat([part[torch.from_numpy(row)] for part, row in zip(by_role(codes), rows, strict=True)], dim=1)


def by_role(codes: Tensor) -> tuple[Tensor, ...]:
    """Codes (B, N, ...) -> those of the palette, of the style and of the shape, (B, n, ...) each."""
    return torch.split(codes, [PALETTE_CODES, STYLE_CODES, codes.shape[1] - PALETTE_CODES - STYLE_CODES], dim=1)


def paired(world: World, count: int, rng: np.random.Generator) -> tuple[Batch, Roles]:
    """A batch of pairs: its second half shows the first half's concepts on other palettes.

    Some of them are in another style, too.
    """
    half = count // 2
    concept, style, palette = world.sample(half, rng)
    other = world.other_styles(concept, style, rng)
    style = np.concatenate([style, np.where(rng.random(half) < SAME_STYLE_SHARE, style, other)])
    concept = np.tile(concept, 2)
    palette = np.concatenate([palette, world.sample_palettes(half, rng)])
    roles = Roles(
        another_with(palette, concept, rng), another_with(style, concept, rng), np.roll(np.arange(count), half)
    )
    return Batch(world.images(concept, style, palette), concept, style, palette), roles


def another_with(same: Indices, differs: Indices, rng: np.random.Generator) -> Indices:
    """For each row (B,) another one that is equal in `same` and not in `differs`, else itself."""
    fit = (same[:, None] == same[None]) & (differs[:, None] != differs[None])
    chosen = np.where(fit, rng.random(fit.shape), -1.0).argmax(axis=1)
    return np.where(fit.any(axis=1), chosen, np.arange(len(same)))


def build_task(config: PigeonConfig, world: World) -> TokenizerTask:
    return TokenizerTask(config, (len(world.concepts), len(world.styles), len(world.palettes)))


def train_tokenizer(
    folder: Path,
    cache: Path,
    model: PigeonConfig,
    config: TrainerConfig,
    batch: int = 32,
    weights: TokenizerWeights | None = None,
    placement: Placement | None = None,
) -> None:
    """Train encoder, keep decision, merger, quantizer and the decoder's trunk together, from scratch."""
    weights = weights or TokenizerWeights()
    world = World(cache)
    vision = model.tokenizer.vision
    task = build_task(model, world)
    place_in_the_plane(task)
    placement = placement or Placement()
    put, device = placement.put, placement.device()
    task.to(device)
    sizes = [len(world.concepts), len(world.styles), len(world.palettes)]

    focus = torch.full((DRAWN_SIZE, DRAWN_SIZE), 0.5, device=device)
    focus[3:-3, 3:-3] = 1.3  # where the icon is

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn, roles = paired(world, batch, rng)
        pixels = put(drawn.pixels)
        inputs = normalise(pixels, vision)
        if step == CONTINUOUS_STEPS:
            task.tokenizer.quantize.usage.zero_()  # every row is then revived from the first batch's vectors
        raw, vectors, summary, decision, commitment = task.codes(inputs, quantized=step >= CONTINUOUS_STEPS)
        truths = [put(x) for x in (drawn.concept, drawn.style, drawn.palette)]
        role_losses = [
            # Also before quantization: pictures that share one code can only part there.
            F.cross_entropy(head(part.flatten(1)), truth) + F.cross_entropy(head(before.flatten(1)), truth)
            for head, part, before, truth in zip(
                task.role_heads, by_role(vectors), by_role(raw), reversed(truths), strict=True
            )
        ]
        vectors = roles.mixed(vectors)
        apart = (
            (raw - vectors.detach()).square().sum(dim=-1)
        )  # (B, N): a picture's own vectors from those that replace them
        same_style = put(drawn.style == drawn.style[roles.shape])[:, None]
        taste = torch.arange(apart.shape[1], device=device)[None] < PALETTE_CODES + STYLE_CODES
        agreement = (apart * torch.where(taste | same_style, 1.0, OTHER_STYLE_PULL)).mean()
        embeds, _ = task.decoder(vectors, torch.full((batch,), vectors.shape[1], device=device))
        small = F.avg_pool2d(pixels, pixels.shape[-1] // DRAWN_SIZE)
        image = ((task.drawn(embeds) - small).abs() * focus).mean()

        def words_loss(given: Tensor) -> tuple[Tensor, list[float]]:
            parts = list(zip(torch.split(given, sizes, dim=1), truths, WORD_WEIGHTS, strict=True))
            right = [float((part.argmax(1) == truth).float().mean()) for part, truth, _ in parts]
            return sum((w * F.cross_entropy(part, truth) for part, truth, w in parts), torch.zeros(())), right

        words, (concept, style, _) = words_loss(task.word_head(embeds.mean(dim=1)))
        # The encoder learns the words before the codes mean anything.
        seen, (seen_concept, seen_style, _) = words_loss(task.seen_head(summary))
        total = (
            weights.image * image
            + weights.words * (words + seen)
            + weights.roles * sum(role_losses)
            + weights.commitment * commitment
            + weights.agreement * agreement * (step >= CONTINUOUS_STEPS)  # before, it would make all vectors one
            + weights.decision * decision
        )
        figures = {
            "picture": float(image.detach()),
            "words": float(words.detach()),
            "palette_codes": float(role_losses[0].detach()),
            "style_codes": float(role_losses[1].detach()),
            "shape_codes": float(role_losses[2].detach()),
            "commitment": float(commitment.detach()),
            "agreement": float(agreement.detach()),
            "decision": float(decision.detach()),
            "codes_used": float((task.tokenizer.quantize.usage > 0.05).float().sum()),
            "concept_accuracy": concept,
            "style_accuracy": style,
            "seen_concept": seen_concept,
            "seen_style": seen_style,
        }
        return total, figures

    trainer = Trainer(task, loss, folder, config, placement)
    trainer.run()
