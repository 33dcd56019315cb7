"""`make gpu` works the first time: it is rehearsed here, and its budget is the page's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import __main__ as gpu
from tests.gpu import budget
from tests.gpu.models import NANO
from tests.gpu.rig import Rig

CHECKOUT = Path(__file__).parents[2]
MOST_MIB = 54
"""Size that the checkout may have, to be carried to a machine with the wheels it lacks."""
OF_OTHER_PARTS = {
    "pydantic_settings",
    "matplotlib",
    "pyarrow",
    "sqlalchemy",
    "typer",
    "structlog",
    "kafka",
    "tritonclient",
}
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a rehearsal wrote, by file."""
    out = tmp_path_factory.mktemp("gpu")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--rehearse", "--minutes", "60", "--out", str(out)],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {path.stem: json.loads(path.read_text()) for path in out.iterdir()}


def test_a_rehearsal_runs_every_part_and_writes_few_files(results: dict[str, Any]) -> None:
    assert results.keys() == {"summary", *gpu.PARTS}
    assert len(results) <= 8
    assert results["summary"]["parts"] == dict.fromkeys(gpu.PARTS, "done")
    assert results["summary"]["machine"]["rehearsal"] is True
    for part in gpu.PARTS:
        assert not [row for row in results[part] if "failed" in row]


def test_it_compares_every_module_and_the_golden_cases(results: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in results["parity"]}
    modules = (
        "image encoder",
        "keep decision",
        "merger",
        "mask generator",
        "LLaMA",
        "token decoder",
        "VAE decoder",
        "UNet",
    )
    for name in [f"{model}: {module}" for model in ("nano", "lavit-7b") for module in modules]:
        assert rows[name]["fp32"] < 1e-5, name  # the CPU against itself
        assert rows[name]["bf16"] < 0.1, name
    golden = [row for name, row in rows.items() if name.startswith("golden: ")]
    assert len(golden) == 7
    assert all(row["agrees"] for row in golden)


def test_decisions_do_not_depend_on_half_precision(results: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in results["parity"]}
    for name in ("keep decision", "mask generator", "VAE decoder"):
        assert rows[f"nano: {name}"]["bf16"] == rows[f"nano: {name}"]["fp32"]


def test_it_times_steps_answers_and_pictures(results: dict[str, Any]) -> None:
    trained = {row["name"] for row in results["training"]}
    for model, size in (("nano", 8), ("lavit-7b", 1)):
        for kind in ("stage 1", "DPO"):
            assert {f"{kind}: {model}, {size} rows", f"{kind}: {model}, {size} rows, activations recomputed"} <= trained
    drawn = {row["name"] for row in results["drawing"]}
    assert {"nano: answers", "nano, batch 1", "nano, batch 8", "lavit-7b: answers", "lavit-7b, batch 8"} <= drawn
    assert {"nano: ONNX Runtime", "nano: torch.compile", "TensorRT"} <= {row["name"] for row in results["compiled"]}


def test_it_needs_nothing_of_the_other_parts(results: dict[str, Any]) -> None:
    for part in gpu.PARTS:
        (packages,) = [row["packages"] for row in results[part] if row["name"] == "imported"]
        assert not OF_OTHER_PARTS & set(packages)


def test_without_cuda_it_says_so_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "sees no CUDA device here, nothing was run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def run(command: list[str], *, timeout: float, check: bool) -> subprocess.CompletedProcess[str]:
        limits.append(timeout)
        if len(limits) == 1:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 1 if len(limits) == 2 else 0)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu.main(["--rehearse", "--minutes", "10", "--out", str(tmp_path)]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    cut, failed, *rest = summary["parts"].values()
    assert cut.startswith("cut off after 210 s")
    assert failed == "ended with exit code 1"
    assert rest == ["done", "done"]
    assert max(limits) <= 0.35 * 600


def test_rows_are_kept_when_something_fails(tmp_path: Path) -> None:
    rig = Rig("part", tmp_path, torch.device("cpu"), True)
    rig.row("first", seconds=1.0)
    with rig.attempt("second"):
        raise RuntimeError("out of memory\nand more")
    kept = json.loads((tmp_path / "part.json").read_text())
    assert kept == [{"name": "first", "seconds": 1.0}, {"name": "second", "failed": "RuntimeError: out of memory"}]


def test_the_page_has_the_computed_budget() -> None:
    assert budget.markdown() in (CHECKOUT / "deploy" / "triton" / "GPU.md").read_text()


def test_the_checkout_can_be_carried() -> None:
    """With what is new and not ignored, which is carried, too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)
    found = {path for name in listed.stdout.split("\0") if name and (path := CHECKOUT / name).is_file()}
    assert {Path(gpu.__file__), NANO / "config.json", *NANO.rglob("*.safetensors")} <= found, "what it needs is in it"
    assert sum(path.stat().st_size for path in found) < MOST_MIB * 2**20
