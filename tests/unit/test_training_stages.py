"""The stages' parts that must hold whatever is trained: held-out pairs are never drawn, codes are paired, latents are scaled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from generator.pigeon.ddim import DdimSchedule
from generator.pigeon.presets import NANO_SCHEDULER, nano
from generator.training.diffusion import training_alphas
from generator.training.pictures import World
from generator.training.tokenizer import kept_grid, plane_waves
from generator.training.vae import build_vae, unit_variance

torch.set_num_threads(1)


class Blots:
    """A world of noise: `unit_variance` needs pictures and nothing else of one."""

    def batch(self, count: int, rng: np.random.Generator) -> Blots:
        self.pixels = rng.random((count, 3, 64, 64), dtype=np.float32)
        return self


def test_the_grid_keeps_sixteen_patches_evenly() -> None:
    assert kept_grid(16).tolist() == [1.0] * 16
    of_64 = kept_grid(64).reshape(8, 8)
    assert of_64.sum() == 16
    assert of_64.reshape(4, 2, 4, 2).sum(dim=(1, 3)).eq(1).all()


def test_near_places_look_alike() -> None:
    waves = torch.nn.functional.normalize(plane_waves(8, 128), dim=-1)
    likeness = (waves @ waves.t()).reshape(8, 8, 8, 8)
    assert likeness[3, 3, 3, 3] == pytest.approx(1.0)
    assert likeness[3, 3, 3, 4] > likeness[3, 3, 3, 7]
    assert likeness[3, 3, 4, 3] > likeness[3, 3, 7, 3]


def test_scaled_latents_have_unit_variance_and_the_same_pictures() -> None:
    torch.manual_seed(1)
    vae, world = build_vae().eval(), Blots()
    pixels = torch.from_numpy(world.batch(64, np.random.default_rng(0)).pixels) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels[:2]).latent_dist.mode()).sample
        spread = vae.encode(pixels[:2]).latent_dist.std
        scale = torch.cat([vae.encode(pixels).latent_dist.mode()]).std(dim=(0, 2, 3))
    unit_variance(vae, world, pictures=64)  # type: ignore[arg-type]  # all that it uses of a World
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist
        after = vae.decode(latents.mode()[:2]).sample
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std[:2], spread / scale[:, None, None], rtol=1e-2, atol=0)
    assert latents.mode().std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=0.05)


def test_training_noise_is_the_sampling_schedule() -> None:
    alphas = training_alphas(dict(NANO_SCHEDULER))
    sampling = DdimSchedule.from_config(NANO_SCHEDULER, nano().diffusion.steps)
    assert len(alphas) == 1000
    np.testing.assert_allclose(alphas.numpy()[sampling.timesteps], sampling.alphas, atol=1e-6)
    assert (alphas.diff() < 0).all()


def test_held_out_pairs_are_never_drawn() -> None:
    world = World.__new__(World)
    rng = np.random.default_rng(0)
    world.trained = rng.random((20, 6)) > 0.3
    world.palettes = ("plain", "a", "b")
    world._film_pairs = np.argwhere(world.trained & (np.arange(20) < 10)[:, None])
    world._film_weights = np.full(len(world._film_pairs), 1 / len(world._film_pairs))
    world._other_pairs = np.argwhere(world.trained)
    concept, style, palette = world.sample(5000, rng)
    assert world.trained[concept, style].all()
    assert set(palette.tolist()) == {0, 1, 2}
    assert (concept < 10).mean() > 0.9
