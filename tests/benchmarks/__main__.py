"""`make bench`: every row of the table in one run, on embedded servers of its own."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.table import Figure, Options, described, machine, say, table, write_json

RESULTS = Path(__file__).parents[2] / ".pigeon" / "bench" / "results.json"

# Row -> module with `rows(options)`; in this order.
ROWS = {
    "drawing": "tests.benchmarks.drawing",
    "overhead": "tests.benchmarks.overhead",
    "plan": "tests.benchmarks.plan",
    "manifest": "tests.benchmarks.manifest",
    "console": "tests.benchmarks.console",
    "ingest": "tests.benchmarks.ingest",
    "shared-memory": "tests.benchmarks.shared_memory",
}


def main() -> None:
    """Measure the rows that were asked for; print and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=ROWS, metavar="ROW", help=f"one of {', '.join(ROWS)}; may be repeated"
    )
    parser.add_argument("--full", action="store_true", help="full sizes, which take longer than 20 minutes")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go (default: %(default)s)")
    given = parser.parse_args()
    options, before = Options(full=given.full), machine()
    say(described(before))
    figures: list[Figure] = []
    for name in given.only or ROWS:
        start = time.monotonic()
        say(f"[{name}]")
        measured: Callable[[Options], list[Figure]] = importlib.import_module(ROWS[name]).rows
        figures += measured(options)
        say(f"[{name}] {time.monotonic() - start:.0f} s")
        write_json(
            given.json, figures, options, before
        )  # also after a row that is the last one, because the next failed
    say(table(figures))
    say(f"{given.json}")


if __name__ == "__main__":
    main()
