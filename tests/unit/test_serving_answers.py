"""Answers, previews and pictures in numpy, against the PyTorch pipeline and each against itself alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from generator.pigeon.checkpoint import load_model
from generator.pigeon.diffusion import sketch as torch_sketch
from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import Item, PigeonPipeline, Task
from generator.pigeon.presets import tiny
from generator.pigeon.sampling import noise_image
from generator.serving.backends.answers import answer
from generator.serving.backends.graph import BadInput
from generator.serving.backends.pictures import BATCH_EMBEDDING, BATCH_LEVELS, draw_pictures
from generator.serving.backends.previews import PreviewMemory, preview_rows, sketch
from generator.serving.backends.task import Prompt, TaskConfig
from generator.serving.build import _backend_config
from tests.support.served_networks import ServedNetworks
from tests.support.tiny_serving import tiny_build, tiny_model

# The first run exports the tiny model, which takes minutes where the cores are busy.
pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class TinyWorld:
    """The tiny checkpoint, loaded, and its exported graphs."""

    model: PigeonModel
    checkpoint: Path
    served: ServedNetworks

    def config(self, model: PigeonModel | None = None, **diffusion: object) -> TaskConfig:
        """What the build tells the backends; `diffusion`: settings in the place of the checkpoint's."""
        model = model or self.model
        changed = model.config.model_copy(update={"diffusion": model.config.diffusion.model_copy(update=diffusion)})
        return TaskConfig.from_json(_backend_config(changed, model, self.checkpoint))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    folder = tmp_path_factory.mktemp("serving")
    checkpoint, _ = tiny_build(folder)
    model = load_model(checkpoint)
    return TinyWorld(model, checkpoint, ServedNetworks.exported(model, folder / "models"))


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


GRID = (0.0, 0.5, 1.0, 0.0, 0.5, 1.0)
TEMPERATURES = (0.0, 0.7, 0.7, 1.3, 1.6, 2.0)


@pytest.mark.parametrize("kind", ["sketch", "conditions"])
def test_answers_in_numpy_are_those_of_the_pytorch_pipeline(world: TinyWorld, kind: str) -> None:
    """Codes, both log-probabilities and previews; the tiny model sketches, and a variant of it does not."""
    model, call = world.model, world.served
    if kind == "conditions":
        model = tiny_model(tiny())
        call = ServedNetworks(model)
    assert model.config.preview_kind == kind
    config = world.config(model)
    pipeline = PigeonPipeline(model)
    for seed in (3, 2**63 + 1):
        items = [Item(f"w{n} w{n + 1}", image(seed % 100 + n), "w5 w9") for n in range(3)]
        task = Task(items[:2], items[2], seed)
        history, references = pipeline.encode([task])
        wanted = pipeline.answer(task, GRID, TEMPERATURES)
        prompt = Prompt([i.title for i in items[:2]], history[0], items[2].title, "w5 w9", references[0])
        found = answer(config, prompt, GRID, TEMPERATURES, seed, 1, model.encode_text, call)
        assert found.codes == [one.codes for one in wanted.answers]
        assert [(one.alpha, one.temperature) for one in wanted.answers] == list(zip(GRID, TEMPERATURES, strict=True))
        np.testing.assert_allclose(found.logprobs, [one.logprob for one in wanted.answers], atol=1e-4)
        np.testing.assert_allclose(found.sampling_logprobs, [one.sampling_logprob for one in wanted.answers], atol=1e-4)
        np.testing.assert_allclose(found.previews, [one.preview for one in wanted.answers], atol=0.02)
        np.testing.assert_allclose(found.history_previews, wanted.history_previews, atol=0.02)
        np.testing.assert_allclose(np.linalg.norm(found.previews, axis=1), 1, atol=1e-5)
        assert found.previews.shape == (6, model.config.preview_width)
        assert (found.logprobs < 0).all()
        assert found.sampling_logprobs[0] == 0
        assert len({tuple(codes) for codes in found.codes}) > 1
        assert np.abs(found.previews[0] - found.previews[-1]).max() > 0.02, "other codes, another preview"


def test_a_preview_depends_on_its_own_codes_alone(world: TinyWorld) -> None:
    served, config = world.served, world.config()
    codes = [[1, 2, 3], [4, 5], [1, 2, 3], [], list(range(16))]
    served.rows.clear()
    together = preview_rows(config, codes, served)
    assert served.rows.count(("vae_decoder", 1)) == 4, "equal codes are looked at once"
    for row, own in zip(together, codes, strict=True):
        np.testing.assert_array_equal(row, preview_rows(config, [own], served)[0])


def test_a_preview_that_is_remembered_is_the_same_and_the_memory_is_bounded(world: TinyWorld) -> None:
    served, config, memory = world.served, world.config(), PreviewMemory(2)
    first, second, third = [1, 2, 3], [4, 5], [6]
    wanted = preview_rows(config, [first, second, third], served)
    served.rows.clear()
    for codes, decoded in (([first, second], 2), ([second, first], 2), ([third], 3), ([first], 3), ([second], 4)):
        rows = preview_rows(config, codes, served, memory)
        assert served.rows.count(("vae_decoder", 1)) == decoded, "the two that were asked for last are kept"
        for row, own in zip(rows, codes, strict=True):
            np.testing.assert_array_equal(row, wanted[[first, second, third].index(own)])


def test_the_sketch_in_numpy_is_that_of_pytorch() -> None:
    embeds = np.random.default_rng(0).normal(size=(3, 16, 128)).astype(np.float32)
    np.testing.assert_array_equal(sketch(embeds, 4, 16), torch_sketch(torch.from_numpy(embeds), 4, 16).numpy())


def test_a_picture_is_one_unet_call_and_depends_on_its_own_request_alone(world: TinyWorld) -> None:
    model, served, config = world.model, world.served, world.config()
    codes, seeds = [[1, 2, 3], [4, 5], [1, 2, 3], [], list(range(16))], [5, 2**64 - 1, 6, 7, 8]
    served.rows.clear()
    together = draw_pictures(config, codes, seeds, served)
    assert {count for name, count in served.rows if name == "unet"} == {2}, "one picture with and without its condition"
    for number, (own, seed) in enumerate(zip(codes, seeds, strict=True)):
        alone = draw_pictures(config, [own], [seed], served)
        np.testing.assert_array_equal(alone.images[0], together.images[number])
        np.testing.assert_array_equal(alone.embeddings[0], together.embeddings[number])
    assert (together.images[0] != together.images[2]).any(), "another seed, another picture"
    wanted = PigeonPipeline(model)
    with torch.no_grad():
        noise = noise_image(5, 0, config.latent_shape)[None]
        image = model.diffusion.draw(*wanted.decode([codes[0]]), noise)[0]
    assert np.abs(together.images[0].astype(int) - image).max() <= 1


def test_pictures_drawn_at_once_are_those_drawn_alone_within_the_bounds(world: TinyWorld) -> None:
    served, config = world.served, world.config()
    codes, seeds = [[1, 2, 3], [4, 5], [], list(range(16)), [7]], [5, 6, 7, 8, 9]
    alone = draw_pictures(config, codes, seeds, served)
    served.rows.clear()
    together = draw_pictures(config, codes, seeds, served, batch=4)
    assert {count for name, count in served.rows if name == "unet"} == {8, 2}, "four and one, each with its twin"
    assert np.abs(together.images.astype(int) - alone.images).max() <= BATCH_LEVELS
    assert np.abs(together.embeddings - alone.embeddings).max() <= BATCH_EMBEDDING
    assert (alone.images[0] != alone.images[1]).any()


def test_steps_and_guidance_are_the_checkpoints_settings(world: TinyWorld) -> None:
    model, served = world.model, world.served
    config = world.config(steps=2, guidance=1.0)
    served.rows.clear()
    drawn = draw_pictures(config, [[1, 2]], [3], served)
    assert [count for name, count in served.rows if name == "unet"] == [1, 1], "two steps without guidance"
    with torch.no_grad():
        image = model.diffusion.draw(
            *PigeonPipeline(model).decode([[1, 2]]), noise_image(3, 0, config.latent_shape)[None], steps=2, guidance=1.0
        )[0]
    assert np.abs(drawn.images[0].astype(int) - image).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatures": (0.0,)}, "temperatures: 1 for 6 alphas"),
        ({"temperatures": (-1.0,) * 6}, r"must each be 0 \(greedy\)"),
        ({"alphas": (2.0,) * 6}, r"alphas: .* in 0\.\.1"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_a_wrong_request_for_answers_is_named(world: TinyWorld, change: dict, message: str) -> None:
    model, served, config = world.model, world.served, world.config()
    prompt = Prompt(["w1"], [[1, 2]], "w2", "", [3])
    given = {"alphas": GRID, "temperatures": TEMPERATURES, "seed": 1, **change}
    with pytest.raises(BadInput, match=message):
        answer(config, prompt, adapter_version=1, encode=model.encode_text, call=served, **given)


@pytest.mark.parametrize(
    ("codes", "seeds", "message"),
    [
        ([], [], "0 rows of tokens for 0 seeds"),
        ([[1]], [1, 2], "1 rows of tokens for 2 seeds"),
        ([[1], [32]], [1, 2], r"tokens of row 1 must be at most 16 values in 0\.\.31"),
        ([[1] * 17], [1], "tokens of row 0"),
    ],
)
def test_a_wrong_request_for_pictures_is_named(world: TinyWorld, codes, seeds, message) -> None:
    served, config = world.served, world.config()
    with pytest.raises(BadInput, match=message):
        draw_pictures(config, codes, seeds, served)
