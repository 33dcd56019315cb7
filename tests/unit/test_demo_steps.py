"""What a user of `pigeon demo` sees while it runs: a label per step, then its lines, then its time."""

from __future__ import annotations

import re

import pytest

from deploy.local.demo import progress
from deploy.local.demo.steps import StepFailed, Steps


def test_a_step_prints_its_label_then_its_lines_then_its_time(capfd: pytest.CaptureFixture[str]) -> None:
    step = Steps(total=3).run("events", "check")
    assert (step.command, step.outcome, step.code) == ("pigeon events check", "event schemas: 7 agree", 0)
    assert re.fullmatch(
        r"\[1/3\] pigeon events check\n {8}event schemas: 7 agree\n {8}\(\d+\.\d s\)\n", capfd.readouterr().out
    )


def test_a_long_argument_is_cut_and_a_failure_names_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    steps = Steps(total=2)
    with pytest.raises(
        StepFailed, match=r"`pigeon night run --users u1,u1,.*\.\.\. --date tomorrow` ended with exit code 2"
    ):
        steps.run("night", "run", "--users", ",".join(["u1"] * 99), "--date", "tomorrow")
    assert len(steps.done[0].command) < 100
    assert "tomorrow" in capfd.readouterr().err


def test_a_refusal_may_be_an_outcome(capfd: pytest.CaptureFixture[str]) -> None:
    step = Steps(total=1).run("dlq", "drop", allowed=(0, 2))
    assert (step.outcome, step.code) == ("pigeon: say which: --topic, --reason or --all", 2)
    assert capfd.readouterr().err == ""


def test_without_a_terminal_a_line_is_written_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.bar() as show:
        for done in range(0, 101, 20):
            now = done / 4
            show("Draw", done, 100)
        show("Draw", 100, 100)
    assert capsys.readouterr().err.split("\n") == [
        "        Draw: 40 of 100",
        "        Draw: 80 of 100",
        "        Draw: 100 of 100",
        "",
    ]
