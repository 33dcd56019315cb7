"""Each Triton model's config.pbtxt, complete, because the server's auto-complete is off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from generator.pigeon.config import PigeonConfig

FORWARDERS = 4
"""Instances that forward to an engine: `answers` and `pigeon`, which ask, have two each."""
Type = Literal["TYPE_FP32", "TYPE_FP64", "TYPE_INT64", "TYPE_UINT64", "TYPE_UINT8", "TYPE_BOOL", "TYPE_STRING"]


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output; -1 is a dimension that varies."""

    name: str
    type: Type
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One Triton model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backend_file: str
    """The file of `backends` that becomes model.py."""
    instances: int = 1
    further_files: tuple[str, ...] = ()
    """Files of `backends` beyond those that every model has."""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def pbtxt(self, parameters: Mapping[str, str]) -> str:
        """The configuration's text; `parameters` are added to the model's own."""
        # No dynamic batching: a task's result must not depend on which others arrive with it. No queue policy and
        # no priorities: any of their fields can stall a burst by 500 ms per batch; deadlines are the client's.
        lines = [
            f"name: {json.dumps(self.name)}",
            'backend: "python"',
            "max_batch_size: 0",
            *(_tensor("input", tensor) for tensor in self.inputs),
            *(_tensor("output", tensor) for tensor in self.outputs),
            f"instance_group [{{ kind: KIND_CPU count: {self.instances} }}]",
            "version_policy { all {} }",
            *(
                f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
                for key, value in sorted({**self.parameters, **parameters}.items())
            ),
        ]
        return "\n".join(lines) + "\n"


def _tensor(kind: str, tensor: TensorSpec) -> str:
    optional = " optional: true" if tensor.optional else ""
    dims = ", ".join(str(dim) for dim in tensor.dims)
    return f"{kind} [{{ name: {json.dumps(tensor.name)} data_type: {tensor.type} dims: [{dims}]{optional} }}]"


def forwarded(personalizer: ModelSpec, parameters: Mapping[str, str]) -> ModelSpec:
    """The personalizer where an engine runs LLaMA; its instances only wait."""
    return replace(
        personalizer,
        backend_file="personalizer_engine_model.py",
        further_files=("engine_client.py", "engine_protocol.py"),
        instances=FORWARDERS,
        parameters={**personalizer.parameters, **parameters},
    )


def model_specs(config: PigeonConfig, latent_shape: tuple[int, int, int]) -> tuple[ModelSpec, ...]:
    """The models of a repository in the order of loading: those that call others are last."""
    scorer = config.scorer
    if scorer is None:
        raise ValueError("scorer: the checkpoint has none")
    side, drawn = config.tokenizer.vision.image_size, config.diffusion.image_size
    patches, codes = config.tokenizer.vision.patches, config.decoder.max_tokens
    queries, width, pooled = config.decoder.queries, config.decoder.prompt_width, config.decoder.pooled_width
    features = scorer.feature_width
    prompt, seed = TensorSpec("prompt", "TYPE_STRING", (1,)), TensorSpec("seed", "TYPE_UINT64", (1,))
    adapter = TensorSpec("adapter_version", "TYPE_INT64", (1,))
    single = {"rows": "single"}
    # The heavy ones have an instance per core of a small machine; the others are a few milliseconds per task.
    return (
        ModelSpec(
            "visual_tokenizer",
            (TensorSpec("images", "TYPE_UINT8", (-1, side, side, 3)),),
            (TensorSpec("code_ids", "TYPE_INT64", (-1, patches)), TensorSpec("keep", "TYPE_BOOL", (-1, patches))),
            "component_model.py",
            instances=2,
            parameters=single,
        ),
        ModelSpec(
            "image_scorer",
            (
                TensorSpec("images", "TYPE_UINT8", (-1, drawn, drawn, 3), optional=True),
                TensorSpec("texts", "TYPE_STRING", (-1,), optional=True),
            ),
            (
                TensorSpec("image_embeddings", "TYPE_FP32", (-1, features)),
                TensorSpec("text_embeddings", "TYPE_FP32", (-1, features)),
            ),
            "image_scorer_model.py",
        ),
        ModelSpec(
            "mask_generator",
            tuple(TensorSpec(name, "TYPE_INT64", (-1, -1)) for name in ("tokens", "positions", "types")),
            (TensorSpec("scores", "TYPE_FP32", (-1, -1)),),
            "component_model.py",
        ),
        ModelSpec(
            "token_decoder",
            (TensorSpec("codes", "TYPE_INT64", (-1, codes)), TensorSpec("lengths", "TYPE_INT64", (-1,))),
            (
                TensorSpec("prompt_embeds", "TYPE_FP32", (-1, queries, width)),
                TensorSpec("pooled", "TYPE_FP32", (-1, pooled)),
            ),
            "component_model.py",
        ),
        ModelSpec(
            "personalizer",
            (
                TensorSpec("prompt_ids", "TYPE_INT64", (-1, -1)),
                TensorSpec("condition", "TYPE_FP32", (-1, width)),
                TensorSpec("seed", "TYPE_UINT64", (1,)),
                TensorSpec("variants", "TYPE_INT64", (-1,)),
                TensorSpec("temperatures", "TYPE_FP64", (-1,), optional=True),
            ),
            (
                TensorSpec("tokens", "TYPE_INT64", (-1, config.generation.max_new_tokens)),
                TensorSpec("counts", "TYPE_INT64", (-1,)),
                TensorSpec("logprobs", "TYPE_FP64", (-1,)),
                TensorSpec("sampling_logprobs", "TYPE_FP64", (-1,)),
            ),
            "personalizer_model.py",
            instances=2,
        ),
        ModelSpec(
            "unet",
            (
                TensorSpec("latents", "TYPE_FP32", (-1, *latent_shape)),
                TensorSpec("timestep", "TYPE_INT64", (-1,)),
                TensorSpec("prompt_embeds", "TYPE_FP32", (-1, queries, width)),
                TensorSpec("pooled", "TYPE_FP32", (-1, pooled)),
            ),
            (TensorSpec("predicted", "TYPE_FP32", (-1, *latent_shape)),),
            "component_model.py",
            instances=2,
        ),
        ModelSpec(
            "vae_decoder",
            (TensorSpec("latents", "TYPE_FP32", (-1, *latent_shape)),),
            (TensorSpec("decoded", "TYPE_FP32", (-1, 3, drawn, drawn)),),
            "component_model.py",
        ),
        ModelSpec(
            "answers",
            (
                prompt,
                TensorSpec("alphas", "TYPE_FP64", (-1,)),
                TensorSpec("temperatures", "TYPE_FP64", (-1,)),
                seed,
                adapter,
            ),
            (
                TensorSpec("tokens", "TYPE_INT64", (-1, codes)),
                TensorSpec("counts", "TYPE_INT64", (-1,)),
                TensorSpec("logprobs", "TYPE_FP64", (-1,)),
                TensorSpec("sampling_logprobs", "TYPE_FP64", (-1,)),
                TensorSpec("previews", "TYPE_FP32", (-1, config.preview_width)),
                TensorSpec("history_previews", "TYPE_FP32", (-1, config.preview_width)),
                TensorSpec("preview_kind", "TYPE_STRING", (1,)),
            ),
            "answers_model.py",
            instances=2,
        ),
        ModelSpec(
            "pictures",
            (
                TensorSpec("tokens", "TYPE_INT64", (-1, -1)),
                TensorSpec("counts", "TYPE_INT64", (-1,)),
                TensorSpec("seeds", "TYPE_UINT64", (-1,)),
            ),
            (
                TensorSpec("images", "TYPE_UINT8", (-1, drawn, drawn, 3)),
                TensorSpec("embeddings", "TYPE_FP32", (-1, features)),
            ),
            "pictures_model.py",
            instances=2,
        ),
        ModelSpec(
            "pigeon",
            (prompt, TensorSpec("alphas", "TYPE_FP64", (-1,)), seed, adapter),
            (
                TensorSpec("images", "TYPE_UINT8", (-1, drawn, drawn, 3)),
                TensorSpec("tokens", "TYPE_INT64", (-1, codes)),
                TensorSpec("counts", "TYPE_INT64", (-1,)),
                TensorSpec("alphas", "TYPE_FP64", (-1,)),
                TensorSpec("embeddings", "TYPE_FP32", (-1, features)),
            ),
            "pigeon_model.py",
            instances=2,
        ),
    )
