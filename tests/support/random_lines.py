"""A guessing game for newcomers: lines of code taken at random. Whose room are they from?

    python -m tests.support.random_lines [--count 12] [--seed 1]    the lines, without their files
    python -m tests.support.random_lines --answers                  the same lines, with file and number

A line that nobody can place belongs somewhere else, or bears a wrong name.
"""

from __future__ import annotations

import argparse
import ast
import random
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "consumers", "generator", "migrations", "deploy")
LEAST_CHARACTERS = 12
"""Characters of a line that says anything; a closing bracket does not."""


def code_lines(path: Path) -> dict[int, str]:
    """Line number -> line, of those that hold code: no imports, comments, docstrings or brackets alone."""
    source = path.read_text(encoding="utf-8")
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        alone = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if alone or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    comments = {token.start[0] for token in tokens if not token.line[: token.start[1]].strip()}
    return {
        number: line.strip()
        for number, line in enumerate(source.splitlines(), start=1)
        if number not in left_out | comments and len(line.strip()) >= LEAST_CHARACTERS
    }


def drawn(count: int, seed: int) -> list[tuple[str, int, str]]:
    """(file, number, line), each line of the project as likely as any other."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    every = [
        (path.relative_to(ROOT).as_posix(), number, line) for path in paths for number, line in code_lines(path).items()
    ]
    return random.Random(seed).sample(every, count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Lines of code taken at random: where are they from?")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--answers", action="store_true")
    asked = parser.parse_args()
    for place, (path, number, line) in enumerate(drawn(asked.count, asked.seed), start=1):
        print(f"{place:3}  {line}" + (f"\n     {path}:{number}" if asked.answers else ""))  # noqa: T201
