"""Runs the demo's steps: `pigeon` commands as child processes, each under a line of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import typer

from schemas.errors import PigeonError

INDENT = " " * 8
LONGEST_SHOWN = 80
"""Characters of the longest argument that is shown whole; of a longer one (a list of users) only the beginning is."""


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
    settings: dict[str, str] = field(default_factory=dict)
    """Settings of the steps that follow, as environment variables; what the user has set wins."""
    done: list[Step] = field(default_factory=list)
    _command: str = ""
    _begin: float = 0.0

    def announce(self, command: str) -> None:
        """Print the next step's number and command, and start its clock."""
        self._command, self._begin = command, time.monotonic()
        typer.secho(f"[{len(self.done) + 1}/{self.total}] {command}", bold=True)

    def finish(self, outcome: str, code: int = 0) -> Step:
        """Print how long the announced step took, and remember it."""
        step = Step(self._command, outcome, code, time.monotonic() - self._begin)
        self.done.append(step)
        tell(f"({step.seconds:.1f} s)")
        return step

    def run(self, *arguments: str, allowed: Sequence[int] = (0,)) -> Step:
        """Run `pigeon ARGUMENTS`, passing on what it prints; the last line of stdout is the outcome.

        Raises:
            StepFailed: the exit code is not among `allowed`.
        """
        self.announce(" ".join(["pigeon", *(_shown(argument) for argument in arguments)]))
        outcome, code = _run(arguments, self.settings, refusals_are_outcomes=len(allowed) > 1)
        step = self.finish(outcome, code)
        if code not in allowed:
            raise StepFailed(
                f"`{step.command}` ended with exit code {code}; `pigeon --debug ...` shows more. If an earlier demo of other "
                "options is in the way, `pigeon demo --fresh` starts over"
            )
        return step


def tell(line: str) -> None:
    """Print a line of a step, below its label."""
    if sys.stdout.isatty():
        width = max(40, shutil.get_terminal_size().columns)
        line = textwrap.fill(line, width - len(INDENT), break_long_words=False, break_on_hyphens=False)
    typer.echo(textwrap.indent(line, INDENT))


def _shown(argument: str) -> str:
    return argument if len(argument) <= LONGEST_SHOWN else f"{argument[: LONGEST_SHOWN // 4]}..."


def _run(arguments: Sequence[str], settings: Mapping[str, str], *, refusals_are_outcomes: bool) -> tuple[str, int]:
    """Run a command; its last line and exit code.

    Progress (stderr) is on the terminal's own, unless the outcome may be a line of it."""
    outcome = ""
    with subprocess.Popen(
        [sys.executable, "-m", "generator.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if refusals_are_outcomes else None,
        text=True,
        # Clicks of 1998 have the consumers warn of old partitions: nothing that a reader of the demo can act on.
        # Every picture is judged before it is shown; the demo's extra brings the model.
        env={"PIGEON_LOG_LEVEL": "error", "PIGEON_SAFETY__ENABLED": "true", **settings, **os.environ},
    ) as child:
        try:
            for line in child.stdout or ():
                if line.strip():
                    outcome = line.strip()
                    tell(line.rstrip())
        except BaseException:
            child.kill()
            raise
    return outcome, child.returncode
