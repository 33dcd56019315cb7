"""tests/faults/FAULTS.md and the tests that hold its rows agree."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.house import ROOT

FOLDER = ROOT / "tests" / "faults"
FILES = sorted(FOLDER.glob("test_*.py"))
FAULT = re.compile(r"\b[Ff]aults? (\d+(?:(?:, | and )\d+)*)")
FLAW = re.compile(r"\bF\d+\b")
ROW = re.compile(r"\| (\d+) \|.*\|.*\| (.*) \|$")
NAMED = re.compile(r"tests/\w+/test_\w+\.py|\btest_\w+")


def docstrings(file: Path) -> dict[str, str]:
    """First docstring of each test of a file, by its name."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {test.name: ast.get_docstring(test) or "" for test in tests}


def faults_of(file: Path) -> set[int]:
    """Numbers of the faults that the tests of a file name."""
    named = [found for text in docstrings(file).values() for found in FAULT.findall(text)]
    return {int(number) for numbers in named for number in re.findall(r"\d+", numbers)}


def listed() -> dict[int, set[Path]]:
    """The files that FAULTS.md names in the row of each fault."""
    rows = {}
    for line in (FOLDER / "FAULTS.md").read_text(encoding="utf-8").splitlines():
        row = ROW.fullmatch(line)
        if row:
            names = NAMED.findall(row[2])
            # One that is named alone is in this folder, or where the one before it is.
            rows[int(row[1])] = {
                ROOT / name if name.startswith("tests/") else next(ROOT.glob(f"tests/*/{name}.py")) for name in names
            }
    return rows


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_test_names_its_fault(file: Path) -> None:
    without = [name for name, text in docstrings(file).items() if not (FAULT.search(text) or FLAW.search(text))]
    assert not without, f"{file.name}: the docstring names no fault (Fault 11., or F12 of the flaws)"


def test_the_list_names_every_file_that_holds_a_fault_and_no_other() -> None:
    rows = listed()
    assert sorted(rows) == list(range(1, len(rows) + 1))
    found: dict[int, set[Path]] = defaultdict(set)
    for file in FILES:
        for number in faults_of(file):
            found[number].add(file)
    for number, files in rows.items():
        assert all(file.is_file() for file in files), f"fault {number}"
        here = {file for file in files if file.parent == FOLDER}
        assert here == found[number], f"fault {number}: FAULTS.md names {names(here)}, tests of {names(found[number])}"
    assert set(found) <= set(rows)


def names(files: set[Path]) -> list[str]:
    return sorted(file.name for file in files)
