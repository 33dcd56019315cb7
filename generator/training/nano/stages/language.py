"""Stages `language` and `alignment`: LLaMA learns to answer in codes, then in a user's taste.

Pretraining packs several drawings into one sequence, all in one user's taste: a short history, then reference text and
embedding and the codes of the picture in that taste, again and again. Every drawing is supervised and is history to the
next. Later steps use the real prompt (five history pictures, one reference, one answer).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generator.datasets.captions import facts_of, with_article
from generator.datasets.movies import load_movielens
from generator.pigeon.decoder import pad_codes
from generator.pigeon.model import PigeonModel
from generator.pigeon.personalizer import Personalizer, TrainingBatch
from generator.pigeon.placement import Placement
from generator.pigeon.prompt import EMBEDDING, IGNORED_LABEL, assemble, mask_inputs, prompt_text_ids
from generator.training.logprobs import Answers, label_logprobs
from generator.training.nano.stages.codes import CodeCache
from generator.training.nano.world import Indices, World
from generator.training.reconstruction import mask_draws, masked_logprobs, train_reconstruction
from generator.training.trainer import Trainer, TrainerConfig

SAME_LOOK_SHARE = 0.3
"""Share of references that are already drawn in the user's style and palette."""
PACKED_LATER = 0.7
"""Share of the later steps that stay packed: a packed row supervises five drawings, a real prompt one."""
NOISE_SHARE = 0.12
"""Share of a history's pictures that ignore the user's taste."""


@dataclass(frozen=True)
class Taste:
    """One simulated user's prompt and its answer, as (concept, style, palette) rows."""

    history: Indices  # (H, 3)
    reference: Indices  # (3,)
    target: Indices  # (3,)


class Prompts:
    """Simulated users and the texts around their pictures."""

    def __init__(self, world: World, cache: Path, model: PigeonModel, codes: CodeCache) -> None:
        self.world, self.model, self.codes = world, model, codes
        movies = load_movielens(cache).movies
        self.titles = [movie.title for movie in movies]
        self.facts = [facts_of(movie) for movie in movies]
        self._encoded: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Text ids; remembered, because training reads the same few thousand sentences over and over."""
        if text not in self._encoded:
            self._encoded[text] = self.model.encode_text(text)
        return self._encoded[text]

    def taste(self, rng: np.random.Generator, history: int) -> Taste:
        """A user who likes one style and one or two palettes, a film, and how it is to be drawn for them."""
        world = self.world
        style = rng.integers(len(world.styles))
        liked = world.sample_palettes(int(rng.integers(1, 3)), rng)
        concepts, _, palettes = world.sample(history, rng)
        styles = np.full(history, style)
        palettes = np.where(rng.random(history) < 0.8, rng.choice(liked, history), palettes)
        noisy = rng.random(history) < NOISE_SHARE
        styles[noisy] = rng.integers(len(world.styles), size=int(noisy.sum()))
        # Another thing, not another style: that would show one style in the histories of all others.
        for row in np.flatnonzero(~world.trained[concepts, styles]):
            concepts[row] = self.target(int(styles[row]), rng)
        target = self.target(int(style), rng)
        palette = int(np.bincount(palettes).argmax())  # what the history shows most
        reference = np.array([target, *self.look(target, int(style), palette, rng)])
        return Taste(np.stack([concepts, styles, palettes], axis=1), reference, np.array([target, style, palette]))

    def look(self, concept: int, style: int, palette: int, rng: np.random.Generator) -> list[int]:
        """A reference's style and palette: the user's own, or any."""
        if rng.random() < SAME_LOOK_SHARE:
            return [style, palette]
        return [
            int(rng.choice(np.flatnonzero(self.world.trained[concept]))),
            int(self.world.sample_palettes(1, rng)[0]),
        ]

    def target(self, style: int, rng: np.random.Generator) -> int:
        """A concept whose picture in this style is not held out."""
        while True:
            concept = int(self.world.sample(1, rng)[0][0])
            if self.world.trained[concept, style]:
                return concept

    def title(self, concept: int, rng: np.random.Generator) -> str:
        """A film's title, or the thing's name: a catalogue of stickers has no other titles."""
        if rng.random() < 0.3:
            return self.world.concepts[concept].label
        return self.titles[rng.integers(len(self.titles))]

    def brief(self, concept: int, rng: np.random.Generator) -> tuple[str, str]:
        """Title and description, most often reduced to what describes the picture."""
        if rng.random() < 0.25:
            return self.title(concept, rng), self.description(concept, rng)
        return "", f"A poster with {with_article(self.world.concepts[concept].label)}."

    def description(self, concept: int, rng: np.random.Generator) -> str:
        sentence = f"A poster with {with_article(self.world.concepts[concept].label)}."
        return sentence if rng.random() < 0.2 else f"{self.facts[rng.integers(len(self.facts))]}. {sentence}"

    def image_codes(self, rows: Indices) -> list[list[int]]:
        """Codes by the tokenizer of the pictures (N, 3)."""
        found: list[list[int]] = self.codes.codes[tuple(rows.T)].tolist()
        return found

    def answer(self, row: Indices) -> list[int]:
        """Codes that the language model is to answer for the picture (3,)."""
        codes: list[int] = self.codes.answers[tuple(row)].tolist()
        return codes

    def batch(self, count: int, rng: np.random.Generator) -> TrainingBatch:
        """Real prompts with answers."""
        config = self.model.config
        ids = config.ids
        texts, images, histories, references, answers = [], [], [], [], []
        for _ in range(count):
            taste = self.taste(rng, config.history)
            past = self.image_codes(taste.history)
            (reference,) = self.image_codes(taste.reference[None])
            titles = [self.title(int(concept), rng) for concept in taste.history[:, 0]]
            concept = int(taste.target[0])
            text = prompt_text_ids(
                config.wording, titles, self.title(concept, rng), self.description(concept, rng), self.encode, ids
            )
            texts.append(text)
            images.append([ids.image(codes) for codes in past])
            histories.append(past)
            references.append(reference)
            answers.append(ids.image(self.answer(taste.target)))
        return TrainingBatch.from_arrays(
            assemble(texts, images, ids, answers=answers), mask_inputs(histories, references, ids)
        )


@dataclass(frozen=True)
class Packed:
    """Several drawings per row: tokens (B, T) and labels (B, T), padded behind.

    references: codes of the references, row by row.
    """

    tokens: Tensor
    labels: Tensor
    references: list[list[int]]


def packed_batch(prompts: Prompts, count: int, history: int, drawings: int, rng: np.random.Generator) -> Packed:
    """Rows of a short history and `drawings` references with their answers, all in one taste.

    A reference is "reference text, embedding, response mark", its answer a picture.
    """
    config = prompts.model.config
    ids, wording = config.ids, config.wording
    head = len(prompts.encode(wording.instruction)) + (ids.bos_id is not None)
    rows, labels, references = [], [], []
    for _ in range(count):
        taste = prompts.taste(rng, history)
        style, palette = taste.target[1:].tolist()
        past = [prompts.title(int(concept), rng) for concept in taste.history[:, 0]]
        images = [ids.image(codes) for codes in prompts.image_codes(taste.history)]
        row: list[int] = []
        label: list[int] = []
        for number in range(drawings):
            concept = int(taste.target[0]) if number == 0 else prompts.target(style, rng)
            look = taste.reference[1:].tolist() if number == 0 else prompts.look(concept, style, palette, rng)
            (reference,) = prompts.image_codes(np.array([[concept, *look]]))
            title, description = prompts.brief(concept, rng)
            text = prompt_text_ids(wording, past if number == 0 else [], title, description, prompts.encode, ids)
            pending = iter(images)
            for token in text[:-1] if number == 0 else text[head:-1]:
                if token == ids.image_start:
                    row += next(pending)
                else:
                    row.append(EMBEDDING if token == ids.image_end else token)
            image = ids.image(prompts.answer(np.array([concept, style, palette])))
            label += [IGNORED_LABEL] * (len(row) - len(label) + 1) + image[1:]
            row += image
            references.append(reference)
        rows.append(row)
        labels.append(label)
    width = max(map(len, rows))
    tokens = torch.full((count, width), ids.pad_id)
    wanted = torch.full((count, width), IGNORED_LABEL)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        tokens[number, : len(row)] = torch.tensor(row)
        wanted[number, : len(label)] = torch.tensor(label)
    return Packed(tokens, wanted, references)


def packed_logprobs(personalizer: Personalizer, packed: Packed, rng: np.random.Generator) -> Tensor:
    """Log-probability of each label (n,).

    Half of the references are given whole, the others lose a random share of their codes.
    """
    codes, lengths = pad_codes([torch.tensor(row) for row in packed.references], max(map(len, packed.references)))
    kept = np.arange(codes.shape[1])[None] < lengths.numpy()[:, None]
    share = np.where(rng.random(len(kept)) < 0.5, 1.0, rng.random(len(kept)))
    kept &= (rng.random(kept.shape) < share[:, None]) | (np.arange(codes.shape[1])[None] == 0)
    embeds = personalizer.token_embeddings(packed.tokens)
    codes, keep = codes.to(embeds.device), torch.from_numpy(kept).float().to(embeds.device)
    with torch.no_grad():
        condition = personalizer.code_decoder.decode_kept(codes, keep).mean(dim=1)
    place = (packed.tokens == EMBEDDING)[..., None].to(embeds.device)
    embeds = embeds.masked_scatter(place, personalizer.adapter(condition).to(embeds.dtype))
    return label_logprobs(personalizer, Answers(embeds, packed.labels))


def learning_language(personalizer: Personalizer) -> Personalizer:
    """Let learn what stage `language` trains: all but LoRA and the code decoder; return the personalizer."""
    personalizer.requires_grad_(True)
    personalizer.code_decoder.requires_grad_(False)
    for name, parameter in personalizer.llama.named_parameters():
        parameter.requires_grad_("lora_" not in name)
    return personalizer


def train_language(
    folder: Path,
    prompts: Prompts,
    config: TrainerConfig,
    rows: int = 8,
    packed_share: float = 0.65,
    placement: Placement | None = None,
) -> None:
    """Pretrain LLaMA and the adapter on packed drawings and, later, also on real prompts.

    `packed_share` of the way is packed alone.
    """
    personalizer = learning_language(prompts.model.personalizer)

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        if trainer.progress() < packed_share or rng.random() < PACKED_LATER:
            logprobs = packed_logprobs(personalizer, packed_batch(prompts, rows, 2, 5, rng), rng)
            return -logprobs.mean(), {"packed": float(-logprobs.mean().detach())}
        batch = prompts.batch(rows, rng)
        invert = bool(rng.random() < 0.3)
        logprobs = masked_logprobs(personalizer, batch, mask_draws(batch, rng), invert_reference=invert)
        return -logprobs.mean(), {"real": float(-logprobs.mean().detach())}

    trainer = Trainer(personalizer, loss, folder, config, placement)
    trainer.run()


def train_alignment(
    folder: Path,
    prompts: Prompts,
    config: TrainerConfig,
    rows: int = 8,
    part_rows: int | None = None,
    placement: Placement | None = None,
) -> None:
    """Stage `alignment`: `train_reconstruction` on `rows` real prompts a step.

    part_rows: at most so many rows at once.
    """
    personalizer = prompts.model.personalizer
    train_reconstruction(folder, personalizer, lambda _, rng: prompts.batch(rows, rng), config, part_rows, placement)
