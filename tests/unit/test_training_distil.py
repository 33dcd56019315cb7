"""Stage `distil`: a few unguided steps lead where many guided ones led."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.ddim import DdimSchedule
from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.placement import Placement
from generator.pigeon.presets import NANO_SCHEDULER, tiny
from generator.training.nano.stages.codes import CodeCache
from generator.training.nano.stages.distil import (
    GUIDANCE,
    STEPS,
    TEACHER_GUIDANCE,
    TEACHER_STEPS,
    DistilledUnet,
    after,
    conditions,
    draw_paths,
    drawing_in,
    read_paths,
    train_distilled,
    velocity_to,
)
from generator.training.trainer import TrainerConfig, load_averaged
from schemas.errors import InputError
from tests.support.training_world import coded, small_world

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> PigeonModel:
    torch.manual_seed(5)
    made = new_model(tiny(), Tokenizer(WordLevel({"a": 0})))
    made.diffusion.scheduler = dict(NANO_SCHEDULER)
    return made.eval()


def known() -> CodeCache:
    codes = coded(small_world()) % tiny().ids.codebook_size
    return CodeCache(codes, codes)


def test_a_step_leads_where_its_velocity_says() -> None:
    schedule = DdimSchedule.from_config(NANO_SCHEDULER, STEPS)
    start, end = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8)))
    for index in range(STEPS):
        velocity = velocity_to(schedule, index, start, end)
        torch.testing.assert_close(after(schedule, index, start, velocity), end)
        by_sampler = schedule.step(index, start.numpy(), velocity.numpy())
        np.testing.assert_allclose(by_sampler, end.numpy(), atol=1e-4)


def test_a_path_ends_where_the_teacher_draws(model: PigeonModel, tmp_path: Path) -> None:
    draw_paths(tmp_path, small_world(), model, known(), 5, Placement())
    paths = read_paths(tmp_path)
    assert paths.latents.shape[:2] == (5, STEPS + 1)
    drawn = model.diffusion.sample(
        *conditions(model.code_decoder, paths.codes),
        paths.latents[:, 0].copy(),
        steps=TEACHER_STEPS,
        guidance=TEACHER_GUIDANCE,
    )
    np.testing.assert_allclose(paths.latents[:, -1], drawn, atol=1e-4)


def test_the_student_comes_nearer_to_what_its_teacher_draws(model: PigeonModel, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in model.diffusion.unet.state_dict().items()}
    config = TrainerConfig(40, lr=1e-3, warmup_steps=2, ema_decay=0.8)
    train_distilled(tmp_path, small_world(), model, known(), config, paths=8, batch=8)
    torch.testing.assert_close(model.diffusion.unet.state_dict(), before, rtol=0, atol=0)  # the teacher is as it was
    paths = read_paths(tmp_path)
    given = conditions(model.code_decoder, paths.codes)

    def distance() -> float:
        drawn = model.diffusion.sample(*given, paths.latents[:, 0].copy(), steps=STEPS, guidance=1.0)
        return float(np.square(drawn - paths.latents[:, -1]).mean())

    untaught = distance()
    load_averaged(DistilledUnet(model.diffusion), tmp_path)
    taught = distance()
    model.diffusion.unet.load_state_dict(before)
    assert taught < 0.7 * untaught


def test_a_distilled_model_says_how_it_draws_and_cannot_be_a_teacher(model: PigeonModel, tmp_path: Path) -> None:
    own = model.diffusion.config
    distilled = drawing_in(model, STEPS, GUIDANCE)
    model.diffusion.config = own
    assert (distilled.config.diffusion.steps, distilled.config.diffusion.guidance) == (STEPS, 1.0)
    with pytest.raises(InputError, match="draws in 4 steps already"):
        train_distilled(tmp_path, small_world(), distilled, known(), TrainerConfig(1))
