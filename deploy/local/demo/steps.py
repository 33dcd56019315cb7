"""Runs the demo's steps: `pigeon` commands as child processes, each with one line of outcome."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import typer

from schemas.errors import PigeonError


class StepFailed(PigeonError):
    """A command of the demo ended with an exit code that its step does not allow."""


@dataclass(frozen=True)
class Step:
    """One command that ran: its last line of output, its exit code, its wall time."""

    command: str
    outcome: str
    code: int
    seconds: float


@dataclass
class Steps:
    """Runs commands one after the other and remembers them for the page."""

    total: int
    done: list[Step] = field(default_factory=list)

    def run(self, *arguments: str, allowed: Sequence[int] = (0,)) -> Step:
        """Run `pigeon ARGUMENTS`; progress (stderr) passes through, the last line of stdout is the outcome.

        Raises:
            StepFailed: the exit code is not among `allowed`.
        """
        shown = "pigeon " + " ".join(a for a in arguments if len(a) < 80)
        typer.secho(f"[{len(self.done) + 1}/{self.total}] {shown}", bold=True)
        begin = time.monotonic()
        child = subprocess.run(
            [sys.executable, "-m", "generator.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=None if not allowed[1:] else subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ,
        )
        lines = [line for line in (child.stdout + (child.stderr or "")).splitlines() if line.strip()]
        step = Step(shown, lines[-1] if lines else "", child.returncode, time.monotonic() - begin)
        self.done.append(step)
        typer.echo(f"        {step.outcome}  ({step.seconds:.1f} s)")
        if child.returncode not in allowed:
            for line in lines[:-1][-15:]:
                typer.echo(f"        {line}", err=True)
            raise StepFailed(
                f"`{shown}` ended with exit code {child.returncode}; `pigeon --debug ...` shows more. If an earlier demo of other "
                "options is in the way, `pigeon demo --fresh` starts again"
            )
        return step
