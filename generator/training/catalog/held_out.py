"""Held-out users and their next item: tasks to draw, and how likely the item's codes are.

The next item is the reference, as in the paper: official pictures are the same for everybody, so likeness to it rewards copying.
What the history is good for shows in the likelihood: of the codes that were masked, behind the user's own history and behind
another user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from generator.pigeon.model import PigeonModel
from generator.pigeon.personalizer import TrainingBatch
from generator.pigeon.pipeline import ImageArray, Item, Task
from generator.pigeon.prompt import IGNORED_LABEL, REFERENCE, assemble, mask_inputs, prompt_text_ids
from generator.training.catalog.dataset.codes import ImageCodes
from generator.training.catalog.dataset.reader import Dataset, HeldOutWindow
from generator.training.evaluation.bootstrap import Values
from generator.training.evaluation.samples import Sample, Truth
from generator.training.reconstruction import mask_draws, masked_logprobs
from schemas.errors import InputError

ROWS = 16
"""Windows whose likelihood is computed at once."""


@dataclass(frozen=True)
class HeldOut(Sample):
    """A held-out user's next item as a task; the target is the reference, by the sample's number."""

    window: HeldOutWindow


class ReferencesAsDrawings:
    """The references' pictures in the place of a world's known drawings."""

    def __init__(self, chosen: Sequence[HeldOut]) -> None:
        self._images = [sample.task.reference.image for sample in chosen]

    def draw(self, truth: Truth) -> ImageArray:
        return self._images[truth.concept]


def choose(dataset: Dataset, count: int, seed: int, alphas: Sequence[float]) -> list[HeldOut]:
    """The last test windows of `count` users, drawn by the seed; of all where there are fewer.

    Raises:
        InputError: fewer than two users have one.
    """
    windows = dataset.last_windows("test")
    if len(windows) < 2:
        raise InputError(
            f"data set {dataset.manifest.dataset_id[:12]}: {len(windows)} test user(s); at least 2 are needed"
        )
    rng = np.random.default_rng(seed)
    picked = sorted(rng.permutation(len(windows))[:count].tolist())
    numbers = {n for place in picked for n in (*windows[place].history, windows[place].reference)}
    images = dataset.images_of({dataset.items[n].image for n in numbers})

    def item(number: int) -> Item:
        found = dataset.items[number]
        return Item(found.title, images[found.image], found.description)

    chosen = []
    for number, place in enumerate(picked):
        window = windows[place]
        task = Task([item(n) for n in window.history], item(window.reference), int(rng.integers(2**32)), tuple(alphas))
        chosen.append(HeldOut(Truth(number, 0, 0), task, window))
    return chosen


@torch.no_grad()
def masked_likelihood(
    model: PigeonModel, dataset: Dataset, codes: ImageCodes, chosen: Sequence[HeldOut], *, shift: int, seed: int
) -> Values:
    """Mean log-probability of the masked codes of each next item, nats (n,).

    shift: 0 puts the user's own history before it, 1 the next user's. Masks are stage 1's, ratios and noise drawn from the seed, the
    same for every model and history of equal length. Where the answer is given apart, all its codes count.
    """
    found: list[float] = []
    model.personalizer.eval()
    for start in range(0, len(chosen), ROWS):
        part = range(start, min(start + ROWS, len(chosen)))
        histories = [chosen[(row + shift) % len(chosen)].window.history for row in part]
        batch = _batch(model, dataset, codes, [chosen[row].window for row in part], histories)
        torch.manual_seed(seed + start)
        alpha, noise = mask_draws(batch, np.random.default_rng([seed, start]))
        for place, row in enumerate(part):
            one = batch.rows(slice(place, place + 1))
            draws = (alpha[place : place + 1], noise[place : place + 1])
            logprobs = masked_logprobs(model.personalizer, one, draws).double().cpu()
            found.append(float(logprobs[_masked_labels(model, one, draws, chosen[row].window)].mean()))
    return np.array(found)


def _batch(
    model: PigeonModel,
    dataset: Dataset,
    codes: ImageCodes,
    windows: Sequence[HeldOutWindow],
    histories: Sequence[Sequence[int]],
) -> TrainingBatch:
    config, items = model.config, dataset.items
    ids = config.ids
    past = [[codes[items[n].image] for n in history] for history in histories]
    references = [codes[items[window.reference].image] for window in windows]
    answers = [list(window.target_codes or own) for window, own in zip(windows, references, strict=True)]
    texts = [
        prompt_text_ids(
            config.wording,
            [items[n].title for n in history],
            items[window.reference].title,
            items[window.reference].description,
            model.encode_text,
            ids,
        )
        for window, history in zip(windows, histories, strict=True)
    ]
    images = [[ids.image(one) for one in row] for row in past]
    prompt = assemble(texts, images, ids, answers=[ids.image(one) for one in answers])
    return TrainingBatch.from_arrays(prompt, mask_inputs(past, references, ids))


def _masked_labels(
    model: PigeonModel, batch: TrainingBatch, draws: tuple[torch.Tensor, torch.Tensor], window: HeldOutWindow
) -> torch.Tensor:
    """Which of a row's labels (n,) count: codes that are masked in the reference; the end token does not."""
    count = int((batch.labels[:, 1:] != IGNORED_LABEL).sum())
    counted = torch.ones(count, dtype=torch.bool)
    if count == 1:  # the tokenizer kept nothing of the picture: its answer is the end token alone
        return counted
    counted[-1] = False
    if window.target_codes is not None:
        return counted
    alpha, noise = draws
    rows = (batch.mask_tokens, batch.mask_positions, batch.mask_types)
    keep = model.personalizer.masks(*rows, alpha, invert_reference=True, noise=noise).keep.cpu()
    masked = keep[(batch.mask_types == REFERENCE) & (batch.mask_tokens >= model.config.ids.code_offset)] < 0.5
    if bool(masked.any()):  # else the ratio was so small that nothing was masked: all codes count
        counted[:-1] = masked
    return counted
