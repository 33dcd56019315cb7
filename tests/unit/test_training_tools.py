"""What training uses beside the model.

Kept with a checkpoint, found again when training goes on from it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.checkpoint import load_model
from generator.pigeon.presets import nano
from generator.training.nano.imputation.imputer import train_imputer
from generator.training.nano.imputation.latent_critic import train_critic
from generator.training.nano.imputation.refiner import train_refiner
from generator.training.nano.stages.assemble import TEXT_TOKENIZER
from generator.training.nano.stages.recipe import GUESSES, STAGES, TOOLS, NanoRun, export, tool_path
from generator.training.trainer import TrainerConfig
from schemas.errors import ModelError
from tests.support.training_world import drawn, small_world, to_look_at

torch.set_num_threads(1)


def nano_run(root: Path, start: Path | None = None) -> NanoRun:
    """A run in the world of noise, with the caches that the tools are built for."""
    run = NanoRun(root, root / "cache", nano(), start)
    world = small_world()
    run.__dict__.update(world=world, drawings=to_look_at(world))
    for path in (root / TEXT_TOKENIZER, root / "caches/latents.npy"):
        path.parent.mkdir(parents=True, exist_ok=True)
    Tokenizer(WordLevel({"a": 0})).save(str(root / TEXT_TOKENIZER))
    np.save(root / "caches/latents.npy", drawn(world)[0])
    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model and its tools, exported from a run that has trained only these."""
    run = nano_run(tmp_path / "first")
    train_critic(run.root / "critic", run.world, run.latents(), TrainerConfig(steps=1), batch=4)
    train_imputer(run.root / "imputer", run.drawings, TrainerConfig(steps=1), concepts=2)
    train_refiner(run.root / "retouch", run.world, run.world.art.pixels, TrainerConfig(steps=1), batch=2)
    export(run, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_training_goes_on_from_a_checkpoints_tools_and_passes_them_on(checkpoint: Path, tmp_path: Path) -> None:
    load_model(checkpoint)
    first, second = nano_run(tmp_path / "first"), nano_run(tmp_path / "second", checkpoint)
    for name in TOOLS:
        for weight, again in zip(first.tool(name).parameters(), second.tool(name).parameters(), strict=True):
            torch.testing.assert_close(again, weight, rtol=1e-3, atol=1e-4)  # float16 lies between
    guesses = second.imputed()
    shape = (20, 6, 3, *second.assembled().diffusion.latent_shape)
    assert guesses.shape == shape
    assert guesses[second.world.shown].any()
    export(second, tmp_path / "third")
    for name in TOOLS:
        assert tool_path(tmp_path / "third", name).read_bytes() == tool_path(checkpoint, name).read_bytes()
    train_critic(second.root / "critic", second.world, second.latents(), TrainerConfig(steps=1, seed=1), batch=4)
    theirs = next(first.tool("critic").parameters())
    assert not torch.allclose(next(second.tool("critic").parameters()), theirs, rtol=1e-3, atol=1e-4), (
        "its own stage goes first"
    )


def test_a_tools_stage_begins_from_the_checkpoints_tool(checkpoint: Path, tmp_path: Path) -> None:
    run = nano_run(tmp_path / "second", checkpoint)
    for name in TOOLS:
        before = [weight.detach().clone() for weight in run.tool(name).parameters()]
        run.imputed()
        STAGES[name](run, TrainerConfig(steps=1, lr=1e-6))
        assert run.trained(name)
        assert (run.root / GUESSES).exists() == (name == "critic"), "guesses of another network are none of ours"
        for weight, again in zip(before, run.tool(name).parameters(), strict=True):
            torch.testing.assert_close(again, weight, rtol=0, atol=1e-5)


def test_a_tool_that_is_nowhere_or_another_networks_is_named(checkpoint: Path, tmp_path: Path) -> None:
    alone = nano_run(tmp_path / "alone")
    with pytest.raises(ModelError, match=r"imputer/state.pt is missing: train that stage first"):
        alone.imputed()
    tool_path(checkpoint, "imputer").unlink()
    with pytest.raises(ModelError, match=r"imputer/state.pt is missing"):
        nano_run(tmp_path / "bare", checkpoint).imputed()
    tool_path(checkpoint, "imputer").write_bytes(tool_path(checkpoint, "critic").read_bytes())
    with pytest.raises(ModelError, match=r"training/imputer.safetensors: .* weights are missing"):
        nano_run(tmp_path / "wrong", checkpoint).imputed()
