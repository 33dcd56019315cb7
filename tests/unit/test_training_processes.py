"""However a step is split, over parts or over the processes of `accelerate launch`, its result is the same."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from generator.training.processes import ProcessGroup
from tests.support import tiny_training

torch.set_num_threads(1)
CHECKOUT = Path(__file__).parents[2]
# Three processes import torch; on busy cores each takes a minute.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.checkpoint(tmp_path_factory.mktemp("checkpoint"))


def launch(stage: str, checkpoint: Path, out: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # "multi_gpu" is accelerate's word for "several processes"; without a GPU they talk through gloo.
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
        *("-m", "tests.support.tiny_training", stage, str(checkpoint), str(out)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def losses(folder: Path) -> list[float]:
    with (folder / "loss.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "state.pt", weights_only=True)["module"]
    return state


def near(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-5, msg=name)


def test_stage_one_in_parts_and_in_two_processes(checkpoint: Path, tmp_path: Path) -> None:
    tiny_training.run_reconstruction(checkpoint, tmp_path / "whole")
    tiny_training.run_reconstruction(checkpoint, tmp_path / "parts", part_rows=2)
    launch("reconstruction", checkpoint, tmp_path / "group")
    whole = trained(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == tiny_training.RECONSTRUCTION.steps
    for other in ("parts", "group"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
        near(trained(tmp_path / other), whole)


def test_dpo_in_parts_and_in_two_processes(checkpoint: Path, tmp_path: Path) -> None:
    whole = tiny_training.run_dpo(checkpoint, tmp_path / "whole")
    parts = tiny_training.run_dpo(checkpoint, tmp_path / "parts", replace(tiny_training.DPO, part_size=1))
    launch("dpo", checkpoint, tmp_path / "group")
    group = [json.loads((tmp_path / "group" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert parts.losses == pytest.approx(whole.losses, abs=1e-6)
    assert parts.margins == pytest.approx(whole.margins, abs=1e-5)
    for rank in group:
        assert rank["losses"] == pytest.approx(whole.losses, abs=1e-5)
        assert rank["kl"] == pytest.approx(whole.kl, rel=1e-3)
    ours = load_file(whole.adapter_dir / "llama" / "adapter_model.safetensors")
    near(load_file(parts.adapter_dir / "llama" / "adapter_model.safetensors"), ours)
    near(load_file(tmp_path / "group" / "adapter" / "llama" / "adapter_model.safetensors"), ours)


def test_every_row_belongs_to_one_part_of_one_process() -> None:
    for rows in range(9):
        for size in (1, 2, 3):
            parts = [part for rank in range(size) for part in ProcessGroup(rank, size).parts(rows, 2)]
            assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
            assert all(0 < part.stop - part.start <= 2 for part in parts)
