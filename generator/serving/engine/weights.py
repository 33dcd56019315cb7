"""The engine's folder: checked weights, prompts as embeddings, adapters in PEFT's layout.

<folder>/
  engine.json                  what the weights are known by, the files' hashes, sampling and sizes
  language_model/              LLaMA in Hugging Face's layout, as in the checkpoint
  reference.safetensors        the layers that make the reference's condition an embedding
  generator/...                this code
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from generator.pigeon.prompt import EMBEDDING, TokenIds
from generator.pigeon.sampling import GenerationConfig, SamplingRule
from generator.serving.tensor_hash import content_hash

INFO = "engine.json"
REFERENCE = "reference.safetensors"
LANGUAGE_MODEL = "language_model"
TABLE = "model.embed_tokens.weight"
LORA_MODULES = ("q_proj", "v_proj")
FORMAT = 1


class WrongWeights(Exception):
    """The folder, or an adapter, is not what it should be."""


class BadRequest(ValueError):
    """A request that does not fit the model; the same request will fail again."""


@dataclass(frozen=True)
class EngineWeights:
    """What is read of an engine's folder; vLLM reads the language model itself."""

    folder: Path
    base: str
    """Hash of what an adapter is trained for, as in the repository's manifest."""
    ids: TokenIds
    generation: GenerationConfig
    language: Mapping[str, Any]
    table: Tensor  # (V, C) float32
    reference: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> EngineWeights:
        """Read a folder and check each file against its hash.

        Raises:
            WrongWeights: no engine's folder, or a file is missing or was changed after the build.
        """
        try:
            info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise WrongWeights(
                f"engine folder {folder}: no {INFO}; give personalizer/engine of a repository that "
                "`pigeon models build --engine vllm` has made"
            ) from None
        if info["format"] != FORMAT:
            raise WrongWeights(
                f"engine folder {folder}: format {info['format']}, this code reads {FORMAT}; build it again"
            )
        for name, wanted in info["files"].items():
            _check_file(folder, name, wanted)
        return cls(
            folder,
            str(info["base"]),
            TokenIds(**info["ids"]),
            GenerationConfig(**info["generation"]),
            info["language"],
            _embedding_table(folder / LANGUAGE_MODEL).float(),
            {name: value.float() for name, value in load_file(folder / REFERENCE).items()},
        )

    def rule(self) -> SamplingRule:
        """How the checkpoint samples."""
        return SamplingRule(self.generation, self.ids.image_end, self.ids.vocab_size)

    def prompt_embeddings(self, prompts: NDArray[np.int64], condition: NDArray[np.float32]) -> Tensor:
        """Prompts (N, T) and conditions (N, E) -> LLaMA's inputs (N, T, C) float32.

        Ids, -1 masked, -2 the reference.

        Raises:
            BadRequest: a prompt is empty, too long or holds another id, or the condition is not one.
        """
        limit = int(self.language["max_positions"])
        if prompts.ndim != 2 or 0 in prompts.shape:
            raise BadRequest(f"prompt_ids: {list(prompts.shape)}; give at least one prompt of one token")
        if prompts.shape[1] + self.generation.max_new_tokens > limit:
            raise BadRequest(
                f"personalizer: {prompts.shape[1]} prompt tokens and {self.generation.max_new_tokens} new ones exceed the "
                f"model's {limit} positions; shorten titles and descriptions"
            )
        if prompts.min() < EMBEDDING or prompts.max() >= len(self.table):
            raise BadRequest(
                f"prompt_ids: {prompts.min()}..{prompts.max()} must lie in {EMBEDDING}..{len(self.table) - 1}"
            )
        wanted = (len(prompts), self.reference["encoder.weight"].shape[1])
        if condition.shape != wanted or not np.isfinite(condition).all():
            raise BadRequest(f"condition: {list(condition.shape)} must be {list(wanted)} of finite numbers")
        tokens = torch.from_numpy(prompts.copy())
        embeds = self.table[tokens.clamp(min=0)] * (tokens >= 0)[..., None]
        place = (tokens == EMBEDDING)[..., None]
        return torch.where(place, self._reference_embedding(torch.from_numpy(condition.copy()))[:, None], embeds)

    def _reference_embedding(self, condition: Tensor) -> Tensor:
        """condition (N, E) -> (N, C), as `generator.pigeon.personalizer.Adapter` without dropout."""
        layers = self.reference
        hidden = F.linear(condition, layers["encoder.weight"], layers["encoder.bias"])
        return torch.tanh(F.linear(hidden, layers["decoder.weight"], layers["decoder.bias"]))

    def write_adapter(self, sha256: str, matrices: Mapping[str, NDArray[Any]], folder: Path) -> None:
        """Check an adapter and write it as PEFT would; alpha / r is folded into its matrices, so alpha is r.

        Raises:
            WrongWeights: the matrices have another hash, another shape, or values that are not finite.
        """
        if set(matrices) != {"lora_a", "lora_b"} or content_hash(matrices) != sha256:
            raise WrongWeights(f"adapter {sha256[:12]}: the matrices that came with it have another hash")
        rank, width, depth = (int(self.language[name]) for name in ("lora_rank", "width", "depth"))
        shapes = {"lora_a": (depth, len(LORA_MODULES), rank, width), "lora_b": (depth, len(LORA_MODULES), width, rank)}
        for name, shape in shapes.items():
            if matrices[name].shape != shape or not np.isfinite(matrices[name]).all():
                raise WrongWeights(
                    f"adapter {sha256[:12]}: {name} is {list(matrices[name].shape)}, this model takes {list(shape)}, all finite"
                )
        folder.mkdir(parents=True)
        state = {
            f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{part}.weight": torch.from_numpy(
                matrices[f"lora_{part.lower()}"][layer, index].copy()
            )
            for layer in range(depth)
            for index, module in enumerate(LORA_MODULES)
            for part in ("A", "B")
        }
        save_file(state, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
        (folder / "adapter_config.json").write_text(
            json.dumps({**config, "target_modules": LORA_MODULES}), encoding="utf-8"
        )


def _check_file(folder: Path, name: str, wanted: str) -> None:
    try:
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise WrongWeights(f"engine folder {folder}: {name} is missing; run `pigeon models build`") from None
    if found != wanted:
        raise WrongWeights(f"engine folder {folder}: {name} was changed after the build; run `pigeon models build`")


def _embedding_table(folder: Path) -> Tensor:
    """LLaMA's input embeddings (V, C), from whichever of its files has them."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if TABLE in file.keys():  # noqa: SIM118 -- no mapping: safetensors' handle has keys() alone
                table: Tensor = file.get_tensor(TABLE)
                return table
    raise WrongWeights(f"engine folder {folder}: no {TABLE} in its *.safetensors")
