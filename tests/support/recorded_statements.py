"""The SQL that a release sends, recorded from its tests, to be tried on the next one's schema.

To record the present release, before the first change of its schema:

    PIGEON_TEST_STATEMENTS=/tmp/postgres.log python -m pytest tests/integration/test_postgres_roles.py \
        tests/integration/test_web_console.py tests/integration/test_web_api.py tests/integration/test_stored_metrics.py
    python -m tests.support.recorded_statements /tmp/postgres.log

One example of each statement is kept, the shortest.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

FILE = Path(__file__).parents[1] / "golden" / "statements.json"
PREFIX = "@@%a|"
"""Postgres' `log_line_prefix` while it is recorded: who sent it."""
LONGEST = 12_000
"""Characters of a statement; longer ones are lists of values that a shorter example has, too."""
_ENTRY = re.compile(r"^@@([^|]*)\|(?:LOG:  (?:statement|execute [^:]*): )?(.*)$", re.DOTALL)
_TEXT = re.compile(r"E?'(?:[^'\\]|''|\\.)*'", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w$])-?\d+(?:\.\d+)?(?:e-?\d+)?\b")
_FOLDER = re.compile(r"/tmp/[^'\"\s]*/")  # noqa: S108 - what it looks for
"""Folder of a test run."""
_KEPT = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "CREATE TEMPORARY")
_OTHERS = ("pigeon-tests", "pigeon-migrations")


def record(log: Path) -> dict[str, list[str]]:
    """Statements of each part, by the name that it connects with."""
    shortest: dict[tuple[str, str], str] = {}
    for sender, statement in _entries(_FOLDER.sub("/art/", log.read_text(errors="replace")).splitlines()):
        known = sender.startswith("pigeon") and not sender.startswith(_OTHERS)
        if not known or not statement.startswith(_KEPT) or len(statement) > LONGEST:
            continue
        shape = sender, _shape(statement)
        if len(statement) < len(shortest.get(shape, statement + " ")):
            shortest[shape] = statement
    found: dict[str, list[str]] = {}
    for (sender, _), statement in sorted(shortest.items()):
        found.setdefault(sender, []).append(statement)
    return found


def _entries(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    entry: list[str] = []
    for line in [*lines, "@@|"]:
        if line.startswith("@@") and entry:
            match = _ENTRY.match("\n".join(entry))
            if match:
                yield match[1], match[2].strip().rstrip(";")
            entry = []
        entry.append(line.removeprefix("\t"))


def _shape(statement: str) -> str:
    """The statement without its values; lists of any length are alike."""
    text = _NUMBER.sub("?", _TEXT.sub("?", statement))
    text = re.sub(r"\b(?:NULL|true|false)\b", "?", re.sub(r"\s+", " ", text))
    text = re.sub(r"\?(?:::\w+(?:\[\])?)?(?:, ?\?(?:::\w+(?:\[\])?)?)+", "?, ?", text)
    return re.sub(r"(\([?, ]*\))(?:, ?\([?, ]*\))+", r"\1", text)


if __name__ == "__main__":
    recorded = record(Path(sys.argv[1]))
    FILE.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
    sys.stdout.write(f"{sum(map(len, recorded.values()))} statements of {', '.join(recorded)}\n")
