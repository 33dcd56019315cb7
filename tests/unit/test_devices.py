"""What computes runs where it is placed: every path on a stand-in device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from generator.pigeon.placement import Placement
from schemas.errors import InputError
from tests.support.standin_paths import PATHS

torch.set_num_threads(1)
CHECKOUT = Path(__file__).parents[2]
# One process trains and draws everything twice.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each path gave, in a process of its own: the device cannot be taken out of one again."""
    folder = tmp_path_factory.mktemp("paths")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.standin_paths", str(folder)],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    paths: dict[str, str] = json.loads((folder / "found.json").read_text())
    return paths


@pytest.mark.parametrize("name", sorted(PATHS))
def test_a_path_gives_the_cpus_numbers_on_another_device(found: dict[str, str], name: str) -> None:
    assert found[name] == "equal"


@pytest.mark.parametrize(
    ("device", "precision", "named"),
    [
        ("abacus", "auto", "compute.device"),
        ("cuda:99", "auto", "compute.device"),
        ("cpu", "int4", "compute.precision"),
    ],
)
def test_what_is_not_there_is_named_with_its_setting(device: str, precision: str, named: str) -> None:
    with pytest.raises(InputError, match=named) as raised:
        Placement.of(device, precision)
    assert "\n" not in str(raised.value)


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.pigeon.placement._existing", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(InputError, match=r"precision 'bf16' \(compute.precision, --precision\): cuda does not"):
        Placement.of("cuda", "bf16")
    assert Placement.of("cuda").precision == "fp32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert Placement.of("cuda").precision == "bf16"


def test_the_cpu_computes_in_float32_unless_it_is_told() -> None:
    assert Placement.of("auto" if not torch.cuda.is_available() else "cpu") == Placement("fp32", "cpu")
    with Placement().autocast():
        assert not torch.is_autocast_enabled("cpu")
    with Placement.of("cpu", "bf16").autocast():
        assert torch.is_autocast_enabled("cpu")


def test_half_precision_draws_and_does_not_train() -> None:
    with pytest.raises(InputError, match="fp16 draws and does not train"):
        Placement("fp16").autocast()
