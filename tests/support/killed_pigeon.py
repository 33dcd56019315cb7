"""`python -m tests.support.killed_pigeon POINT COUNT ARGUMENTS...`.

A `pigeon` command that kills itself.

It dies with SIGKILL at the COUNT-th passage of a named point (schemas/faultpoints.py). A training saves its state after each step,
so that there is something to kill.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys

from generator import cli
from schemas import faultpoints


def main() -> None:
    """Run the command until it dies."""
    point, count, *arguments = sys.argv[1:]
    passages = itertools.count(1)

    def die(reached: str) -> None:
        if reached == point and next(passages) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    faultpoints.handler = die
    if arguments[0] == "retrain":
        from generator.training.dpo import train as dpo

        dpo.SAVE_EVERY_SECONDS = 0.0
    sys.argv = ["pigeon", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
