"""Stage `scorer`: the CLIP-like dual encoder that scores candidates.

Both towers learn one direction per concept, style and palette, and from each other (the contrastive loss). Contrasting
with *all* words at once needs far fewer pictures than contrasting with the other captions of a batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from generator.datasets.captions import CAPTION_TEMPLATES, caption, facts_of
from generator.datasets.movies import load_movielens
from generator.datasets.posters import PosterSpec
from generator.pigeon.config import PigeonConfig, VisionConfig
from generator.pigeon.placement import Placement
from generator.pigeon.scorer import ImageScorer, pad_texts
from generator.training.nano.world import Batch, World
from generator.training.trainer import Trainer, TrainerConfig

WORD_WEIGHTS = (1.0, 1.5, 0.3)
"""Weights of concept, style and palette."""
CONTRASTIVE_WEIGHT = 0.3
ANY_SHARE = 0.6
"""Share of the pictures that show any of the 1,170 concepts: what a style is, and what of a concept stays when the style changes,
shows on all of them."""
MOVED_SHARE = 0.6
MIRRORED_SHARE = 0.5
"""Share of the moved pictures that are also mirrored."""
GAIN = 0.2
"""Largest change of a colour channel's strength."""
BLURS = ((2, 0.25), (4, 0.1))
"""Sides of a block of pixels that become one, each with its share of the pictures."""


def normalise(pixels: Tensor, config: VisionConfig) -> Tensor:
    """Pixels (B, 3, S, S) in [0, 1] -> normalised as the encoders expect."""
    mean = torch.tensor(config.pixel_mean).to(pixels.device)[:, None, None]
    std = torch.tensor(config.pixel_std).to(pixels.device)[:, None, None]
    return (pixels - mean) / std


def augmented(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Augment some of the pixels (B, 3, S, S): mirrored, moved, in other light, blurred or with noise.

    Candidates to score are never as clean as the art, and a tower that tells drawings by their exact pixels recognizes none that it has not
    seen.
    """
    count = len(pixels)

    def some(share: float) -> Tensor:
        return torch.from_numpy(rng.random(count) < share)[:, None, None, None]

    turn, scale, right, down = (
        torch.from_numpy(rng.uniform(-1, 1, count)).float() * limit for limit in (0.12, 0.1, 0.12, 0.12)
    )
    cos, sin = turn.cos() * (1 + scale), turn.sin() * (1 + scale)
    frames = torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(frames, list(pixels.shape), align_corners=False)
    frames[:, :, 0] *= torch.from_numpy(np.where(rng.random(count) < MIRRORED_SHARE, -1.0, 1.0)).float()[:, None]
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    pixels = torch.where(some(MOVED_SHARE), moved, pixels)
    pixels = pixels * torch.from_numpy(rng.uniform(1 - GAIN, 1 + GAIN, (count, 3, 1, 1))).float()
    for factor, share in BLURS:
        soft = F.interpolate(F.avg_pool2d(pixels, factor), scale_factor=factor, mode="bilinear")
        pixels = torch.where(some(share), soft, pixels)
    return torch.where(some(0.25), pixels + 0.05 * torch.randn_like(pixels), pixels).clamp(0, 1)


class ScorerTask(nn.Module):
    """The scorer and the words that only training needs."""

    def __init__(self, config: PigeonConfig, counts: tuple[int, int, int]) -> None:
        super().__init__()
        if config.scorer is None:
            raise ValueError("scorer: this preset has none; nothing to train")
        self.scorer = ImageScorer(config.scorer)
        width = config.scorer.feature_width
        self.words = nn.ParameterList(nn.Parameter(torch.randn(count, width) * width**-0.5) for count in counts)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def logits(self, features: Tensor) -> list[Tensor]:
        """(B, F) -> logits over concepts, styles and palettes."""
        scale = self.log_scale.exp().clamp(max=100.0)
        return [scale * features @ F.normalize(words, dim=-1).t() for words in self.words]


class Captions:
    """Captions for pictures: (texts, template numbers)."""

    def __init__(self, world: World, cache: Path) -> None:
        self.world = world
        self.facts = [facts_of(movie) for movie in load_movielens(cache).movies]

    def draw(self, batch: Batch, rng: np.random.Generator) -> tuple[list[str], list[int]]:
        world = self.world
        texts, variants = [], rng.integers(len(CAPTION_TEMPLATES), size=len(batch.concept)).tolist()
        for row, variant in enumerate(variants):
            concept = world.concepts[batch.concept[row]]
            spec = PosterSpec(concept.slug, world.styles[batch.style[row]], world.palettes[batch.palette[row]])
            texts.append(caption(spec, concept, variant, self.facts[rng.integers(len(self.facts))]))
        return texts, variants


def build_scorer_task(config: PigeonConfig, world: World) -> ScorerTask:
    return ScorerTask(config, (len(world.concepts), len(world.styles), len(world.palettes)))


def train_scorer(
    folder: Path,
    cache: Path,
    model: PigeonConfig,
    text_tokenizer: Tokenizer,
    config: TrainerConfig,
    batch: int = 48,
    start: ImageScorer | None = None,
    placement: Placement | None = None,
) -> None:
    """Train both towers, from scratch or from those of `start`."""
    world = World(cache)
    captions = Captions(world, cache)
    task = build_scorer_task(model, world)
    if start is not None:
        task.scorer.load_state_dict(start.state_dict())
    placement = placement or Placement()
    put = placement.put
    task.to(placement.device())
    settings = task.scorer.config
    says_style = [("{style}" in template) for template in CAPTION_TEMPLATES]
    says_palette = [("{colour}" in template) for template in CAPTION_TEMPLATES]

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = world.batch(batch, rng, ANY_SHARE)
        pixels = put(normalise(augmented(torch.from_numpy(drawn.pixels), rng), settings.vision))
        texts, variants = captions.draw(drawn, rng)
        tokens = pad_texts([text_tokenizer.encode(text).ids for text in texts], settings)
        tokens = tokens[:, : int((tokens != settings.pad_id).sum(dim=1).max())]
        image, text = task.scorer.image(pixels), task.scorer.text(tokens)
        truths = [put(x) for x in (drawn.concept, drawn.style, drawn.palette)]
        told = [put(torch.tensor([flags[v] for v in variants])) for flags in ([True] * 99, says_style, says_palette)]
        of_image, of_text = torch.zeros(()), torch.zeros(())
        figures = {}
        names = ("concept", "style", "palette")
        pairs = zip(names, WORD_WEIGHTS, truths, told, task.logits(image), task.logits(text), strict=True)
        for name, weight, truth, said, seen, read in pairs:
            of_image = of_image + weight * F.cross_entropy(seen, truth)
            each = F.cross_entropy(read, truth, reduction="none")
            of_text = of_text + weight * (each * said).sum() / said.sum().clamp(min=1)
            figures[f"{name}_accuracy"] = float((seen.argmax(1) == truth).float().mean())
            figures[f"text_{name}_accuracy"] = (
                float((read.argmax(1) == truth)[said].float().mean()) if said.any() else 0
            )
        numbers = {text: number for number, text in enumerate(texts)}
        same = put(torch.tensor([numbers[text] for text in texts]))
        target = (same[:, None] == same[None]).float()
        scale = task.scorer.logit_scale.exp().clamp(max=100.0)
        both = scale * image @ text.t()
        target = target / target.sum(dim=1, keepdim=True)
        contrast = (F.cross_entropy(both, target) + F.cross_entropy(both.t(), target)) / 2
        figures["contrast"] = float(contrast.detach())
        return of_image + 0.5 * of_text + CONTRASTIVE_WEIGHT * contrast, figures

    Trainer(task, loss, folder, config, placement).run()
