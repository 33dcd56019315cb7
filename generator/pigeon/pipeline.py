"""The whole path of a task, in PyTorch: check inputs, encode, mask, generate, decode, denoise, score.

What serving does with exported graphs, in one process: the reference that serving is checked against, and what training evaluates with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generator.pigeon.decoder import pad_codes
from generator.pigeon.model import PigeonModel
from generator.pigeon.preprocessing import prepare_pixels
from generator.pigeon.prompt import assemble, mask_inputs, masked, prompt_text_ids
from generator.pigeon.sampling import gumbel_row, noise_image
from generator.pigeon.scorer import pad_texts

ImageArray = NDArray[np.uint8]
DEFAULT_ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class Item:
    """A catalogue item; `image` is RGB uint8 (height, width, 3)."""

    title: str
    image: ImageArray
    description: str = ""


@dataclass(frozen=True)
class Task:
    """One user and one reference item.

    `alphas` is the α grid: the share of the reference that is masked, each 0..1.
    """

    history: Sequence[Item]
    reference: Item
    seed: int
    alphas: Sequence[float] = DEFAULT_ALPHAS


@dataclass(frozen=True)
class Candidate:
    """One poster of the grid. Scores are 100 * cosine; none without a scorer."""

    alpha: float
    codes: list[int]  # the answer's visual codes
    image: ImageArray  # (S, S, 3)
    cs: float | None = None  # with the reference's description
    cis_history: float | None = None  # mean over the history's pictures

    @property
    def score(self) -> float | None:
        """0.5 * cs + 0.5 * cis_history, which the best candidate maximises."""
        if self.cs is None or self.cis_history is None:
            return None
        return 0.5 * self.cs + 0.5 * self.cis_history


@dataclass(frozen=True)
class TaskResult:
    history_codes: list[list[int]]
    reference_codes: list[int]
    candidates: list[Candidate] = field(default_factory=list)  # in the order of the alphas


class PigeonPipeline:
    """`pipeline(tasks)` -> a result per task.

    A task's result does not depend on the other tasks of the call.

    It remembers pictures' codes: after a change of the tokenizer's weights make another one.
    """

    def __init__(self, model: PigeonModel) -> None:
        self.model = model.eval()
        self.config = model.config
        self._codes: dict[bytes, list[int]] = {}

    @torch.no_grad()
    def __call__(
        self, tasks: Sequence[Task], *, progress: Callable[[int, int], None] | None = None
    ) -> list[TaskResult]:
        """Draw and score all candidates.

        progress: called with (denoising steps done, steps).

        Raises:
            ValueError: a task has no history, another number of alphas than the first, an alpha outside 0..1, or a bad picture.
        """
        self.check_inputs(tasks)
        history, references = self.encode(tasks)
        keeps, embeddings = self.mask(tasks, history, references)
        answers = self.generate(tasks, history, keeps, embeddings)
        flat = [answer for row in answers for answer in row]
        prompt_embeds, pooled = self.decode(flat)
        noise = np.stack([
            noise_image(task.seed, variant, self.model.diffusion.latent_shape)
            for task in tasks
            for variant in range(len(task.alphas))
        ])  # fmt: skip
        images = self.model.diffusion.draw(prompt_embeds, pooled, noise, progress=progress)
        drawn = images.reshape(len(tasks), len(tasks[0].alphas), *images.shape[1:])
        scores = self.score(tasks, drawn)
        results = []
        for number, task in enumerate(tasks):
            candidates = [
                Candidate(alpha, codes, image, text, past)
                for alpha, codes, image, (text, past) in zip(
                    task.alphas, answers[number], drawn[number], scores[number], strict=True
                )
            ]
            results.append(TaskResult(history[number], references[number], candidates))
        return results

    def check_inputs(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            raise ValueError("tasks: none given")
        for number, task in enumerate(tasks):
            if not task.history:
                raise ValueError(f"task {number}: history is empty; a user needs at least one item")
            if len(task.alphas) != len(tasks[0].alphas) or not task.alphas:
                raise ValueError(f"task {number}: {len(task.alphas)} alphas, task 0 has {len(tasks[0].alphas)}")
            for alpha in task.alphas:
                if not 0 <= alpha <= 1:
                    raise ValueError(f"task {number}: alpha {alpha} must lie between 0 and 1")
            if not 0 <= task.seed < 2**64:
                raise ValueError(f"task {number}: seed {task.seed} must lie between 0 and 2**64 - 1")

    def encode(self, tasks: Sequence[Task]) -> tuple[list[list[list[int]]], list[list[int]]]:
        """Codes of the pictures: history [task][item], the last `config.history` items, reference [task].

        A picture is tokenized once, however many tasks and later calls show it.
        """
        rows = [[*(item.image for item in self.recent(task)), task.reference.image] for task in tasks]
        keys = [[fingerprint(image) for image in row] for row in rows]
        new = {
            key: image
            for row, names in zip(rows, keys, strict=True)
            for image, key in zip(row, names, strict=True)
            if key not in self._codes
        }
        if new:
            found = self.model.tokenizer.encode(self.pixels(list(new.values())))
            self._codes |= {key: codes.tolist() for key, codes in zip(new, found, strict=True)}
        codes = [[list(self._codes[key]) for key in names] for names in keys]
        return [row[:-1] for row in codes], [row[-1] for row in codes]

    def recent(self, task: Task) -> Sequence[Item]:
        """The part of a task's history that counts."""
        return task.history[-self.config.history :]

    def mask(
        self, tasks: Sequence[Task], history: list[list[list[int]]], references: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        """Masks and reference conditions: keep rows (B, N) and reference embeddings (B, A, C).

        The keep rows are those of the first alpha; their history part is the same at all. A task's noise is the same at all its alphas,
        so larger ones mask strictly more.
        """
        inputs = mask_inputs(history, references, self.config.ids)
        variants = len(tasks[0].alphas)
        tokens, positions, types = (
            torch.from_numpy(rows).repeat_interleave(variants, dim=0)
            for rows in (inputs.tokens, inputs.positions, inputs.types)
        )
        noise = torch.from_numpy(np.stack([gumbel_row(task.seed, 0, inputs.tokens.shape[1]) for task in tasks]))
        alphas = torch.tensor([alpha for task in tasks for alpha in task.alphas], dtype=torch.float64)
        personalizer = self.model.personalizer
        out = personalizer.masks(tokens, positions, types, alphas, noise=noise.repeat_interleave(variants, dim=0))
        embeddings = personalizer.reference_embedding(tokens, types, out.keep)
        return out.keep[::variants].cpu(), embeddings.unflatten(0, (len(tasks), variants))  # type: ignore[no-untyped-call]

    def generate(
        self,
        tasks: Sequence[Task],
        history: list[list[list[int]]],
        keeps: Tensor,
        embeddings: Tensor,
        temperature: float | None = None,
    ) -> list[list[list[int]]]:
        """Answer codes [task][variant]; `temperature` in the place of the checkpoint's."""
        ids = self.config.ids
        texts = [
            prompt_text_ids(
                self.config.wording,
                [item.title for item in self.recent(task)],
                task.reference.title,
                task.reference.description,
                self.model.encode_text,
                ids,
            )
            for task in tasks
        ]
        images = [[ids.image(codes) for codes in row] for row in history]
        room = self.config.language.max_positions - self.config.generation.max_new_tokens
        prompt = masked(assemble(texts, images, ids, max_tokens=room), keeps.numpy())
        streams = [[(task.seed, variant) for variant in range(len(task.alphas))] for task in tasks]
        return self.model.personalizer.generate(prompt, embeddings, streams, temperature)

    def decode(self, codes: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Codes per picture -> prompt_embeds (B, Q, E), pooled (B, p)."""
        rows = [torch.tensor(row, dtype=torch.int64) for row in codes]
        out: tuple[Tensor, Tensor] = self.model.code_decoder(*pad_codes(rows, self.config.decoder.max_tokens))
        return out

    def score(self, tasks: Sequence[Task], images: ImageArray) -> list[list[tuple[float | None, float | None]]]:
        """images (T, A, S, S, 3) -> [task][variant] (cs, cis_history), from one pass over all pictures.

        Without a scorer both are None.
        """
        scorer = self.model.scorer
        if scorer is None:
            return [[(None, None)] * images.shape[1]] * len(tasks)
        past = {fingerprint(item.image): item.image for task in tasks for item in self.recent(task)}
        drawn = images.reshape(-1, *images.shape[2:])
        features = scorer.image(self.pixels([*drawn, *past.values()], scoring=True)).cpu()
        ours = features[: len(drawn)].unflatten(0, images.shape[:2])  # (T, A, F)
        seen = dict(zip(past, features[len(drawn) :], strict=True))
        texts = [self.model.encode_text(task.reference.description or task.reference.title) for task in tasks]
        described = scorer.text(pad_texts(texts, scorer.config)).cpu()  # (T, F)
        cs_rows = 100 * (ours @ described[..., None])[..., 0]
        out: list[list[tuple[float | None, float | None]]] = []
        for task, own, row in zip(tasks, ours, cs_rows, strict=True):
            history = torch.stack([seen[fingerprint(item.image)] for item in self.recent(task)])
            out.append(list(zip(row.tolist(), (100 * own @ history.t()).mean(dim=1).tolist(), strict=True)))
        return out

    def pixels(self, images: Sequence[ImageArray], *, scoring: bool = False) -> Tensor:
        """RGB uint8 -> normalised pixels (B, 3, S, S) of the tokenizer, or of the scorer."""
        vision = self.config.tokenizer.vision
        if scoring and self.config.scorer is not None:
            vision = self.config.scorer.vision
        return torch.from_numpy(prepare_pixels(images, vision.image_size, vision.pixel_mean, vision.pixel_std))


def fingerprint(image: ImageArray) -> bytes:
    """A hash that is equal for equal images."""
    shape = f"{image.dtype} {image.shape} ".encode()
    return hashlib.sha256(shape + image.tobytes()).digest()
