"""The published way to draw a task, written by us as the baseline.

Xu et al., WWW 2025; generator/pigeon/PIGEON.md. For every α a pass of its own: history and reference are tokenized again,
the prompt is read again, one picture is drawn at a time,
and each metric embeds again what it compares. The same ONNX graphs as the served ones, in this process, one thread each.
A metric loads the scorer once for each α of a night, not for each task, so that this costs the baseline next to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from generator.nightly.frozen_prompt import FrozenPrompt
from generator.pigeon.prompt import TokenIds
from generator.pigeon.sampling import GenerationConfig
from generator.serving.backends.generation import AnswerGenerator
from generator.serving.backends.graph import Arrays, Graph
from generator.serving.backends.task import (
    Prompt,
    TaskServer,
    answered_codes,
    condition,
    noise_rows,
    paint,
    personalizer_inputs,
)
from generator.serving.tensors import fitted

PLAIN_GRAPHS = ("visual_tokenizer", "mask_generator", "token_decoder", "unet", "vae_decoder")
METRICS = 2
"""CS and the history's CIS, which the published score is made of."""


@dataclass(frozen=True)
class Look:
    """What a task's pictures are: history and reference as the model's input."""

    images: NDArray[np.uint8]
    """(H + 1, S, S, 3): the history's, then the reference's."""
    prompt: FrozenPrompt


class Scorer:
    """The image scorer's two graphs."""

    def __init__(self, repository: Path) -> None:
        folder = repository / "image_scorer" / "1"
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))["scorer"]
        self._image, self._text = Graph(folder / "image.onnx"), Graph(folder / "text.onnx")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._width, self._pad = int(fields["text_tokens"]), int(fields["pad_id"])

    def images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, S, S, 3) -> (N, D), a picture at a time."""
        return np.concatenate([self._image({"images": image[None]})["features"] for image in images])

    def text(self, text: str) -> NDArray[np.float32]:
        """A text -> (D,)."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids[: self._width]
        row = np.full((1, self._width), self._pad, dtype=np.int64)
        row[0, : len(ids)] = ids
        found: NDArray[np.float32] = self._text({"tokens": row})["features"][0]
        return found


class PublishedWay:
    """The networks of a model repository in this process, used as the published code uses them."""

    def __init__(self, repository: Path) -> None:
        server = TaskServer.from_folder(repository / "answers" / "1")
        self._config, self._encode = server.config, server.encode
        self._graphs = {name: Graph(repository / name / "1" / "model.onnx") for name in PLAIN_GRAPHS}
        self._generator = _generator(repository)
        self._scorer = Scorer(repository)
        self.side = int(self._graphs["visual_tokenizer"].inputs["images"][1][1])

    def look(self, prompt: FrozenPrompt) -> Look:
        """Read a task's pictures, as the night's client resizes them."""
        uris = [image.uri for image in (*prompt.history, prompt.reference)]
        return Look(np.stack([_read(uri, self.side) for uri in uris]), prompt)

    def draw(self, task: Look, alphas: Sequence[float], seed: int) -> list[tuple[int, ...]]:
        """Draw and score a picture per α, each in a pass of its own; returns the answers' codes."""
        answers = []
        for variant, alpha in enumerate(alphas):
            codes = self.codes(task, alpha, seed, variant)
            image = paint(self._config, [list(codes)], noise_rows(self._config, seed, 1), self._call)
            self._score(task, image)
            answers.append(codes)
        return answers

    def codes(
        self, task: Look, alpha: float, seed: int, variant: int, temperature: float | None = None
    ) -> tuple[int, ...]:
        """One answer, alone, everything before it done again; by default at the checkpoint's temperature."""
        prompt = self._prompt(task)
        prompts, references = condition(self._config, prompt, [alpha], seed, self._encode, self._call)
        inputs = personalizer_inputs(self._config, prompts, references, seed, self._call)
        inputs["variants"] = np.array([variant], dtype=np.int64)
        if temperature is not None:
            inputs["temperatures"] = np.array([temperature], dtype=np.float64)
        return tuple(answered_codes(self._config, self._answer(inputs))[0])

    def _prompt(self, task: Look) -> Prompt:
        tokens = []
        for image in task.images:
            coded = self._graphs["visual_tokenizer"]({"images": image[None]})
            tokens.append([int(code) for code in coded["code_ids"][0][coded["keep"][0]]])
        frozen = task.prompt
        return Prompt(
            [image.title for image in frozen.history],
            tokens[:-1],
            frozen.reference.title,
            frozen.description,
            tokens[-1],
        )

    def _score(self, task: Look, image: NDArray[np.uint8]) -> float:
        """0.5 CS + 0.5 history CIS: each metric embeds the picture and what it is compared with."""
        cs = self._scorer.images(image)[0] @ self._scorer.text(task.prompt.description or task.prompt.reference.title)
        cis = (self._scorer.images(task.images[:-1]) @ self._scorer.images(image)[0]).mean()
        return float(50 * cs + 50 * cis)

    def _call(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: list[str], version: int = -1) -> Arrays:
        found = self._graphs[model](inputs)
        return {name: found[name] for name in outputs}

    def _answer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        sampler = self._generator.generate(
            inputs["prompt_ids"],
            inputs["condition"],
            [(int(inputs["seed"][0]), int(variant)) for variant in inputs["variants"]],
            temperatures=inputs["temperatures"].tolist() if "temperatures" in inputs else None,
        )
        return {"tokens": np.array(sampler.rows), "counts": np.array([len(row) for row in sampler.rows])}


def _generator(repository: Path) -> AnswerGenerator:
    folder = repository / "personalizer"
    fields = json.loads((folder / "1" / "config.json").read_text(encoding="utf-8"))
    with np.load(folder / "1" / "adapter.npz", allow_pickle=False) as stored:
        lora = {name: stored[name] for name in ("lora_a", "lora_b")}
    return AnswerGenerator(
        Graph(folder / "graph" / "model.onnx", unchecked=("key", "value")),
        lora,
        GenerationConfig(**fields["generation"]),
        TokenIds(**fields["ids"]).image_end,
        int(fields["language"]["max_positions"]),
    )


def _read(uri: str, side: int) -> NDArray[np.uint8]:
    with Image.open(uri.removeprefix("file://")) as image:
        return fitted(np.asarray(image.convert("RGB")), 0, side)
