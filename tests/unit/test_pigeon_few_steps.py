"""Drawing in few steps: the consistency sampler, a LoRA of the UNet, and what both are known by."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline
from diffusers.schedulers import scheduling_lcm
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from generator.pigeon.checkpoint import load_model
from generator.pigeon.ddim import DdimSchedule
from generator.pigeon.diffusion import Diffusion
from generator.pigeon.lcm import LcmSchedule, schedule_from_config, step_noise
from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import PigeonPipeline
from generator.pigeon.presets import SDXL_SCHEDULER
from generator.pigeon.sampling import noise_image
from generator.serving.backends.pictures import draw_pictures
from generator.serving.backends.task import TaskConfig
from generator.serving.build import _backend_config
from generator.serving.repository import tree_hashes
from generator.serving.versions import Versions, checkpoint_versions
from schemas.errors import ModelError
from tests.support.served_networks import ServedNetworks
from tests.support.tiny_serving import tiny_checkpoint

torch.set_num_threads(1)

PIXELS = "highres_pixel_decoding"
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "time_emb_proj")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("few-steps") / "checkpoint")


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "checkpoint")


def with_lora(unet: Any, folder: Path) -> Any:
    """A copy of the UNet with a random LoRA at work, which is stored in `folder` as diffusers stores it."""
    changed = copy.deepcopy(unet)
    torch.manual_seed(1)
    changed.add_adapter(LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, target_modules=list(LAYERS)))
    StableDiffusionXLPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(changed),
        unet_lora_adapter_metadata=changed.peft_config["default"].to_dict(),
    )
    return changed


def output(model: PigeonModel, unet: Any) -> torch.Tensor:
    """The UNet's output for fixed inputs, under the model's conditions."""
    diffusion = Diffusion(model.config.diffusion, unet, model.diffusion.vae, model.diffusion.scheduler)
    queries, width = model.config.decoder.queries, model.config.decoder.prompt_width
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, *diffusion.latent_shape, generator=generator)
    embeds = torch.randn(2, queries, width, generator=generator)
    pooled = torch.randn(2, model.config.decoder.pooled_width, generator=generator)
    with torch.no_grad():
        return diffusion.unet_output(latents, torch.tensor([5, 700]), embeds, pooled)


def versions(checkpoint: Path) -> Versions:
    return checkpoint_versions(tree_hashes(checkpoint), load_model(checkpoint))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_consistency_sampler_agrees_with_diffusers(
    prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**SDXL_SCHEDULER, "prediction_type": prediction}
    theirs = LCMScheduler.from_config(config)
    theirs.set_timesteps(steps)
    ours = schedule_from_config({**theirs.config, "_class_name": "LCMScheduler"}, steps)
    assert isinstance(ours, LcmSchedule)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    rng = np.random.default_rng(1)
    start = sample = rng.normal(size=(2, 4, 8, 8)).astype(np.float32)
    expected = torch.from_numpy(sample)
    for index, timestep in enumerate(theirs.timesteps):
        predicted = rng.normal(size=sample.shape).astype(np.float32)
        noise = torch.from_numpy(step_noise(start, index))
        monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, noise=noise, **__: noise)
        expected = theirs.step(torch.from_numpy(predicted), timestep, expected).prev_sample
        sample = ours.step(index, sample, predicted, start)
        np.testing.assert_allclose(sample, expected.numpy(), atol=2e-4, rtol=2e-4)


def test_the_noise_of_a_step_is_a_function_of_its_own_row_and_step() -> None:
    start = np.random.default_rng(3).normal(size=(3, 4, 8, 8)).astype(np.float32)
    together = step_noise(start, 1)
    np.testing.assert_array_equal(together[1:2], step_noise(start[1:2], 1))
    assert (together[0] != together[1]).any()
    assert (together != step_noise(start, 2)).any()
    assert abs(float(together.std()) - 1) < 0.1


def test_a_scheduler_names_its_sampler_and_what_it_cannot_do() -> None:
    assert isinstance(schedule_from_config({"_class_name": "EulerDiscreteScheduler"}, 4), DdimSchedule)
    named = {"_class_name": "LCMScheduler"}
    with pytest.raises(ValueError, match="steps: 51 must lie between 1 and original_inference_steps 50"):
        schedule_from_config(named, 51)
    with pytest.raises(ValueError, match="prediction_type: 'flow'"):
        schedule_from_config({**named, "prediction_type": "flow"}, 4)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_lora_in_the_checkpoint_is_merged_into_the_unet(checkpoint: Path, form: str) -> None:
    plain = load_model(checkpoint)
    before = versions(checkpoint)
    folder = checkpoint / PIXELS / "unet_lora"
    changed = with_lora(plain.diffusion.unet, folder)
    if form == "kohya":
        as_kohya(folder / "pytorch_lora_weights.safetensors", alpha=6.0)
    loaded = load_model(checkpoint)
    found = output(plain, loaded.diffusion.unet)
    torch.testing.assert_close(found, output(plain, changed), atol=1e-4, rtol=1e-4)
    assert (found - output(plain, plain.diffusion.unet)).abs().max() > 0.1
    assert not [name for name, _ in loaded.diffusion.unet.named_parameters() if "lora" in name]
    after = versions(checkpoint)
    assert {name for name, value in vars(before).items() if vars(after)[name] != value} == {"drawing_version"}


def as_kohya(path: Path, alpha: float) -> None:
    """Rewrite a file of diffusers' in the form of kohya's scripts, without metadata."""
    state: dict[str, torch.Tensor] = {}
    for name, value in load_file(path).items():
        layer, _, kind = name.removeprefix("unet.").partition(".lora_")
        flat = f"lora_unet_{layer.replace('.', '_')}"
        state[f"{flat}.lora_{'down' if kind.startswith('A') else 'up'}.weight"] = value
        state[f"{flat}.alpha"] = torch.tensor(alpha)
    save_file(state, path)


def other_layers(path: Path) -> None:
    save_file({name.replace("down_blocks.0", "down_blocks.9"): value for name, value in load_file(path).items()}, path)


def no_unet(path: Path) -> None:
    save_file({name.replace("unet.", "text_encoder."): value for name, value in load_file(path).items()}, path)


def other_width(path: Path) -> None:
    save_file({name: torch.cat([value, value], dim=1) for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_layers, r"layers are not in the UNet, the first is down_blocks\.9"),
        (no_unet, "no weight of it is for a UNet"),
        (other_width, "cannot be merged into the UNet"),
        (lambda path: path.write_bytes(b"no weights"), "cannot be read as weights"),
        (lambda path: path.unlink(), "expected the LoRA of a UNet"),
    ],
)
def test_a_lora_that_does_not_fit_is_named(checkpoint: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = checkpoint / PIXELS / "unet_lora"
    with_lora(load_model(checkpoint).diffusion.unet, folder)
    damage(folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(ModelError, match=message) as raised:
        load_model(checkpoint)
    assert str(folder) in str(raised.value)


def test_a_unet_that_takes_its_guidance_as_an_input_is_refused(checkpoint: Path) -> None:
    edit(checkpoint / PIXELS / "unet" / "config.json", lambda fields: fields.update(time_cond_proj_dim=256))
    with pytest.raises(ModelError, match="time_cond_proj_dim is 256: this UNet takes the guidance as an input"):
        load_model(checkpoint)


def test_sampler_steps_and_guidance_of_the_checkpoint_are_what_serving_draws_with(checkpoint: Path) -> None:
    before = versions(checkpoint)
    with_lora(load_model(checkpoint).diffusion.unet, checkpoint / PIXELS / "unet_lora")
    edit(checkpoint / "config.json", lambda fields: fields["diffusion"].update(steps=2, guidance=1.0))
    edit(
        checkpoint / PIXELS / "scheduler" / "scheduler_config.json",
        lambda fields: fields.update(_class_name="LCMScheduler", original_inference_steps=40),
    )
    model = load_model(checkpoint)
    config = TaskConfig.from_json(json.loads(json.dumps(_backend_config(model.config, model, checkpoint))))
    served = ServedNetworks(model)
    drawn = draw_pictures(config, [[1, 2, 3], [4, 5]], [5, 6], served)
    assert served.rows.count(("unet", 1)) == 4, "two steps for each picture, no unconditional twin"
    pipeline = PigeonPipeline(model)
    for seed, codes, image in zip([5, 6], [[1, 2, 3], [4, 5]], drawn.images, strict=True):
        with torch.no_grad():
            wanted = model.diffusion.draw(*pipeline.decode([codes]), noise_image(seed, 0, config.latent_shape)[None])[0]
        assert np.abs(image.astype(int) - wanted).max() <= 1
    assert versions(checkpoint).drawing_version != before.drawing_version


def test_what_a_scheduler_is_known_by_is_the_same_in_every_process(checkpoint: Path) -> None:
    """diffusers adds which fields it filled in, in the order of a set."""
    assert [name for name in load_model(checkpoint).diffusion.scheduler if name.startswith("_")] == ["_class_name"]
