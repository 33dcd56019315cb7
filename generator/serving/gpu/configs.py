"""config.pbtxt of the gpu target: TensorRT through ONNX Runtime, batches, warm-up.

A component has the inputs and outputs of the cpu target, but that a number per row is a column. Names of the accelerator's
options are those of Triton's onnxruntime backend (src/onnxruntime.cc, `LoadModel`), which refuses others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from generator.pigeon.config import PigeonConfig
from generator.serving.configs import ModelSpec, TensorSpec, model_specs
from generator.serving.gpu.backends.rows import ROWS
from generator.serving.gpu.profiles import Range, row_range, shapes, token_range

ENGINES = "/engines"
"""Where a GPU host keeps engines; below it a folder per build, and in that one per model."""
WORKSPACE_BYTES = 4 * 2**30
"""GPU memory that TensorRT may use while it runs one engine, bytes."""
QUEUE_MICROSECONDS = 2000
"""Longest wait for more rows, microseconds; a step of the UNet is a hundred times longer."""
HEAVY = frozenset({"unet", "vae_decoder", "personalizer_step"})
"""Models whose memory peaks must not meet: with `--rate-limit=execution_count` one of them runs at a time on a GPU."""
PYTHON_MODELS: Mapping[str, tuple[str, int]] = {
    "image_scorer": ("scorer_model.py", 2),
    "personalizer": ("personalizer_model.py", 4),
    "answers": ("answers_model.py", ROWS["unet"].usual),
    "pictures": ("pictures_model.py", ROWS["unet"].usual),
    "pigeon": ("pigeon_model.py", 2),
}
"""What stays a Python model: its file and its processes. Each draws one picture at a time, so as many fill a call of the UNet."""


@dataclass(frozen=True)
class GpuModelSpec:
    """One Triton model of an ONNX graph; tensors without the dimension of rows where `rows` is set."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows: Range | None
    tokens: Range
    warm: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of the one warm-up request per input, where the model is not batched."""

    def pbtxt(self, parameters: Mapping[str, str], build: str) -> str:
        """The configuration's text; engines are kept under `build`."""
        return (
            "\n".join([*self._tensors(), *self._running(), *self._accelerator(build), *_parameters(parameters)]) + "\n"
        )

    def _tensors(self) -> list[str]:
        return [
            f"name: {json.dumps(self.name)}",
            'backend: "onnxruntime"',
            f"max_batch_size: {self.rows.most if self.rows else 0}",
            *(_tensor("input", tensor) for tensor in self.inputs),
            *(_tensor("output", tensor) for tensor in self.outputs),
        ]

    def _running(self) -> list[str]:
        limit = ' rate_limiter { resources [{ name: "peak" count: 1 }] }' if self.name in HEAVY else ""
        lines = [
            f"instance_group [{{ kind: KIND_GPU count: 1{limit} }}]",
            "version_policy { latest { num_versions: 1 } }",
        ]
        if self.rows is None:
            return [*lines, self._warm_up("one", 1)]
        # No queue policy and no priorities: any of their fields can stall a burst by 500 ms per batch.
        sizes = sorted({self.rows.usual, self.rows.most})
        return [
            *lines,
            f"dynamic_batching {{ preferred_batch_size: {sizes} max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}",
            *(self._warm_up(end, getattr(self.rows, end)) for end in ("least", "usual", "most")),
        ]

    def _warm_up(self, name: str, rows: int) -> str:
        inputs = " ".join(
            f"inputs {{ key: {json.dumps(tensor.name)} value {{ data_type: {tensor.type} "
            f"dims: {list(self._warm_dims(tensor))} zero_data: true }} }}"
            for tensor in self.inputs
        )
        return f"model_warmup [{{ name: {json.dumps(name)} batch_size: {rows} {inputs} }}]"

    def _warm_dims(self, tensor: TensorSpec) -> tuple[int, ...]:
        return self.warm.get(tensor.name) or tuple(self.tokens.usual if dim < 0 else dim for dim in tensor.dims)

    def _accelerator(self, build: str) -> list[str]:
        if self.rows is None:
            # Its cache grows by a token at each call: an engine would have to be built for every length.
            return []
        options = {
            # No precision flag: the network is strongly typed then, and types are the graph's (onnxruntime pull request 18707).
            "precision_mode": "FP32",
            "max_workspace_size_bytes": str(WORKSPACE_BYTES),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": f"{ENGINES}/{build}/{self.name}",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": f"{ENGINES}/{build}/{self.name}",
            **shapes(self.rows, self.tokens, self.inputs),
        }
        written = " ".join(
            f"parameters {{ key: {json.dumps(key)} value: {json.dumps(value)} }}" for key, value in options.items()
        )
        return [
            'optimization { execution_accelerators { gpu_execution_accelerator [{ name: "tensorrt" '
            + written
            + " }] } }"
        ]


@dataclass(frozen=True)
class PythonSpec:
    """One Triton model of the Python backend: it calls the others and computes on the CPU."""

    spec: ModelSpec

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.spec.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.spec.outputs

    def pbtxt(self, parameters: Mapping[str, str], build: str) -> str:
        """The configuration's text, as that of the cpu target."""
        return self.spec.pbtxt(parameters)


AnySpec = GpuModelSpec | PythonSpec


def gpu_model_specs(config: PigeonConfig, latent_shape: tuple[int, int, int]) -> tuple[AnySpec, ...]:
    """The models of a repository in the order of loading: those that call others are last."""
    specs = {spec.name: spec for spec in model_specs(config, latent_shape)}
    tokens = token_range(config.language.max_positions)

    def batched(name: str, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> GpuModelSpec:
        return GpuModelSpec(name, _rowless(inputs), _rowless(outputs), row_range(name), tokens)

    towers = _towers(config, specs["image_scorer"])
    components = [
        batched(name, specs[name].inputs, specs[name].outputs)
        for name in ("visual_tokenizer", "mask_generator", "token_decoder", "unet", "vae_decoder")
    ]
    return (
        *components,
        *(batched(name, [given], [features]) for name, (given, features) in towers.items()),
        _step(config),
        *(
            PythonSpec(replace(specs[name], instances=count, backend_file=file, parameters={}))
            for name, (file, count) in PYTHON_MODELS.items()
        ),
    )


def _towers(config: PigeonConfig, scorer: ModelSpec) -> dict[str, tuple[TensorSpec, TensorSpec]]:
    if config.scorer is None:
        raise ValueError("scorer: the checkpoint has none")
    features = TensorSpec("features", "TYPE_FP32", (-1, config.scorer.feature_width))
    images = replace(scorer.inputs[0], optional=False)
    texts = TensorSpec("tokens", "TYPE_INT64", (-1, config.scorer.text_tokens))
    return {"image_tower": (images, features), "text_tower": (texts, features)}


def _step(config: PigeonConfig) -> GpuModelSpec:
    language = config.language
    depth, targets, rank, width = language.depth, len(language.lora_targets), language.lora_rank, language.width
    cache = (depth, -1, language.heads, -1, width // language.heads)
    inputs = (
        TensorSpec("input_ids", "TYPE_INT64", (-1, -1)),
        TensorSpec("condition", "TYPE_FP32", (-1, config.decoder.prompt_width)),
        TensorSpec("past_key", "TYPE_FP32", cache),
        TensorSpec("past_value", "TYPE_FP32", cache),
        TensorSpec("lora_a", "TYPE_FP32", (depth, targets, rank, width)),
        TensorSpec("lora_b", "TYPE_FP32", (depth, targets, width, rank)),
    )
    outputs = (
        TensorSpec("logits", "TYPE_FP32", (-1, config.ids.vocab_size)),
        TensorSpec("key", "TYPE_FP32", cache),
        TensorSpec("value", "TYPE_FP32", cache),
    )
    warm = {tensor.name: tuple(1 if dim < 0 else dim for dim in tensor.dims) for tensor in inputs}
    return GpuModelSpec("personalizer_step", inputs, outputs, None, token_range(language.max_positions), warm)


def _rowless(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Dimensions behind the rows; a number per row is a column, because Triton asks for a dimension."""
    return tuple(replace(tensor, dims=tensor.dims[1:] or (1,)) for tensor in tensors)


def _tensor(kind: str, tensor: TensorSpec) -> str:
    return f"{kind} [{{ name: {json.dumps(tensor.name)} data_type: {tensor.type} dims: {list(tensor.dims)} }}]"


def _parameters(parameters: Mapping[str, str]) -> list[str]:
    return [
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        for key, value in sorted(parameters.items())
    ]
