"""What stage `imputer` guesses by.

The thing's other drawings, its neighbours, and the features that compare them on posters.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from generator.datasets.posters import PosterSpec, draw
from generator.training.nano.imputation import imputer
from generator.training.nano.imputation.imputer import (
    Drawings,
    Imputer,
    NeighbourDrawings,
    guessed,
    imagine,
    impute,
    train_imputer,
)
from generator.training.nano.imputation.latent_critic import SHARPNESS
from generator.training.nano.imputation.neighbours import find_neighbours
from generator.training.nano.imputation.perceptual_loss import (
    PerceptualFeatures,
    PosterRenderer,
    compared,
    premultiplied,
    straight,
)
from generator.training.nano.world import World
from generator.training.trainer import TrainerConfig, load_averaged
from tests.support.training_world import small_world, to_look_at

torch.set_num_threads(1)


@pytest.fixture
def world() -> World:
    return small_world()


def test_the_imputer_never_sees_what_it_is_to_guess_nor_what_is_held_out(world: World, tmp_path: Path) -> None:
    train_imputer(tmp_path, to_look_at(world), TrainerConfig(steps=2), concepts=2)

    def guesses(drawings: Drawings) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        network = drawings.imputer()
        load_averaged(network, tmp_path)
        return imagine(network, drawings, np.flatnonzero(world.shown))

    def imputed(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        icons = guesses(to_look_at(world))
        impute(icons, world, lambda pixels: pixels[:, :, ::8, ::8], (3, 8, 8), tmp_path / name)
        found: np.ndarray[tuple[int, ...], np.dtype[np.float16]] = np.load(tmp_path / name)
        return found

    first = imputed("first.npy")
    world.art.pixels[~world.trained] = 7
    np.testing.assert_array_equal(imputed("second.npy"), first)
    assert first[world.shown].any()
    assert not first[~world.shown].any()
    style = int(np.flatnonzero(world.trained[0])[0])
    world.art.pixels[0, style] = 3
    third = imputed("third.npy")
    np.testing.assert_array_equal(third[0, style], first[0, style])
    others_differ = (third[0] != first[0]).any(axis=(1, 2, 3, 4))
    assert others_differ.sum() == 5, "every other style's guess looks at it"
    drawings = to_look_at(world)
    drawings.auxiliary[0, 1] = 0
    before, after = guesses(to_look_at(world)), guesses(drawings)
    np.testing.assert_array_equal(after[0], before[0], "nothing is there of an even thing in the second set")
    drawings = to_look_at(world)
    drawings.auxiliary[0, 0] = 200
    assert (guesses(drawings)[0] != before[0]).any(axis=(1, 2, 3)).all(), "every style's guess looks at it"


def test_the_imputer_copies_where_all_styles_agree() -> None:
    torch.manual_seed(0)
    network = Imputer(styles=5, auxiliary=1, neighbours=2)
    last = network.outlet[1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    last.bias.data[32:36] = -40  # of each pixel of four: nothing of the network's own
    drawing = torch.rand(2, 1, 4, 16, 16)
    given = torch.tensor([[1.0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]])
    drawings = torch.where(given[:, :, None, None, None] > 0, drawing, 99.0)
    nearness = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
    neighbour_drawings = NeighbourDrawings(
        torch.where(nearness[:, :, None, None, None] > 0, drawing, 99.0), nearness, torch.zeros(2, 2, 8, 8)
    )
    torch.testing.assert_close(network(drawings, given, torch.tensor([1, 2]), neighbour_drawings), drawing[:, 0])


def test_what_is_guessed_of_mirrored_drawings_is_mirrored(world: World) -> None:
    torch.manual_seed(0)
    drawings = to_look_at(world)
    network = drawings.imputer()
    with torch.no_grad():
        first = guessed(network, drawings, concept=0).astype(int)
        world.art.pixels[:] = world.art.pixels[:, :, :, ::-1].copy()
        neighbours = replace(drawings.neighbours, differ=drawings.neighbours.differ[..., ::-1].copy())
        drawings = Drawings(world, drawings.auxiliary[:, :, :, ::-1], neighbours)
        second = guessed(network, drawings, concept=0).astype(int)
    opaque = first[..., 3] > 20  # elsewhere a colour is a ratio of two small numbers
    assert opaque.any()
    assert np.abs(second[..., ::-1, :] - first)[opaque].max() <= 1
    assert np.abs(second - first)[opaque].max() > 20, "or a mirror would show nothing"


def test_what_is_turned_comes_back_by_the_opposite_turn_and_all_of_a_thing_moves_together() -> None:
    rng = np.random.default_rng(2)
    blot = premultiplied(soft_icon())
    blot[:, 20:24, 30:50] = 1
    images = blot.expand(2, 3, -1, -1, -1).contiguous()
    places = imputer.places(200, rng)
    straight_on = places[(places[:, 0, 1] == 0) & (places[:, 0, 0] == 1)][:1]
    assert len(straight_on) == 1, "half of the things are not turned"
    moved = imputer.placed(images, straight_on.expand(2, -1, -1))
    step = (straight_on[0, :, 2] * 32).round().int().tolist()
    torch.testing.assert_close(moved[0, 0], blot.roll((-step[1], -step[0]), dims=(1, 2)), rtol=0, atol=1e-4)
    assert (places[:, :, :2].det().abs() - 1).abs().max() < 0.25
    assert 60 < (places[:, 0, 0] < 0).sum() < 140, "half of the things are mirrored"
    turned = places[places[:, 0, 1] != 0][:2]
    there = imputer.placed(images, turned)
    torch.testing.assert_close(there[:, 0], there[:, 2])
    assert (there[0] - images[0]).abs().max() > 0.5
    whole = torch.cat([turned, torch.tensor([[[0.0, 0, 1]]]).expand(2, -1, -1)], dim=1)
    back = imputer.placed(there, torch.linalg.inv(whole)[:, :2])
    assert (back - images).abs().mean() < 0.02


def test_neighbours_are_known_in_the_style_and_alike_in_the_others(world: World) -> None:
    pair = np.flatnonzero(world.trained.sum(axis=1) >= 4)[:2]
    style = int(world.trained[pair[1]].argmax())
    world.trained[pair[0]] = True
    world.trained[pair[0], style] = False
    # Two things that are drawn alike but for the upper half, one of them never in this style.
    world.art.pixels[pair[0]] = world.art.pixels[pair[1]]
    world.art.pixels[pair[0], :, :32] = 255 - world.art.pixels[pair[1], :, :32]
    found = find_neighbours(world)
    assert found.concept[pair[0], style, 0] == pair[1]
    near = found.nearness[pair[0], style]
    assert 0 < near[0] <= 1
    assert near[0] > near[1]
    assert found.differ[pair[0], style, 0, :16].min() > 0.01
    assert found.differ[pair[0], style, 0, 16:].max() == 0
    assert ((found.nearness == 0) | world.trained[found.concept, np.arange(6)[:, None]]).all()
    assert ((found.nearness == 0) | (found.concept != np.arange(20)[:, None, None])).all()
    world.art.pixels[~world.trained] = 7
    again = find_neighbours(world)
    np.testing.assert_array_equal(again.nearness, found.nearness)
    there = found.nearness > 0
    np.testing.assert_array_equal(again.concept[there], found.concept[there])
    np.testing.assert_array_equal(again.differ[there], found.differ[there])


def soft_icon() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """RGBA (64, 64, 4): a disc with a soft edge and a gradient of colours."""
    down, across = np.mgrid[-1:1:64j, -1:1:64j]
    alpha = np.clip(4 * (0.8 - np.hypot(down, across)), 0, 1)
    return (np.stack([down / 2 + 0.5, across / 2 + 0.5, 0 * down + 0.3, alpha], axis=2) * 255).astype(np.uint8)


def test_the_renderer_places_icons_as_posters_do(world: World) -> None:
    icon = soft_icon()
    renderer = PosterRenderer(world.palettes)
    for style, name in enumerate(world.styles):
        for palette, look in enumerate(world.palettes):
            pixels = renderer(premultiplied(icon[None]), torch.tensor([style]), torch.tensor([palette]))[0]
            poster = draw(PosterSpec("thing-0", name, look), 64, world.art, icon)
            apart = (pixels.permute(1, 2, 0) - torch.from_numpy(poster.astype(np.float32) / 255)).abs()
            assert apart.mean() < 0.005, (name, look)
            assert apart.max() < 0.1, (name, look)


def test_icons_come_back_from_their_premultiplied_form() -> None:
    icon = soft_icon()
    back = straight(premultiplied(icon))
    np.testing.assert_array_equal(back[..., 3], icon[..., 3])
    seen = icon[..., 3] > 40
    assert np.abs(back[seen].astype(int) - icon[seen]).max() <= 1
    assert (straight(torch.zeros(4, 8, 8)) == 0).all()


def test_perceptual_losses_tell_the_right_drawing_from_the_concepts_others(world: World) -> None:
    perceptual, renderer = PerceptualFeatures(), PosterRenderer(world.palettes)
    styles = torch.arange(6)
    drawings = renderer(premultiplied(world.art.pixels[0]), styles, torch.ones(6, dtype=torch.long))
    seen = [part[None].expand(6, -1, -1) for part in perceptual(drawings)]
    assert [part.shape[:2] for part in seen] == [(6, 6)] * 6
    known = torch.ones(6, 6)
    known[:, 5] = 0
    known[5, 5] = 1
    mistaken, unlike = compared(perceptual(drawings), seen, styles, known)
    assert unlike.abs().max() < 1e-3
    torch.testing.assert_close(mistaken, torch.log1p((known.sum(dim=1) - 1) * math.exp(-SHARPNESS)), rtol=1e-3, atol=0)
    ours = drawings.roll(1, dims=0).requires_grad_(True)
    taken, apart = compared(perceptual(ours), seen, styles, known)
    assert taken.min() > 1
    assert apart.min() > 0.001
    (taken.sum() + apart.sum()).backward()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
