"""Token sampling and DDIM, the two numpy modules that serving copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from generator.pigeon.ddim import DdimSchedule, guide, sdxl_time_ids, to_uint8
from generator.pigeon.presets import SDXL_SCHEDULER
from generator.pigeon.sampling import AnswerSampler, GenerationConfig, answer_codes, noise_image, sample_tokens

END, VOCABULARY = 21, 40
CONFIG = GenerationConfig(min_new_tokens=3, max_new_tokens=12, top_k=5, suppressed=((0, 21),))


def answers(streams: list[tuple[int, int]], logits: dict[tuple[int, int], np.ndarray]) -> list[list[int]]:
    sampler = AnswerSampler(CONFIG, streams, END, VOCABULARY)
    step = 0
    while not sampler.done:
        sampler.step(np.stack([logits[stream][step] for stream in streams]))
        step += 1
    return sampler.rows


def test_a_row_does_not_depend_on_its_neighbours_and_obeys_its_limits() -> None:
    streams = [(seed, variant) for seed in (7, 2**63) for variant in range(4)]
    rng = np.random.default_rng(0)
    logits = {s: rng.normal(size=(12, VOCABULARY)).astype(np.float32) * 3 for s in streams}
    for rows in logits.values():
        rows[:, END] += 3
    together = answers(streams, logits)
    assert together == [answers([stream], logits)[0] for stream in streams]
    assert len({tuple(row) for row in together}) > 1
    assert all(3 <= len(row) <= 12 for row in together)
    assert any(len(row) < 12 for row in together)
    assert all(21 < token < VOCABULARY for row in together for token in row)


def test_top_k_and_temperature_follow_the_softmax() -> None:
    logits = np.log(np.array([[0.5, 0.1, 0.3, 0.1]], dtype=np.float32))
    uniforms = (np.arange(10_000) + 0.5) / 10_000
    drawn = sample_tokens(np.repeat(logits, 10_000, axis=0), uniforms, top_k=2, temperature=1.0)
    assert np.bincount(drawn, minlength=4).tolist() == pytest.approx([6250, 0, 3750, 0], abs=1)
    sharper = sample_tokens(np.repeat(logits, 10_000, axis=0), uniforms, top_k=2, temperature=0.5)
    assert np.bincount(sharper, minlength=4).tolist() == pytest.approx([7353, 0, 2647, 0], abs=1)


def test_answer_codes_drop_what_is_not_visual() -> None:
    assert answer_codes([22, 5, 30, 21, 39], code_offset=22, max_tokens=2) == [0, 8]


def test_broken_logits_and_settings_are_named() -> None:
    sampler = AnswerSampler(CONFIG, [(0, 0)], END, VOCABULARY)
    with pytest.raises(ValueError, match="logits of step 0 are not finite"):
        sampler.step(np.full((1, VOCABULARY), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="min_new_tokens 9 must lie between 0 and max_new_tokens 4"):
        GenerationConfig(min_new_tokens=9, max_new_tokens=4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "extra",
    [{}, {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "set_alpha_to_one": True}],
)
def test_ddim_agrees_with_diffusers(spacing: str, prediction: str, extra: dict[str, object]) -> None:
    config = {**SDXL_SCHEDULER, "timestep_spacing": spacing, "prediction_type": prediction, **extra}
    if spacing == "trailing":
        config["rescale_betas_zero_snr"] = prediction != "epsilon"
    theirs = DDIMScheduler(**config)
    theirs.set_timesteps(10)
    ours = DdimSchedule.from_config(config, 10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    rng = np.random.default_rng(1)
    sample = rng.normal(size=(2, 4, 8, 8)).astype(np.float32)
    expected = torch.from_numpy(sample)
    for index, timestep in enumerate(theirs.timesteps):
        predicted = rng.normal(size=sample.shape).astype(np.float32)
        expected = theirs.step(torch.from_numpy(predicted), timestep, expected).prev_sample
        sample = ours.step(index, sample, predicted)
        np.testing.assert_allclose(sample, expected.numpy(), atol=2e-4, rtol=2e-4)


def test_guidance_time_ids_and_bytes() -> None:
    without, with_ = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    assert guide(without, with_, 7.0).tolist() == [[7.0, 7.0]]
    assert sdxl_time_ids(2, 64).tolist() == [[64, 64, 0, 0, 64, 64]] * 2
    image = to_uint8(np.array([-2.0, 0.0, 1.0], np.float32).reshape(1, 3, 1, 1))
    assert image.tolist() == [[[[0, 128, 255]]]]
    with pytest.raises(ValueError, match="prediction_type: 'flow'"):
        DdimSchedule.from_config({"prediction_type": "flow"}, 5)


def test_noise_is_a_function_of_seed_and_variant() -> None:
    assert (noise_image(1, 2, (4, 4)) == noise_image(1, 2, (4, 4))).all()
    assert (noise_image(1, 2, (4, 4)) != noise_image(1, 3, (4, 4))).any()
