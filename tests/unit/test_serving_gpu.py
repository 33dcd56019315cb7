"""The gpu target: configurations by Triton's protobuf and the graphs, float16 within its bounds.

Nothing here runs on a GPU: graphs are run by ONNX Runtime on the CPU.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from generator.pigeon.checkpoint import load_model
from generator.pigeon.config import PigeonConfig, ScorerConfig, VisionConfig
from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import Item, PigeonPipeline, Task
from generator.pigeon.placement import Placement
from generator.pigeon.presets import preset
from generator.pigeon.sampling import noise_image
from generator.serving import build
from generator.serving.agreement import FLOAT32, compare, placed_inputs
from generator.serving.client import BATCH
from generator.serving.export import networks
from generator.serving.gpu.backends.rows import ROWS
from generator.serving.gpu.configs import ENGINES, GpuModelSpec, gpu_model_specs
from generator.serving.gpu.graphs import FLOAT16, HALVED, gpu_networks
from generator.serving.gpu.target import GpuTarget
from generator.serving.repository import MODELS, RepositoryManifest, check_repository, read_manifest
from generator.serving.targets import CpuTarget, Target, graph_path
from schemas.errors import InputError
from tests.gpu.models import published, random_model
from tests.support.gpu_server import GpuServer, parsed
from tests.support.nano_server import copy_nano_repository
from tests.support.tiny_serving import CHECKOUT, copy_repository, tiny_build

# The first run exports the tiny model twice, which takes minutes where the cores are busy.
pytestmark = pytest.mark.timeout(1800)

GPU = GpuTarget(("9.0",))
TARGETS: dict[str, Target] = {"cpu": CpuTarget(), "gpu": GPU}
ONNX_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}
# Of Triton's onnxruntime backend, which refuses every other name.
ACCELERATOR_OPTIONS = {
    "precision_mode",
    "max_workspace_size_bytes",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(checkpoint, cpu repository, gpu repository) of the tiny model."""
    folder = tmp_path_factory.mktemp("gpu")
    checkpoint, _ = tiny_build(folder)
    copy_repository(checkpoint, folder / "models-gpu", GPU)
    return checkpoint, folder / "models", folder / "models-gpu"


def lavit() -> PigeonConfig:
    """lavit-7b with a scorer, which its preset lacks."""
    tower = VisionConfig(image_size=1024, patch_size=16, width=1280, depth=2, heads=16)
    scorer = ScorerConfig(
        vision=tower, text_size=49408, text_width=1024, text_depth=2, text_heads=16, text_tokens=77, feature_width=1024
    )
    return published().model_copy(update={"scorer": scorer})


CONFIGS = {"nano": lambda: preset("nano"), "lavit-7b": lavit}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("target", TARGETS)
def test_configurations_of_presets_parse_and_agree_with_the_networks(name: str, target: str) -> None:
    """Networks of published size on torch's meta device: shapes without weights."""
    chosen = TARGETS[target]
    model = random_model(CONFIGS[name](), Placement("fp16" if target == "gpu" else "fp32", "meta"))
    graphs = gpu_networks(model, model) if target == "gpu" else networks(model)
    specs = {spec.name: spec for spec in chosen.specs(model.config, model.diffusion.latent_shape)}
    configs = {name: parsed(chosen.pbtxt(spec, {"build": "b1"}, "b1")) for name, spec in specs.items()}
    assert set(MODELS) <= set(configs)
    for config in configs.values():
        assert_complete(config)
    for graph in graphs:
        if graph.model == "image_scorer" or (target == "cpu" and graph.model == "personalizer"):
            continue  # Python models around their graphs
        given = graph.example(2, torch.Generator().manual_seed(0))
        with torch.no_grad():
            answers = graph.module(**placed_inputs(given, graph.module))
        answers = answers if isinstance(answers, tuple) else (answers,)
        answered = dict(zip(graph.outputs, answers, strict=True))
        assert_fits(configs[graph.model].input, configs[graph.model], given)
        assert_fits(configs[graph.model].output, configs[graph.model], answered)


def assert_complete(config: Any) -> None:
    """What a server without auto-complete needs."""
    assert config.backend in {"python", "onnxruntime"}
    assert config.input
    assert config.output
    assert config.instance_group[0].count >= 1
    if "build" in config.parameters:
        assert config.parameters["build"].string_value == "b1"
    assert config.version_policy.WhichOneof("policy_choice")


def assert_fits(tensors: Any, config: Any, values: Mapping[str, torch.Tensor]) -> None:
    """Each of the model's tensors has the name, type and dimensions of the network's."""
    types = {torch.float32: "FP32", torch.int64: "INT64", torch.uint8: "UINT8", torch.bool: "BOOL"}
    assert {tensor.name for tensor in tensors} == set(values)
    for tensor in tensors:
        value = values[tensor.name]
        dims = [-1, *tensor.dims] if config.max_batch_size else list(tensor.dims)
        assert tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name == (
            f"TYPE_{types[value.dtype]}"
        ), (config.name, tensor.name)
        assert len(dims) == value.ndim, (config.name, tensor.name)
        assert all(dim in {-1, size} for dim, size in zip(dims, value.shape, strict=True)), (config.name, tensor.name)


@pytest.mark.parametrize("which", ["tiny cpu", "tiny gpu", "nano cpu"])
def test_configurations_agree_with_the_onnx_graphs(world, which: str, tmp_path: Path) -> None:
    _, cpu, gpu = world
    repository = gpu if which == "tiny gpu" else cpu
    if which == "nano cpu":
        copy_nano_repository(tmp_path / "nano")
        repository = tmp_path / "nano"
    compared = 0
    for path in sorted(repository.glob("*/1/model.onnx")):
        config = parsed((path.parents[1] / "config.pbtxt").read_text())
        graph = onnx.load(path, load_external_data=False).graph
        for tensors, values in ((config.input, graph.input), (config.output, graph.output)):
            assert {tensor.name for tensor in tensors} == {value.name for value in values}
            for value in values:
                (tensor,) = [one for one in tensors if one.name == value.name]
                dims = [-1, *tensor.dims] if config.max_batch_size else list(tensor.dims)
                of_graph = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
                assert dims == of_graph, (config.name, value.name)
                kind = ONNX_TYPES[value.type.tensor_type.elem_type]
                assert (
                    tensor.data_type
                    == type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[kind].number
                ), (config.name, value.name)
                compared += 1
    assert compared >= 15


def test_engines_batches_and_warm_ups_are_of_one_profile() -> None:
    config = lavit()
    for spec in gpu_model_specs(config, (4, 128, 128)):
        if not isinstance(spec, GpuModelSpec) or spec.rows is None:
            continue
        found = parsed(spec.pbtxt({}, "b1"))
        rows = ROWS[spec.name]
        assert [group.kind for group in found.instance_group] == [1], "KIND_GPU"
        assert found.max_batch_size == rows.most
        assert list(found.dynamic_batching.preferred_batch_size) == [rows.usual, rows.most]
        assert not found.dynamic_batching.HasField("default_queue_policy")
        assert found.version_policy.latest.num_versions == 1
        (accelerator,) = found.optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.name == "tensorrt"
        assert set(accelerator.parameters) == ACCELERATOR_OPTIONS
        assert accelerator.parameters["trt_engine_cache_path"] == f"{ENGINES}/b1/{spec.name}"
        shapes = [profile(accelerator.parameters[f"trt_profile_{end}_shapes"]) for end in ("min", "opt", "max")]
        assert [set(one) for one in shapes] == [{tensor.name for tensor in spec.inputs}] * 3
        for name in shapes[0]:
            least, usual, most = (one[name] for one in shapes)
            assert (least[0], usual[0], most[0]) == (rows.least, rows.usual, rows.most)
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        for warm in found.model_warmup:
            assert warm.batch_size in {rows.least, rows.usual, rows.most}
            for name, given in warm.inputs.items():
                bounds = zip(shapes[0][name][1:], given.dims, shapes[2][name][1:], strict=True)
                assert all(low <= dim <= high for low, dim, high in bounds)
    assert ROWS["visual_tokenizer"].most >= BATCH, "a client's batch is one request"


def profile(text: str) -> dict[str, list[int]]:
    """`name:1x2,other:3` -> dimensions by name."""
    parts = dict(part.split(":") for part in text.split(","))
    return {name: [int(size) for size in dims.split("x")] for name, dims in parts.items()}


def test_float16_graphs_are_within_their_bounds_and_what_decides_is_float32(world) -> None:
    checkpoint, _, repository = world
    manifest = check_repository(repository, "nano", checkpoint)
    half, full = load_model(checkpoint, placement=Placement("fp16")), load_model(checkpoint)
    for graph in gpu_networks(half, full):
        path = repository / graph_path(graph)
        found = compare(graph, path)
        assert found.within, (graph.title, found)
        assert graph.bounds == (FLOAT16 if graph.model in HALVED else FLOAT32)
        assert found.decisions > 0 or found.scale > 0.01, f"{graph.title}: nothing was compared"
        assert manifest.agreement[graph.title].max_abs_diff <= graph.bounds.difference * max(1.0, found.scale)
        kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
        assert (onnx.TensorProto.FLOAT16 in kinds) == (graph.model in HALVED or graph.model == "mask_generator")
    tokenizer = onnx.load(repository / "visual_tokenizer" / "1" / "model.onnx").graph
    codebook = full.config.tokenizer.codebook_size
    assert any(
        tensor.data_type == onnx.TensorProto.FLOAT and codebook in tensor.dims for tensor in tokenizer.initializer
    ), "codes are looked for in float32"


def test_a_float16_graph_of_other_weights_is_noticed(world) -> None:
    checkpoint, _, repository = world
    half, full = load_model(checkpoint, placement=Placement("fp16")), load_model(checkpoint)
    (graph,) = [one for one in gpu_networks(half, full) if one.model == "token_decoder"]
    with torch.no_grad():
        full.code_decoder.decoder.unet_proj_1.bias += 1
    assert not compare(graph, repository / graph_path(graph)).within


@pytest.fixture
def server(world, monkeypatch: pytest.MonkeyPatch) -> GpuServer:
    return GpuServer(world[2], monkeypatch)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_the_python_models_of_a_gpu_host_draw_what_pytorch_draws(world, server: GpuServer) -> None:
    """float16 may part answers that nearly tie; pictures of the same codes are near."""
    model = load_model(world[0])
    codes = np.array([[3, 1, 4, 1, 5], [9, 2, 6, -1, -1]])
    seeds = np.array([7, 8], dtype=np.uint64)
    drawn = server.infer(
        "pictures", {"tokens": codes, "counts": np.array([5, 3]), "seeds": seeds}, ["images", "embeddings"]
    )
    conditions = [model.code_decoder(*one) for one in padded(model, [codes[0], codes[1][:3]])]
    for row, (embeds, pooled) in enumerate(conditions):
        noise = noise_of(int(seeds[row]), model)
        wanted = model.diffusion.draw(embeds.detach(), pooled.detach(), noise)[0]
        assert np.abs(drawn["images"][row].astype(int) - wanted).mean() < 2
    assert np.allclose(np.linalg.norm(drawn["embeddings"], axis=1), 1, atol=1e-3)
    assert ("unet", 2) in server.calls, "a guided picture is two rows of a batched model"


def padded(model: PigeonModel, rows: list[Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    width = model.config.decoder.max_tokens
    return [(torch.from_numpy(np.pad(row, (0, width - len(row)))[None]), torch.tensor([len(row)])) for row in rows]


def noise_of(seed: int, model: PigeonModel) -> np.ndarray:
    return noise_image(seed, 0, model.diffusion.latent_shape)[None]


def test_a_whole_task_and_its_answers_run_on_a_gpu_hosts_models(world, server: GpuServer) -> None:
    model = load_model(world[0])
    items = [Item(f"w{n} w{n + 1}", image(n), "w5 w9") for n in range(3)]
    wanted = PigeonPipeline(model)([Task(items[:2], items[2], 3, (0.0, 1.0))])[0]
    asked = {
        "prompt": np.array([prompt_json(items, wanted)], dtype=np.object_),
        "alphas": np.array([0.0, 1.0]),
        "seed": np.array([3], dtype=np.uint64),
        "adapter_version": np.array([1]),
    }
    answers = server.infer(
        "answers",
        {**asked, "temperatures": np.array([0.0, 1.0])},
        ["tokens", "counts", "logprobs", "previews", "preview_kind"],
    )
    assert (answers["counts"] > 0).all()
    assert (answers["logprobs"] <= 0).all()
    drawn = server.infer("pigeon", asked, ["images", "tokens", "counts", "embeddings"])
    same = [
        drawn["tokens"][row][: drawn["counts"][row]].tolist() == list(one.codes)
        for row, one in enumerate(wanted.candidates)
    ]
    assert any(same), "float16 parted every answer from PyTorch's"


def prompt_json(items: list[Item], wanted: Any) -> bytes:
    return json.dumps(
        {
            "history_titles": [item.title for item in items[:2]],
            "history_tokens": [list(map(int, codes)) for codes in wanted.history_codes],
            "title": items[2].title,
            "description": "w5 w9",
            "reference_tokens": list(map(int, wanted.reference_codes)),
        }
    ).encode()


def test_more_rows_than_an_engine_takes_are_several_requests(world, server: GpuServer) -> None:
    most = ROWS["image_tower"].most
    images = np.stack([image(n) for n in range(most + 3)])
    texts = np.array([b"w1 w2", "w\u00e4".encode()], dtype=np.object_)
    found = server.infer("image_scorer", {"images": images, "texts": texts}, ["image_embeddings", "text_embeddings"])
    assert server.calls == [("image_tower", most), ("image_tower", 3), ("text_tower", 2)]
    assert (len(found["image_embeddings"]), len(found["text_embeddings"])) == (most + 3, 2)
    with pytest.raises(AssertionError, match="image_tower: inputs have"):
        server.infer("image_scorer", {"images": images[:0]}, ["image_embeddings"])


def test_equal_versions_would_be_equal_results(world) -> None:
    """A GPU host gives other codes and pictures than a CPU one; an adapter fits both."""
    cpu, gpu = (read_manifest(repository) for repository in world[1:])
    assert isinstance(cpu, RepositoryManifest)
    assert isinstance(gpu, RepositoryManifest)
    assert gpu.adapter_base == cpu.adapter_base
    for name in ("tokenizer_version", "drawing_version", "base_weights"):
        assert len(getattr(gpu, name)) == 16
        assert getattr(gpu, name) != getattr(cpu, name)
    assert gpu.gpu
    assert gpu.gpu.compute_capabilities == ("9.0",)
    assert list(gpu.models)[-3:] == ["answers", "pictures", "pigeon"]
    assert set(MODELS) < set(gpu.models)


def test_a_cpu_repository_knows_nothing_of_gpus(world) -> None:
    text = (world[1] / "manifest.json").read_text()
    assert '"target": "onnx"' in text
    assert "gpu" not in text
    assert not [path for path in world[1].rglob("*.py") if "gpu" in path.parts]


def test_a_repository_of_another_target_is_not_replaced(world, monkeypatch) -> None:
    checkpoint, cpu, _ = world
    monkeypatch.setattr(build, "_write", lambda *_: pytest.fail("something was exported"))
    with pytest.raises(InputError, match="is of target onnx, and would be replaced by one of target gpu"):
        build.build_repository(checkpoint, "nano", cpu, target=GPU)


def test_the_image_of_the_dockerfile_is_the_one_that_repositories_name() -> None:
    dockerfile = (CHECKOUT / "deploy" / "triton" / "Dockerfile").read_text()
    assert GPU.gpu
    assert f"FROM ${{REGISTRY}}/{GPU.gpu.image}${{DIGEST}}" in dockerfile
    shared = (CHECKOUT / "deploy" / "local" / "triton-requirements.txt").read_text().splitlines()
    own = (CHECKOUT / "deploy" / "triton" / "gpu-requirements.txt").read_text().splitlines()
    pins = {line for line in own if re.match(r"\w", line)}
    assert pins <= set(shared), "both servers run our Python models with the same packages"


def test_backends_of_a_gpu_host_import_only_what_its_image_has() -> None:
    allowed = {"numpy", "tokenizers", "triton_python_backend_utils", "generator"}
    for path in (CHECKOUT / "generator" / "serving" / "gpu" / "backends").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {name}"
                if name.startswith("generator.serving"):
                    assert ".backends." in name, f"{path.name}: {name}"
