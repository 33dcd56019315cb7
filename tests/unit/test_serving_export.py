"""Each exported graph and the whole task in numpy against PyTorch; the adapter as an input."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generator.pigeon.checkpoint import load_model
from generator.pigeon.masking import keep_top as torch_keep_top
from generator.pigeon.masking import type_probability
from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import Item, PigeonPipeline, Task
from generator.serving import adapters, export
from generator.serving.agreement import compare
from generator.serving.backends import graph as graphs
from generator.serving.backends.generation import AnswerGenerator, merged, shared_prefix
from generator.serving.backends.graph import BadAnswer, BadInput, Graph
from generator.serving.backends.masks import keep_top
from generator.serving.backends.task import Prompt, TaskConfig, draw
from generator.serving.build import Built, _backend_config
from tests.support.served_networks import ServedNetworks, graph_path
from tests.support.tiny_serving import tiny_build

ALPHAS = (0.0, 0.5, 1.0)
# The first run exports the tiny model, which takes minutes where the cores are busy.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[PigeonModel, Path, Built, Path]:
    folder = tmp_path_factory.mktemp("serving")
    checkpoint, built = tiny_build(folder)
    return load_model(checkpoint), folder / "models", built, checkpoint


def test_every_graph_agrees_with_pytorch(world) -> None:
    model, repository, built, _ = world
    networks = export.networks(model)
    assert {network.title for network in networks} == set(built.manifest.agreement)
    for network in networks:
        found = compare(network, graph_path(repository, network))
        assert found.max_abs_diff < 1e-4, network.title
        assert found.flipped_share == 0, network.title
        assert found.decisions > 0 or found.scale > 0.01, f"{network.title}: nothing was compared"


def test_a_graph_of_other_weights_is_noticed(world, tmp_path) -> None:
    model, repository, _, _ = world
    network = next(n for n in export.networks(model) if n.model == "token_decoder")
    with torch.no_grad():
        bias = model.code_decoder.decoder.unet_proj_1.bias
        bias += 1
        try:
            found = compare(network, graph_path(repository, network))
        finally:
            bias -= 1
    assert not found.within
    assert found.max_abs_diff > 0.9


def test_the_step_graph_is_the_language_model_with_its_adapter(world) -> None:
    """Empty cache, then a longer one; LoRA as inputs equals LoRA inside PEFT."""
    model, repository, _, _ = world
    step = Graph(repository / "personalizer" / "graph" / "model.onnx")
    stored = np.load(repository / "personalizer" / "1" / "adapter.npz")
    lora = {name: stored[name] for name in ("lora_a", "lora_b")}
    ids = np.random.default_rng(0).integers(0, model.config.ids.vocab_size, (2, 12))
    layers, _, heads, _, width = step.inputs["past_key"][1]
    empty = np.zeros((layers, 2, heads, 0, width), np.float32)
    condition = np.zeros((2, model.config.decoder.prompt_width), np.float32)
    first = step({"input_ids": ids[:, :9], "condition": condition, "past_key": empty, "past_value": empty, **lora})
    second = step(
        {
            "input_ids": ids[:, 9:],
            "condition": condition,
            "past_key": first["key"],
            "past_value": first["value"],
            **lora,
        }
    )
    with torch.no_grad():
        wanted = model.personalizer.llama(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(first["logits"], wanted[:, 8], atol=1e-4)
    np.testing.assert_allclose(second["logits"], wanted[:, 11], atol=1e-4)
    plain = step(
        {
            "input_ids": ids[:, :9],
            "condition": condition,
            "past_key": empty,
            "past_value": empty,
            "lora_a": lora["lora_a"],
            "lora_b": np.zeros_like(lora["lora_b"]),
        }
    )
    assert np.abs(plain["logits"] - first["logits"]).max() > 1e-2, "this adapter should matter"


def _image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def served(world) -> ServedNetworks:
    model, repository, _, _ = world
    return ServedNetworks.exported(model, repository)


def test_a_task_in_numpy_is_the_pytorch_pipeline(world, served: ServedNetworks) -> None:
    model, _, _, checkpoint = world
    config = TaskConfig.from_json(_backend_config(model.config, model, checkpoint))
    pipeline = PigeonPipeline(model)
    served.versions.clear()
    for seed in (3, 2**63 + 1):
        items = [Item(f"w{n} w{n + 1}", _image(seed % 100 + n), "w5 w9") for n in range(3)]
        wanted = pipeline([Task(items[:2], items[2], seed, ALPHAS)])[0]
        prompt = Prompt(
            [i.title for i in items[:2]], wanted.history_codes, items[2].title, "w5 w9", wanted.reference_codes
        )
        drawn = draw(config, prompt, ALPHAS, seed, 7, model.encode_text, served)
        assert drawn.codes == [candidate.codes for candidate in wanted.candidates]
        for image, candidate in zip(drawn.images, wanted.candidates, strict=True):
            assert np.abs(image.astype(int) - candidate.image).max() <= 1, "rounding may move a pixel by one"
        assert np.allclose(np.linalg.norm(drawn.embeddings, axis=1), 1, atol=1e-5)
    assert served.versions == [7, 7]


@given(
    scores=st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=30),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_masks_in_numpy_are_those_of_pytorch(scores, alpha, seed) -> None:
    rng = np.random.default_rng(seed)
    values = np.array(scores, np.float32)
    member = rng.random(len(values)) < 0.7
    noise = rng.gumbel(size=len(values)).astype(np.float32)
    probability = type_probability(torch.from_numpy(values)[None], torch.from_numpy(member)[None])
    wanted = torch_keep_top(
        probability,
        torch.from_numpy(member)[None],
        torch.tensor([alpha], dtype=torch.float64),
        noise=torch.from_numpy(noise)[None],
    )
    assert keep_top(values, member, alpha, noise).tolist() == (wanted[0] > 0.5).tolist()


def test_a_shared_prefix_ends_before_what_differs() -> None:
    rows = np.array([[5, 6, -2, 7], [5, 6, -2, 7]])
    assert shared_prefix(rows) == 2
    assert shared_prefix(np.array([[5, 6, 8], [5, 9, 8]])) == 1
    assert shared_prefix(np.array([[5, 6, 8], [5, 6, 8]])) == 2, "the last token is always computed with all rows"
    assert shared_prefix(np.array([[-2]])) == 0


def test_answers_that_agree_so_far_are_one_row_of_the_language_model(world) -> None:
    """And are the answers that each would be alone."""
    model, repository, _, _ = world
    step = Graph(repository / "personalizer" / "graph" / "model.onnx")
    lora = model.personalizer.lora()
    rows: list[int] = []

    class Counted:
        inputs = step.inputs

        def __call__(self, feeds):
            rows.append(len(feeds["input_ids"]))
            return step(feeds)

    generator = AnswerGenerator(
        Counted(),
        {"lora_a": lora.a.detach().numpy(), "lora_b": lora.b.detach().numpy()},
        model.config.generation,
        model.config.ids.image_end,
        model.config.language.max_positions,
    )
    prompts = np.repeat(np.array([[1, 5, 6, -2, 7, 8]]), 6, axis=0)
    condition = np.random.default_rng(0).normal(size=(2, model.config.decoder.prompt_width)).astype(np.float32)
    condition = condition[[0, 0, 0, 0, 1, 1]]
    streams = [(3, variant) for variant in range(6)]
    temperatures = [0.0, 0.0, 1.3, 1.3, 0.0, 2.0]
    together = generator.generate(prompts, condition, streams, temperatures=temperatures)
    assert rows[:2] == [1, 2], "one prefix, two conditions"
    assert max(rows) <= 5, "two greedy answers are one"
    assert together.rows[0] == together.rows[1] != together.rows[2]
    assert together.logprobs[0] == together.logprobs[1]
    for row in range(6):
        own = slice(row, row + 1)
        alone = generator.generate(prompts[own], condition[own], streams[own], temperatures=temperatures[own])
        assert alone.rows[0] == together.rows[row]
        assert alone.logprobs[0] == pytest.approx(together.logprobs[row], abs=1e-4)
    firsts, group = merged(["b", "a", "b", "c", "a"])
    assert (firsts, group.tolist()) == ([0, 1, 3], [0, 1, 0, 2, 1])


def test_graphs_refuse_what_does_not_fit(world, monkeypatch) -> None:
    _, repository, _, _ = world
    decoder = Graph(repository / "token_decoder" / "1" / "model.onnx")
    good = {"codes": np.zeros((1, 16), np.int64), "lengths": np.ones(1, np.int64)}
    assert decoder(good)["pooled"].shape == (1, 12)
    with pytest.raises(BadInput, match="input codes is int32"):
        decoder({**good, "codes": good["codes"].astype(np.int32)})
    with pytest.raises(BadInput, match=r"input codes is int64\[1, 15\], the model takes int64\[batch, 16\]"):
        decoder({**good, "codes": good["codes"][:, :15]})
    with pytest.raises(BadInput, match="input lengths is missing"):
        decoder({"codes": good["codes"]})
    vae = Graph(repository / "vae_decoder" / "1" / "model.onnx")
    with pytest.raises(BadAnswer, match="decoded is not finite"):
        vae({"latents": np.full((1, 4, 8, 8), np.nan, np.float32)})


def test_backends_import_only_what_triton_has() -> None:
    allowed = {"numpy", "onnxruntime", "tokenizers", "triton_python_backend_utils", "generator"}
    ours = {f"generator.pigeon.{name}" for name in ("prompt", "sampling", "ddim", "lcm")}
    folder = Path(graphs.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in allowed or top in __import__("sys").stdlib_module_names, f"{path.name} imports {name}"
                if top == "generator":
                    assert name in ours or name.startswith("generator.serving.backends."), f"{path.name}: {name}"


def test_lora_is_read_without_torch_as_with_it(world) -> None:
    model, _, _, checkpoint = world
    read = adapters.read_lora(checkpoint / "pigeon", model.config.language.model_dump())
    wanted = model.personalizer.lora()
    np.testing.assert_array_equal(read["lora_a"], wanted.a.numpy())
    np.testing.assert_array_equal(read["lora_b"], wanted.b.numpy())
