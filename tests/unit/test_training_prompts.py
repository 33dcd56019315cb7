"""The simulated users that the language stages learn from."""

from __future__ import annotations

import numpy as np

from generator.training.nano.stages.language import NOISE_SHARE, Prompts
from tests.support.training_world import small_world


def test_a_history_is_in_its_users_style_but_for_the_noise_whatever_is_held_out() -> None:
    prompts = Prompts.__new__(Prompts)
    prompts.world = small_world()
    rng = np.random.default_rng(0)
    tastes = [prompts.taste(rng, 5) for _ in range(600)]
    history = np.stack([taste.history for taste in tastes])  # (600, 5, 3)
    liked = np.array([taste.target[1] for taste in tastes])
    assert prompts.world.trained[history[..., 0], history[..., 1]].all()
    off = (history[..., 1] != liked[:, None]).mean(axis=1)
    expected = NOISE_SHARE * 5 / 6
    for style in range(6):
        assert abs(off[liked == style].mean() - expected) < 0.07, f"style {style}"
    shown = np.bincount(history[..., 1].ravel(), minlength=6) / history[..., 1].size
    assert abs(shown - 1 / 6).max() < 0.07, "no style shows in the histories of the others"
