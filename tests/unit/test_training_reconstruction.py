"""Stage 1 on any batches: its loss by the formula, an exact resume, and nano's stage."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from generator.pigeon.checkpoint import load_model
from generator.pigeon.prompt import IGNORED_LABEL
from generator.training.nano.stages.language import train_alignment
from generator.training.trainer import TrainingDiverged
from tests.support import tiny_training

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.checkpoint(tmp_path_factory.mktemp("checkpoint"))


def state(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "state.pt", weights_only=True)["module"]
    return found


def test_the_first_steps_loss_is_the_mean_cross_entropy_behind_the_drawn_masks(
    checkpoint: Path, tmp_path: Path
) -> None:
    tiny_training.run_reconstruction(checkpoint, tmp_path)
    with (tmp_path / "loss.csv").open(newline="") as file:
        found = float(next(csv.DictReader(file))["loss"])

    personalizer = load_model(checkpoint).personalizer
    rng = np.random.default_rng([0, 0])  # seed, step
    torch.manual_seed(0)
    batch = tiny_training.random_batch(personalizer.config.ids, tiny_training.ROWS, rng)
    alpha = torch.from_numpy(rng.random(tiny_training.ROWS))
    noise = -torch.log(-torch.log(torch.rand(batch.mask_types.shape).clamp(1e-9, 1 - 1e-7)))
    rows = (batch.mask_tokens, batch.mask_positions, batch.mask_types)
    keep = personalizer.masks(*rows, alpha, invert_reference=True, noise=noise).keep
    reference = personalizer.reference_embedding(batch.mask_tokens, batch.mask_types, keep)
    logits = personalizer.llama(
        inputs_embeds=personalizer.input_embeddings(batch, keep, reference),
        attention_mask=batch.attention,
        position_ids=(batch.attention.cumsum(dim=1) - 1).clamp(min=0),
    ).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL
    )
    assert found == pytest.approx(float(expected), abs=1e-5)


def test_nanos_stage_is_this_one(checkpoint: Path, tmp_path: Path) -> None:
    tiny_training.run_reconstruction(checkpoint, tmp_path / "any")
    model = load_model(checkpoint)
    prompts = SimpleNamespace(
        model=model, batch=lambda rows, rng: tiny_training.random_batch(model.config.ids, rows, rng)
    )
    config, rows = tiny_training.RECONSTRUCTION, tiny_training.ROWS
    train_alignment(tmp_path / "nano", prompts, config, rows)  # type: ignore[arg-type]  # all that it uses of Prompts
    ours, theirs = state(tmp_path / "any"), state(tmp_path / "nano")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_stopped_training_resumes_on_the_same_trajectory(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_training.RECONSTRUCTION, save_every_seconds=0.0)
    tiny_training.run_reconstruction(checkpoint, tmp_path / "whole", config=config)
    batch = tiny_training.random_batch
    asked: list[int] = []

    def stopped(*arguments: object) -> object:
        asked.append(len(asked))
        if len(asked) == 3:
            raise TrainingDiverged("here the process dies")
        return batch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_training, "random_batch", stopped)
    with pytest.raises(TrainingDiverged):
        tiny_training.run_reconstruction(checkpoint, tmp_path / "parts", config=config)
    assert torch.load(tmp_path / "parts/state.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(tiny_training, "random_batch", batch)
    tiny_training.run_reconstruction(checkpoint, tmp_path / "parts", config=config)
    whole = state(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in state(tmp_path / "parts").items())
