"""What the mask generator keeps: counts, noise, padding, gradients."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generator.pigeon.config import MaskConfig
from generator.pigeon.masking import MutualMaskGenerator, draw_noise, keep_count, keep_top, type_probability
from generator.pigeon.prompt import HISTORY, REFERENCE

torch.set_num_threads(1)
WIDTH = 24


@pytest.fixture(scope="module")
def generator() -> MutualMaskGenerator:
    torch.manual_seed(0)
    return MutualMaskGenerator(WIDTH, MaskConfig(mlp_width=32)).eval()


def rows(*lengths: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """embeds, positions, types of rows with so many history and reference tokens."""
    width = max(sum(pair) for pair in lengths)
    embeds = torch.zeros(len(lengths), width, WIDTH)
    positions, types = torch.zeros(2, len(lengths), width, dtype=torch.int64)
    for row, (history, reference) in enumerate(lengths):
        seeded = torch.Generator().manual_seed(row)
        embeds[row, : history + reference] = torch.randn(history + reference, WIDTH, generator=seeded)
        types[row, :history] = HISTORY
        types[row, history : history + reference] = REFERENCE
        positions[row, :history] = torch.arange(1, history + 1)
        positions[row, history : history + reference] = torch.arange(1, reference + 1)
    return embeds, positions, types


@given(count=st.integers(0, 400), tenths=st.integers(0, 10))
def test_count_is_the_exact_floor_and_at_least_one(count: int, tenths: int) -> None:
    exact = min(max(1, math.floor(count * (1 - Fraction(tenths, 10)))), count)
    assert keep_count(torch.tensor([count]), torch.tensor([tenths / 10])).item() == exact


def test_larger_ratios_keep_strictly_less_of_the_same(generator: MutualMaskGenerator) -> None:
    inputs = rows((12, 9))
    noise = draw_noise(inputs[2], torch.Generator().manual_seed(1), inputs[0])
    keeps = [generator(*inputs, ratio, noise=noise).keep[0] for ratio in (0.0, 0.3, 0.6, 1.0)]
    assert [int(keep[12:].sum()) for keep in keeps] == [9, 6, 3, 1]
    assert all(int(keep[:12].sum()) == 9 for keep in keeps)
    for more, less in pairwise(keeps):
        assert ((more - less) >= 0).all()


def test_padding_and_neighbours_do_not_matter(generator: MutualMaskGenerator) -> None:
    shapes = [(12, 9), (0, 2), (3, 4)]
    together = generator(*rows(*shapes), torch.tensor([0.2, 0.5, 0.7]))
    for row, (shape, ratio) in enumerate(zip(shapes, (0.2, 0.5, 0.7), strict=True)):
        embeds, positions, types = rows(*shapes)
        alone = generator(
            embeds[row : row + 1, : sum(shape)], positions[row : row + 1, : sum(shape)], types[row : row + 1, : sum(shape)], ratio
        )  # fmt: skip
        assert torch.equal(alone.keep[0], together.keep[row, : sum(shape)])
        assert (together.keep[row, sum(shape) :] == 0).all()
        torch.testing.assert_close(alone.scores[0], together.scores[row, : sum(shape)])


def test_noise_draws_by_probability() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0, 0.5]]).repeat(20_000, 1)
    member = torch.ones_like(scores, dtype=torch.bool)
    probability = type_probability(scores, member)
    noise = draw_noise(member, torch.Generator().manual_seed(0), scores)
    drawn = keep_top(probability, member, torch.ones(len(scores)), noise=noise)
    assert (drawn.sum(dim=1) == 1).all()
    torch.testing.assert_close(drawn.mean(dim=0), probability[0], atol=0.015, rtol=0)


def test_gradient_is_the_softmax_and_stays_finite(generator: MutualMaskGenerator) -> None:
    embeds, positions, types = rows((5, 4), (0, 2))
    embeds.requires_grad_(True)
    out = generator(embeds, positions, types, 0.5, invert_reference=True)
    (out.keep * torch.randn(out.keep.shape)).sum().backward()
    assert torch.isfinite(embeds.grad).all()
    assert embeds.grad[0].abs().sum() > 0
    assert (embeds.grad[1, 2:] == 0).all()
