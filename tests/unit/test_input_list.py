"""tests/inputs/README.md and the tests that hold its rows agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.house import ROOT

FOLDER = ROOT / "tests" / "inputs"
KINDS = 32
ROW = re.compile(r"\| (\d+) \| (.+) \| (.+) \| (.+) \| (.*?) ?\|$")
NAMED = re.compile(r"(?:tests/\w+/)?test_\w+\.py")
KIND = re.compile(r"\bINPUTS (\d+(?:(?:, | and | to )\d+)*)")


def rows() -> dict[int, tuple[str, list[Path]]]:
    """By number: what is said of today, and the files that hold it."""
    found = {}
    for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines():
        if row := ROW.fullmatch(line):
            files = [ROOT / name if "/" in name else FOLDER / name for name in NAMED.findall(row[5])]
            found[int(row[1])] = (row[4], files)
    return found


def test_every_kind_has_a_row_and_every_file_that_it_names_is_there() -> None:
    table = rows()
    assert sorted(table) == list(range(1, KINDS + 1))
    for number, (now, files) in table.items():
        assert files or now.startswith("open: "), f"kind {number} names no test, and is not said to be open"
        assert [str(file) for file in files if not file.is_file()] == [], f"kind {number}"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("test_*.py")), ids=lambda file: file.name)
def test_every_file_of_inputs_is_named_by_a_row(file: Path) -> None:
    assert any(file in files for _, files in rows().values())


def test_kinds_that_a_test_names_are_the_tables() -> None:
    """A docstring that says INPUTS 14 is in a file that row 14 names."""
    table = rows()
    for file in sorted(FOLDER.glob("test_*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for text in texts:
            for numbers in KIND.findall(text):
                for number in re.findall(r"\d+", numbers):
                    assert file in table[int(number)][1], f"{file.name} holds kind {number}, its row does not say so"
