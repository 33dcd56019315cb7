"""One (user, item) from history and reference to a candidate per α, in numpy.

The stages are those of `generator.pigeon.pipeline`.

The networks are reached through a function, so that the same code runs behind Triton and in a test beside PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from generator.pigeon.ddim import guide, to_uint8
from generator.pigeon.lcm import Schedule, schedule_from_config
from generator.pigeon.prompt import (
    HISTORY,
    REFERENCE,
    PromptWording,
    TokenIds,
    assemble,
    kept_reference,
    mask_history,
    mask_inputs,
    prompt_text_ids,
)
from generator.pigeon.sampling import answer_codes, gumbel_row, noise_image
from generator.serving.backends.graph import Arrays, BadInput
from generator.serving.backends.masks import keep_top

Encode = Callable[[str], Sequence[int]]


class Call(Protocol):
    """Runs a model: (name, inputs, names of the outputs wanted, version or -1) -> outputs."""

    def __call__(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: list[str], version: int = -1
    ) -> Arrays: ...


@dataclass(frozen=True)
class TaskConfig:
    """What a task needs to know of the checkpoint."""

    ids: TokenIds
    wording: PromptWording
    history_ratio: float
    max_codes: int
    max_prompt: int
    schedule: Schedule
    guidance: float
    latent_shape: tuple[int, int, int]
    preview_kind: str

    @classmethod
    def from_folder(cls, folder: Path) -> TaskConfig:
        """Read it from a model's version folder."""
        return cls.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> TaskConfig:
        """From the checkpoint's config.json.

        The build adds `scheduler`, `latent_shape` and `preview_kind`.
        """
        diffusion = config["diffusion"]
        channels, height, width = config["latent_shape"]
        return cls(
            ids=TokenIds(**config["ids"]),
            wording=PromptWording(**config["wording"]),
            history_ratio=float(config["mask"]["history_ratio"]),
            max_codes=int(config["decoder"]["max_tokens"]),
            max_prompt=int(config["language"]["max_positions"]) - int(config["generation"]["max_new_tokens"]),
            schedule=schedule_from_config(config["scheduler"], int(diffusion["steps"])),
            guidance=float(diffusion["guidance"]),
            latent_shape=(int(channels), int(height), int(width)),
            preview_kind=str(config["preview_kind"]),
        )


@dataclass(frozen=True)
class Prompt:
    """What is drawn from; codes are 0..K-1."""

    history_titles: Sequence[str]
    history_tokens: Sequence[Sequence[int]]
    title: str
    description: str
    reference_tokens: Sequence[int]

    @classmethod
    def from_json(cls, value: Any, codebook_size: int) -> Prompt:
        """Read and check a request's prompt.

        Raises:
            BadInput: a field is missing or of another type, or a code is outside the codebook.
        """
        try:
            prompt = cls(**value)
        except TypeError as error:
            raise BadInput(f"prompt: {error}") from error
        texts = (prompt.title, prompt.description, *prompt.history_titles)
        if not all(isinstance(text, str) for text in texts):
            raise BadInput("prompt: titles and description must be texts")
        if len(prompt.history_titles) != len(prompt.history_tokens):
            raise BadInput(
                f"prompt: {len(prompt.history_titles)} history_titles for {len(prompt.history_tokens)} history_tokens"
            )
        if not prompt.history_tokens:
            raise BadInput("prompt: history_tokens is empty; a task needs at least one history picture")
        for name, codes in [("history_tokens", c) for c in prompt.history_tokens] + [
            ("reference_tokens", prompt.reference_tokens)
        ]:
            if not all(isinstance(code, int) and 0 <= code < codebook_size for code in codes):
                raise BadInput(f"prompt: {name} holds a value outside 0..{codebook_size - 1}")
        return prompt


@dataclass(frozen=True)
class TaskServer:
    """What a model that takes prompts holds: its configuration and the text tokenizer."""

    config: TaskConfig
    tokenizer: Tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> TaskServer:
        """Read it from a model's version folder."""
        return cls(TaskConfig.from_folder(folder), Tokenizer.from_file(str(folder / "tokenizer.json")))

    def prompt(self, tensor: NDArray[np.object_]) -> Prompt:
        """The request's `prompt` (1,), JSON.

        Raises:
            BadInput: not JSON, or not a prompt.
        """
        try:
            value = json.loads(tensor[0])
        except ValueError as error:
            raise BadInput(f"prompt: not valid JSON ({error})") from error
        return Prompt.from_json(value, self.config.ids.codebook_size)

    def encode(self, text: str) -> list[int]:
        """Text ids, without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


@dataclass(frozen=True)
class Drawn:
    """N candidates, one per α."""

    codes: list[list[int]]
    images: NDArray[np.uint8]  # (N, S, S, 3)
    embeddings: NDArray[np.float32]  # (N, D)


def draw(
    config: TaskConfig,
    prompt: Prompt,
    alphas: Sequence[float],
    seed: int,
    adapter_version: int,
    encode: Encode,
    call: Call,
) -> Drawn:
    """Draws one candidate per α; candidate i draws with (seed, i).

    Raises:
        BadInput: an α outside 0..1, a negative seed, or a prompt that is too long.
    """
    check_grid(alphas, seed)
    prompts, references = condition(config, prompt, alphas, seed, encode, call)
    codes = personalize(config, prompts, references, seed, adapter_version, call)
    images = paint(config, codes, noise_rows(config, seed, len(codes)), call)
    embeddings = call("image_scorer", {"images": images}, ["image_embeddings"])["image_embeddings"]
    return Drawn(codes, images, embeddings)


def check_grid(alphas: Sequence[float], seed: int) -> None:
    """Raises:
    BadInput: no α, one outside 0..1, or a negative seed.
    """
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise BadInput(f"alphas: {list(alphas)} must be one or more numbers in 0..1")
    if seed < 0:
        raise BadInput(f"seed: {seed} must not be negative")


def condition(
    config: TaskConfig, prompt: Prompt, alphas: Sequence[float], seed: int, encode: Encode, call: Call
) -> tuple[NDArray[np.int64], list[list[int]]]:
    """Mask history and reference -> prompt ids (N, T) and per α the reference codes that are kept."""
    history = prompt.history_tokens
    row = mask_inputs([history], [prompt.reference_tokens], config.ids)
    scores = call("mask_generator", {"tokens": row.tokens, "positions": row.positions, "types": row.types}, ["scores"])[
        "scores"
    ][0]
    types = row.types[0]
    noise = gumbel_row(seed, 0, len(scores))
    keep_history = keep_top(scores, types == HISTORY, config.history_ratio, noise)
    references = []
    for alpha in alphas:
        keep = keep_history | keep_top(scores, types == REFERENCE, alpha, noise)
        references.append(kept_reference(prompt.reference_tokens, history, keep))
    text = prompt_text_ids(config.wording, prompt.history_titles, prompt.title, prompt.description, encode, config.ids)
    images = mask_history(history, keep_history, config.ids)
    try:
        batch = assemble([text], [images], config.ids, max_tokens=config.max_prompt)
    except ValueError as error:
        raise BadInput(str(error)) from error
    return np.repeat(batch.tokens, len(alphas), axis=0), references


def personalize(
    config: TaskConfig,
    prompts: NDArray[np.int64],
    references: list[list[int]],
    seed: int,
    adapter_version: int,
    call: Call,
) -> list[list[int]]:
    """prompts (N, T) and kept reference codes -> per row the codes of the answer."""
    inputs = personalizer_inputs(config, prompts, references, seed, call)
    return answered_codes(config, call("personalizer", inputs, ["tokens", "counts"], version=adapter_version))


def personalizer_inputs(
    config: TaskConfig, prompts: NDArray[np.int64], references: list[list[int]], seed: int, call: Call
) -> Arrays:
    """The personalizer's request: answer i is sampled with (seed, i)."""
    embeds = call("token_decoder", padded_codes(references, config.max_codes), ["prompt_embeds"])["prompt_embeds"]
    return {
        "prompt_ids": prompts,
        "condition": embeds.mean(axis=1),
        "seed": np.array([seed], dtype=np.uint64),
        "variants": np.arange(len(references), dtype=np.int64),
    }


def answered_codes(config: TaskConfig, answers: Arrays) -> list[list[int]]:
    """The personalizer's `tokens` (N, max_new) and `counts` (N,) -> visual codes 0..K-1 per row."""
    return [
        answer_codes([int(token) for token in tokens[:count]], config.ids.code_offset, config.max_codes)
        for tokens, count in zip(answers["tokens"], answers["counts"], strict=True)
    ]


def noise_rows(config: TaskConfig, seed: int, rows: int) -> NDArray[np.float32]:
    """(rows, C, H, W): row i is the noise of (seed, i)."""
    return np.stack([noise_image(seed, variant, config.latent_shape) for variant in range(rows)])


def paint(
    config: TaskConfig, codes: Sequence[Sequence[int]], noise: NDArray[np.float32], call: Call
) -> NDArray[np.uint8]:
    """Codes and noise (N, C, H, W) to start from, per row -> images (N, S, S, 3).

    The negative prompt is zeros. Sampler, steps and guidance are the checkpoint's.
    """
    rows = len(codes)
    decoded = call("token_decoder", padded_codes(codes, config.max_codes), ["prompt_embeds", "pooled"])
    guided = config.guidance != 1.0
    if guided:
        decoded = {name: np.concatenate([np.zeros_like(value), value]) for name, value in decoded.items()}
    start = latents = noise
    for index, timestep in enumerate(config.schedule.timesteps):
        batch = np.concatenate([latents, latents]) if guided else latents
        predicted = call(
            "unet",
            {"latents": batch, "timestep": np.full(len(batch), timestep, dtype=np.int64), **decoded},
            ["predicted"],
        )["predicted"]
        if guided:
            predicted = guide(predicted[:rows], predicted[rows:], config.guidance)
        latents = config.schedule.step(index, latents, predicted, start)
    return to_uint8(call("vae_decoder", {"latents": latents}, ["decoded"])["decoded"])


def padded_codes(rows: Sequence[Sequence[int]], width: int) -> Arrays:
    """Codes per row -> the token decoder's request: codes (N, width) with zeros behind, lengths (N,)."""
    codes = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        codes[number, : len(row)] = row[:width]
    return {"codes": codes, "lengths": np.array([min(len(row), width) for row in rows], dtype=np.int64)}
