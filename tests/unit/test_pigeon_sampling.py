"""Token sampling and DDIM, the two numpy modules that serving copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from generator.pigeon.ddim import DdimSchedule, guide, sdxl_time_ids, to_uint8
from generator.pigeon.presets import SDXL_SCHEDULER
from generator.pigeon.sampling import (
    AnswerSampler,
    GenerationConfig,
    answer_codes,
    noise_image,
    row_stream,
    sample_tokens,
)

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
    many = np.repeat(logits, 10_000, axis=0)
    for temperature, wanted in ((1.0, [6250, 0, 3750, 0]), (0.5, [7353, 0, 2647, 0])):
        drawn, logprobs = sample_tokens(many, uniforms, 2, np.full(10_000, temperature))
        assert np.bincount(drawn, minlength=4).tolist() == pytest.approx(wanted, abs=1)
        for token in (0, 2):
            assert np.exp(logprobs[drawn == token]) == pytest.approx(wanted[token] / 10_000, abs=1e-4)
    greedy, logprobs = sample_tokens(many, uniforms, 2, np.zeros(10_000))
    assert set(greedy) == {0}
    assert set(logprobs) == {0.0}


def test_at_the_checkpoints_own_temperature_answers_are_what_they_were() -> None:
    """Before there were temperatures per answer, this was the rule."""

    def before(config: GenerationConfig, stream: tuple[int, int], rows: np.ndarray) -> list[int]:
        uniforms = row_stream(*stream).random(config.max_new_tokens)
        drawn: list[int] = []
        for step, row in enumerate(rows):
            allowed = np.where(np.arange(VOCABULARY) < 21, -np.inf, row).astype(np.float32)[None]
            if step < config.min_new_tokens:
                allowed[:, END] = -np.inf
            candidates = np.argsort(-allowed, axis=1, kind="stable")[:, : config.top_k]
            scores = np.take_along_axis(allowed, candidates, axis=1).astype(np.float64) / config.temperature
            cumulative = np.cumsum(np.exp(scores - scores[:, :1]), axis=1)
            place = min(int((cumulative <= uniforms[step] * cumulative[:, -1:]).sum()), config.top_k - 1)
            token = int(candidates[0, place])
            if token == END:
                break
            drawn.append(token)
        return drawn

    rng = np.random.default_rng(1)
    for temperature in (0.7, 1.0, 1.3):
        for taste in ((), ((0, 2),)):
            config = replace(CONFIG, temperature=temperature, taste_positions=taste)
            logits = rng.normal(size=(12, 30, VOCABULARY)).astype(np.float32) * 2
            streams = [(5, variant) for variant in range(30)]
            wanted = [before(config, stream, logits[:, row]) for row, stream in enumerate(streams)]
            assert sampled(config, streams, logits).rows == wanted
            assert sampled(config, streams, logits, [temperature] * 30).rows == wanted


def sampled(
    config: GenerationConfig,
    streams: list[tuple[int, int]],
    logits: np.ndarray,
    temperatures: list[float] | None = None,
) -> AnswerSampler:
    """logits (steps, B, V)."""
    sampler = AnswerSampler(config, streams, END, VOCABULARY, temperatures)
    for rows in logits:
        if not sampler.done:
            sampler.step(rows)
    return sampler


def test_a_greedy_answer_has_no_chance_in_it() -> None:
    logits = np.random.default_rng(2).normal(size=(12, 4, VOCABULARY)).astype(np.float32)
    logits[:] = logits[:, :1]
    logits[:, :, 30] = logits[:, :, 35] = 9  # a tie: the lower id
    config = replace(CONFIG, taste_positions=((1, 2),))
    sampler = sampled(config, [(seed, 0) for seed in range(4)], logits, [0.0, 0.0, 0.0, 2.0])
    assert sampler.rows[0] == sampler.rows[1] == sampler.rows[2] == [30] * 12
    assert sampler.sampling_logprobs[:3].tolist() == [0.0] * 3
    assert sampler.sampling_logprobs[3] < 0
    assert (sampler.logprobs[:3] < -12 * 0.69).all(), "the tie alone halves the probability at each place"


def test_logprobs_are_of_what_was_drawn_under_both_rules() -> None:
    """Over the allowed ids at temperature 1, and over the likeliest `top_k` at the row's own.

    The end counts, what follows not.
    """
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(12, 6, VOCABULARY)).astype(np.float32) * 2
    logits[:, :, END] += 2
    streams = [(9, variant) for variant in range(6)]
    temperatures = [0.0, 0.5, 1.0, 1.3, 2.0, 0.7]
    sampler = sampled(CONFIG, streams, logits, temperatures)
    assert len({len(row) for row in sampler.rows}) > 1, "some should end early"
    for row, temperature in enumerate(temperatures):
        tokens = sampler.rows[row] + [END] * (len(sampler.rows[row]) < 12)
        model, rule = 0.0, 0.0
        for step, token in enumerate(tokens):
            allowed = {
                i: float(logits[step, row, i])
                for i in range(21, VOCABULARY)
                if i != END or step >= CONFIG.min_new_tokens
            }
            model += allowed[token] - np.log(sum(np.exp(v) for v in allowed.values()))
            if temperature:
                best = sorted(allowed.values())[-CONFIG.top_k :]
                assert allowed[token] in best
                rule += allowed[token] / temperature - np.log(sum(np.exp(v / temperature) for v in best))
        assert sampler.logprobs[row] == pytest.approx(model, abs=1e-9)
        assert sampler.sampling_logprobs[row] == pytest.approx(rule, abs=1e-9)
    for row, stream in enumerate(streams):
        alone = sampled(CONFIG, [stream], logits[:, row : row + 1], temperatures[row : row + 1])
        assert alone.rows[0] == sampler.rows[row]
        assert alone.logprobs[0] == sampler.logprobs[row]
        assert alone.sampling_logprobs[0] == sampler.sampling_logprobs[row]


def test_where_codes_have_roles_a_temperature_is_for_taste() -> None:
    config = replace(CONFIG, temperature=0.7, taste_positions=((0, 2), (4, 5)))
    assert [config.temperature_at(place, 1.6) for place in range(6)] == [1.6, 1.6, 0.7, 0.7, 1.6, 0.7]
    assert [config.temperature_at(place, 0.3) for place in range(6)] == [0.3] * 6
    assert [config.temperature_at(place, 0.0) for place in range(6)] == [0.0] * 6
    assert [CONFIG.temperature_at(place, 1.6) for place in range(3)] == [1.6] * 3

    logits = np.zeros((12, 40, VOCABULARY), np.float32)
    logits[:, :, 25] = 8
    logits[:, :, END] = -8
    cool = replace(config, temperature=0.05)
    rows = np.array(sampled(cool, [(n, 0) for n in range(40)], logits, [50.0] * 40).rows)
    varied = [len(set(rows[:, place])) > 1 for place in range(12)]
    assert varied == [place in {0, 1, 4} for place in range(12)]


@pytest.mark.parametrize(
    ("temperatures", "message"),
    [
        ([1.0], r"temperatures: 1 for 2 answers; give one per answer"),
        ([1.0, -0.1], r"temperatures: \[1.0, -0.1\] must each be 0 \(greedy\) or lie in 0.01..100"),
        ([float("nan"), 1.0], "must each be 0"),
        ([1e-300, 1.0], "must each be 0"),
    ],
)
def test_temperatures_that_cannot_be_are_named(temperatures: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerSampler(CONFIG, [(0, 0), (0, 1)], END, VOCABULARY, temperatures)


def test_answer_codes_drop_what_is_not_visual() -> None:
    assert answer_codes([22, 5, 30, 21, 39], code_offset=22, max_tokens=2) == [0, 8]


def test_broken_logits_and_settings_are_named() -> None:
    sampler = AnswerSampler(CONFIG, [(0, 0)], END, VOCABULARY)
    with pytest.raises(ValueError, match="logits of step 0 are not finite"):
        sampler.step(np.full((1, VOCABULARY), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="min_new_tokens 9 must lie between 0 and max_new_tokens 4"):
        GenerationConfig(min_new_tokens=9, max_new_tokens=4)
    for positions in ((3, 3), (-1, 2), (2, 301)):
        with pytest.raises(ValueError, match=r"taste_positions .* must be a range within max_new_tokens 300"):
            GenerationConfig(taste_positions=(positions,))


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
