"""What stage `retouch` makes of the paired style's drawing and of a guess.

What it sees, what never, and how it begins.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from generator.training.nano.imputation.perceptual_loss import premultiplied
from generator.training.nano.imputation.refiner import PAIRED_STYLES, Refiner, refined, shown, train_refiner
from generator.training.nano.world import World
from generator.training.trainer import TrainerConfig, load_averaged
from tests.support.training_world import small_world

torch.set_num_threads(1)
FLUENT, FLAT = 3, 4


@pytest.fixture
def world() -> World:
    return small_world()


def noise(world: World) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Guesses of another noise than the drawings."""
    return np.random.default_rng(5).integers(256, size=world.art.pixels.shape, dtype=np.uint8)


def trained(world: World, guesses: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], folder: Path) -> Refiner:
    torch.manual_seed(0)
    train_refiner(folder, world, guesses, TrainerConfig(steps=4), batch=2)
    network = Refiner()
    assert load_averaged(network, folder) == 4
    return network


def test_neither_training_nor_drawing_looks_at_what_is_held_out_nor_at_what_is_to_be_drawn(
    world: World, tmp_path: Path
) -> None:
    guesses = noise(world)
    network = trained(world, guesses, tmp_path / "first")
    first = refined(network, world, guesses)
    redrawn = (first != guesses).any(axis=(2, 3, 4))
    assert redrawn[:10, [FLUENT, FLAT]].all()
    assert redrawn.sum() == 20, "what no film shows, and the other styles, are as they were guessed"

    world.art.pixels[~world.trained] = 7
    again = trained(world, guesses, tmp_path / "second")
    for weight, same in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(same, weight, rtol=0, atol=0)
    np.testing.assert_array_equal(refined(network, world, guesses), first)

    concept = int(np.flatnonzero(world.trained[:10, FLAT] & world.trained[:10, FLUENT])[0])
    world.art.pixels[concept, FLAT] = 3
    second = refined(network, world, guesses)
    np.testing.assert_array_equal(second[concept, FLAT], first[concept, FLAT])
    assert (second[concept, FLUENT] != first[concept, FLUENT]).any(), "the paired style looks at it"


def test_the_paired_styles_drawing_is_redrawn_where_it_is_known_and_else_the_guess(world: World) -> None:
    guesses, concepts = noise(world), np.arange(20)
    for style, partner in ((FLUENT, FLAT), (FLAT, FLUENT)):
        name, nothing = world.styles[style], np.zeros((20, 6), dtype=bool)
        assert PAIRED_STYLES[name] == world.styles[partner]
        base, sources = shown(world, guesses, concepts, name, nothing)
        known = world.trained[:, partner]
        assert 0 < known.sum() < 20
        torch.testing.assert_close(base[known], premultiplied(world.art.pixels[known, partner]))
        torch.testing.assert_close(base[~known], premultiplied(guesses[~known, style]))
        assert sources.shape == (20, 3, 4, 64, 64)
        torch.testing.assert_close(sources[:, 2], premultiplied(guesses[:, style]))
        dropped = nothing.copy()
        dropped[:, partner] = True
        base, _ = shown(world, guesses, concepts, name, dropped)
        torch.testing.assert_close(base, premultiplied(guesses[:, style]))


def test_untrained_it_is_nearly_a_copy_and_a_mirrored_thing_comes_out_mirrored(world: World) -> None:
    torch.manual_seed(0)
    guesses, network = noise(world), Refiner()
    name = world.styles[FLAT]
    base, sources = shown(world, guesses, np.arange(4), name, np.zeros((4, 6), dtype=bool))
    with torch.no_grad():
        assert (network.styles[name](base, sources) - base).abs().mean() < 0.02
    first = refined(network, world, guesses)[:10, FLAT].astype(int)
    world.art.pixels[:] = world.art.pixels[:, :, :, ::-1].copy()
    second = refined(network, world, guesses[:, :, :, ::-1])[:10, FLAT, :, ::-1].astype(int)
    opaque = first[..., 3] > 20  # elsewhere a colour is a ratio of two small numbers
    assert opaque.any()
    assert np.abs(second - first)[opaque].max() <= 1
