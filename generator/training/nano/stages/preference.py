"""Stage `preference`, the paper's stage 2: DPO of answers that were ranked by likeness to the history.

Of the candidates over the α_r grid the one that is most like the history is chosen over the one that is least (PIGEON.md section 5),
and DPO learns it on top of stage 1's adapter, the frozen reference. The users are simulated, as in the other stages.
`pigeon retrain` does the same from what real users did.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from generator.pigeon.checkpoint import save_model
from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import Candidate, Item, PigeonPipeline, Task, TaskResult
from generator.pigeon.placement import Placement
from generator.pigeon.sampling import noise_image
from generator.training.dpo.train import DpoConfig, DpoResult, train_dpo
from generator.training.nano.samples import as_rgb
from generator.training.nano.stages.language import Prompts
from schemas.errors import InputError
from schemas.preferences import PreferencePair, PromptSnapshot

log = logging.getLogger(__name__)
USERS = 900
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
LEAST_GAP = 4.5
"""Difference of a pair's history scores, at least, in 100 * cosine; another noise alone makes as much of the same codes."""
TEMPERATURE = 1.1
"""Temperature of the answers that are ranked; at nano's own, 0.7, seven of ten users get none that differ by as much."""
AT_ONCE = 8
START = "start"
"""Folder of the checkpoint that learns, within the stage's."""
CONFIG = DpoConfig(learning_rate=3e-4, epochs=3, beta=1.0)
"""Settings of the stage. The paper's rate, 5e-6, is for 7 billion weights.
At its β, 0.1, with 5e-4 and four epochs, a few hundred pairs were
learned by heart: the right palette became rarer in the answers for fresh users (the card has the figures)."""


def tasks(prompts: Prompts, count: int, seed: int = 0) -> Iterator[Task]:
    """Tasks of simulated users, whose drawings training may all see."""
    world, history = prompts.world, prompts.model.config.history
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        taste = prompts.taste(rng, history)
        rows = [*taste.history, taste.reference]
        images = [as_rgb(world.draw(*row.tolist())) for row in rows]
        concept = int(taste.target[0])
        past = [
            Item(prompts.title(int(row[0]), rng), image) for row, image in zip(taste.history, images[:-1], strict=True)
        ]
        wanted = Item(prompts.title(concept, rng), images[-1], prompts.description(concept, rng))
        yield Task(past, wanted, int(rng.integers(2**32)), ALPHAS)


def ranked(number: int, task: Task, result: TaskResult) -> PreferencePair | None:
    """The pair of the highest over the lowest history score, or none.

    There is none when they are the same codes, or not `LEAST_GAP` apart.

    Raises:
        InputError: the candidates have no scores.
    """
    scored = [(c.cis_history, c) for c in result.candidates if c.cis_history is not None and c.codes]
    if not scored:
        raise InputError("preference: the checkpoint has no image_scorer, which ranks the candidates")
    (highest, best), (lowest, worst) = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
    if best.codes == worst.codes or highest - lowest < LEAST_GAP:
        return None
    prompt = PromptSnapshot(
        history_titles=tuple(item.title for item in task.history),
        history_tokens=tuple(tuple(codes) for codes in result.history_codes),
        title=task.reference.title,
        description=task.reference.description,
        reference_tokens=tuple(result.reference_codes),
    )
    return PreferencePair(
        pair_id=f"simulated-{number}",
        user_id=f"simulated-{number}",
        item_id=f"simulated-{number}",
        prompt=prompt,
        alpha=best.alpha,
        seed=task.seed,
        chosen_poster_id=f"{number}-{best.alpha}",
        rejected_poster_id=f"{number}-{worst.alpha}",
        chosen_tokens=tuple(best.codes),
        rejected_tokens=tuple(worst.codes),
        source="score",
        weight=1.0,
    )


def score_pairs_of(model: PigeonModel, prompts: Prompts, count: int) -> list[PreferencePair]:
    """Pairs of so many users, from their answers over the grid; equal answers are scored once."""
    pipeline = PigeonPipeline(model)
    asked = list(tasks(prompts, count))
    pairs = []
    for start in range(0, count, AT_ONCE):
        part = asked[start : start + AT_ONCE]
        history, references = pipeline.encode(part)
        with torch.no_grad():
            answers = pipeline.generate(part, history, *pipeline.mask(part, history, references), TEMPERATURE)
        for number, (task, answered) in enumerate(zip(part, answers, strict=True)):
            first = {tuple(codes): place for place, codes in reversed(list(enumerate(answered)))}
            if len(first) > 1:
                candidates = _seen(pipeline, task, sorted((place, list(codes)) for codes, place in first.items()))
                pair = ranked(start + number, task, TaskResult(history[number], references[number], candidates))
                pairs += [pair] if pair else []
        log.info("preference: %d of %d users, %d pairs", start + len(part), count, len(pairs))
    return pairs


@torch.no_grad()
def _seen(pipeline: PigeonPipeline, task: Task, answers: list[tuple[int, list[int]]]) -> list[Candidate]:
    """Score answers, (place in the grid, codes), by their images.

    Where the conditions hold a sketch, the sketch is scored: it costs a twenty-fifth of a drawing, and two answers differ in it by their
    codes alone and not by the noise that they are drawn from.
    """
    diffusion = pipeline.model.diffusion
    embeds, pooled = pipeline.decode([codes for _, codes in answers])
    if diffusion.config.sketched:
        images = diffusion.preview(embeds)
    else:
        noise = np.stack([noise_image(task.seed, place, diffusion.latent_shape) for place, _ in answers])
        images = diffusion.draw(embeds, pooled, noise)
    (scores,) = pipeline.score([task], images[None])
    return [
        Candidate(task.alphas[place], codes, image, text, past)
        for (place, codes), image, (text, past) in zip(answers, images, scores, strict=True)
    ]


def train_preference(
    folder: Path,
    prompts: Prompts,
    users: int = USERS,
    config: DpoConfig = CONFIG,
    placement: Placement | None = None,
) -> DpoResult:
    """Train in `folder`, which keeps the pairs and the checkpoint that drew them, to be resumed.

    Raises:
        InputError, ModelError, TrainingDiverged: as `train_dpo`; InputError also when no two candidates differ.
    """
    kept = folder / "pairs.jsonl"
    if not kept.exists():
        save_model(prompts.model, folder / START)
        found = score_pairs_of(prompts.model, prompts, users)
        if not found:
            raise InputError(
                "preference: all candidates of all users are alike: raise TEMPERATURE or USERS of training.preference"
            )
        partial = kept.with_suffix(".partial")
        partial.write_text("".join(f"{pair.model_dump_json()}\n" for pair in found))
        partial.replace(kept)
    pairs = [PreferencePair.model_validate_json(line) for line in kept.read_text().splitlines()]

    def say(step: int, steps: int, loss: float) -> None:
        log.info("preference step=%d of %d loss=%.4f", step, steps, loss)

    return train_dpo(folder / START, None, pairs, folder, config, say, placement)
