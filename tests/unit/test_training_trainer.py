"""The trainer: exact resume, a stop at the first number that is none, figures on disk."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from generator.training.trainer import Trainer, TrainerConfig, TrainingDiverged, append_row, load_averaged
from schemas.errors import ModelError

torch.set_num_threads(1)
CONFIG = TrainerConfig(steps=20, lr=0.05, warmup_steps=3, log_every_seconds=0.0)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 1))


def trainer(folder: Path, config: TrainerConfig = CONFIG, poisoned: int | None = None) -> tuple[Line, Trainer]:
    line = Line()

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(rng.standard_normal((8, 3)).astype(np.float32))
        noise = 0.1 * torch.randn(8, 1)
        value = (x @ line.weight - x.sum(dim=1, keepdim=True) + noise).square().mean()
        return value * (math.nan if step == poisoned else 1.0), {"step_seen": float(step)}

    return line, Trainer(line, loss, folder, config)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, run = trainer(tmp_path / "whole")
    run.run()
    _, first = trainer(tmp_path / "parts")
    for _ in range(7):
        first._one_step()
    (tmp_path / "parts").mkdir()
    first.save()
    parts, second = trainer(tmp_path / "parts")
    second.run()
    assert torch.equal(parts.weight, whole.weight)
    assert all(torch.equal(a, b) for a, b in zip(second.ema, run.ema, strict=True))
    assert whole.weight.mean().item() == pytest.approx(1, abs=0.5)


def test_the_averaged_weights_are_what_a_stage_leaves(tmp_path: Path) -> None:
    _, run = trainer(tmp_path)
    run.run()
    line = Line()
    assert load_averaged(line, tmp_path) == 20
    assert torch.equal(line.weight, run.ema[0])
    with pytest.raises(ModelError, match="train that stage first"):
        load_averaged(Line(), tmp_path / "nothing")


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    _, good = trainer(tmp_path)
    for _ in range(4):
        good._one_step()
    good.save()
    line, bad = trainer(tmp_path, poisoned=6)
    with pytest.raises(TrainingDiverged, match="step 6: loss nan"):
        bad.run()
    assert torch.isfinite(line.weight).all()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4


def test_figures_are_on_disk(tmp_path: Path) -> None:
    trainer(tmp_path)[1].run()
    with (tmp_path / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(float(row["step"])) for row in rows] == list(range(1, 21))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert "<svg" in (tmp_path / "loss.svg").read_text()


def test_a_new_figure_becomes_a_column(tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    append_row(path, {"step": 1, "packed": 2.5})
    append_row(path, {"step": 2, "packed": 2.0})
    append_row(path, {"step": 3, "real": 1.5})
    assert path.read_text().split() == ["step,packed,real", "1,2.5,", "2,2.0,", "3,,1.5"]


def test_the_rate_warms_up_and_cools_down(tmp_path: Path) -> None:
    _, run = trainer(tmp_path)
    rates = []
    for run.step in range(20):
        rates.append(run.learning_rate())
    assert rates[0] == pytest.approx(0.05 / 3)
    assert rates[3:14] == [0.05] * 11
    assert all(a > b for a, b in itertools.pairwise(rates[14:]))
