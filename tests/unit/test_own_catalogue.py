"""README's section "Your own catalogue", command by command, on a small shop in the demo's place."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from generator.cli import build_app
from generator.pigeon.checkpoint import load_model
from tests.support.shop import write_shop

CHECKOUT = Path(__file__).parents[2]
SMALLER = {
    "build": ["--min-windows", "20"],
    "align": ["--steps", "2", "--batch-size", "2", "--validate-every", "1", "--validation-windows", "4"],
    "evaluate": ["--count", "2", "--ratio", "0.5", "--baselines", "reference-copied,redrawn", "--extractor", "own"],
}
"""Options that are added to the commands: the last of one kind counts."""


def commands() -> list[list[str]]:
    """The words of the section's `pigeon` commands."""
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Your own catalogue\n")[2].partition("\n## ")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^    (pigeon .*)$", section, re.MULTILINE)]


@pytest.mark.timeout(600)
def test_the_section_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIGEON_STATE_DIR", ".pigeon")
    (tmp_path / "deploy").symlink_to(CHECKOUT / "deploy")
    ran = []
    for words in commands():
        if words == ["demo", "data"]:  # downloads, and draws 1,681 posters: tests of its own
            write_shop(tmp_path / ".pigeon/cache/demo")
            continue
        name = next(word for word in words if word in SMALLER)
        result = CliRunner().invoke(build_app(), [*words, *SMALLER[name]], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        ran.append(name)
    assert ran == ["build", "align", "evaluate"]
    assert (tmp_path / "shop/redrawn.webp").exists()
    found = json.loads((tmp_path / "shop-evaluation/evaluation.json").read_text())
    assert {"pigeon@0.5", "unaligned@0.5", "reference-copied", "redrawn"} == set(found["rows"])
    assert found["log_likelihood_differences"].keys() >= {"own history − another user's", "aligned − not aligned"}
    assert "log-likelihood" in (tmp_path / "shop-evaluation/evaluation.md").read_text()
    assert load_model(tmp_path / "shop-nano").config.name == "nano"
