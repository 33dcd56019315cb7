"""The house's rules of words, as far as they can be counted, and what still breaks them.

    python -m tests.support.house             every place that breaks a rule
    python -m tests.support.house --shrink    lower tests/golden/house_debts.json to what is found; it never grows

CONTRIBUTING.md has the rules and why; tests/unit/test_house_words.py holds them.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEBTS = ROOT / "tests" / "golden" / "house_debts.json"
FOLDERS = ("schemas", "consumers", "generator", "migrations", "deploy", "tests")
MAX_FIRST_LINE = 100
"""Columns of a docstring's first line, without its indentation."""
BANNED = re.compile(r"\b(anew|begun|whom|crown(?:s|ed|ing)?|reign(?:s|ed|ing)?|puts? away)\b", re.IGNORECASE)
NOT_OURS = ("deploy/models/nano/evaluation/",)
"""Markdown that a command writes."""
MAY_SAY = (
    "generator/datasets/",  # a crown is a thing that can be drawn
    "tests/unit/test_datasets",
    "tests/unit/test_evaluation",
    "generator/pigeon/presets.py",  # the prompt's sentences: other words would be another input
    "tests/support/house.py",
    "tests/unit/test_house_words.py",
)
"""Files that need a banned word."""
ABBREVIATIONS = re.compile(r"\b(et al|e\.g|i\.e|vs|approx|No|pp?)\.\s")
SENTENCE_BREAK = re.compile(r"[.!?][)\"'*_]*\s+[\"'(*_\[]*[A-Z]")
LABEL = re.compile(r"^\s*(?:(?:\d+\.|[-*])\s+)?(?:\*\*[^*]+\*\*\s+)?")
SENTENCE_END = re.compile(r"[.:;!?][)\"'*_`]*$")

Place = tuple[int, str]


@dataclass(frozen=True)
class Finding:
    """A place that breaks a rule."""

    rule: str
    path: str
    line: int
    text: str


def files(*suffixes: str) -> list[Path]:
    """Files of the project with these suffixes, below the known folders and at the root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    found += [path for path in ROOT.iterdir() if path.suffix in suffixes and path.is_file()]
    return sorted(path for path in found if not relative(path).startswith(NOT_OURS) and "__pycache__" not in path.parts)


def relative(path: Path) -> str:
    """From the root, with slashes."""
    return path.relative_to(ROOT).as_posix()


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def _nodes(tree: ast.Module) -> list[ast.AST]:
    return list(ast.walk(tree))


def docstrings(tree: ast.Module) -> Iterator[Place]:
    """Docstrings of modules, classes and functions, with the line that they begin on."""
    for node in _nodes(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def constants(tree: ast.Module) -> Iterator[Place]:
    """Strings that follow an assignment and say what it is."""
    for node in _nodes(tree):
        body = getattr(node, "body", None)
        for before, after in pairwise(body) if isinstance(body, list) else ():
            if (
                isinstance(before, ast.Assign | ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                yield after.lineno, after.value.value.strip()


def long_first_lines(text: str) -> Iterator[Place]:
    """Docstrings whose first line is too long."""
    for line, doc in docstrings(_parsed(text)):
        first = doc.splitlines()[0]
        if len(first) > MAX_FIRST_LINE:
            yield line, first


def open_first_lines(text: str) -> Iterator[Place]:
    """Docstrings whose first line ends in the middle of a sentence."""
    for line, doc in docstrings(_parsed(text)):
        first = doc.splitlines()[0]
        if not SENTENCE_END.search(first):
            yield line, first


def constants_of(text: str) -> Iterator[Place]:
    """Constants that are said to be "of" something, where a noun and a unit belong."""
    for line, doc in constants(_parsed(text)):
        if doc.startswith("Of "):
            yield line, doc.splitlines()[0]


def banned_words(text: str) -> Iterator[Place]:
    """Words for which there is a plainer one."""
    for number, line in enumerate(text.splitlines(), start=1):
        if BANNED.search(line):
            yield number, line.strip()


def prose(text: str) -> Iterator[Place]:
    """Lines of Markdown that are sentences: no code, tables, headings or quotes of a program's output."""
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        plain = re.sub(r"`[^`]*`", "`x`", re.sub(r"\]\([^)]*\)", "]", line))
        if not fenced and not re.match(r"    |\s*\||#", line) and "|---" not in line:
            yield number, ABBREVIATIONS.sub(r"\1 ", plain.rstrip())


def crowded_lines(text: str) -> Iterator[Place]:
    """Lines of Markdown that hold more than one sentence."""
    for number, line in prose(text):
        if SENTENCE_BREAK.search(LABEL.sub("", line)):
            yield number, line


def broken_lines(text: str) -> Iterator[Place]:
    """Lines of Markdown that end in the middle of a sentence."""
    lines = dict(prose(text))
    for number, line in lines.items():
        after = lines.get(number + 1, "")
        if line and after and not re.match(r"\s*(\d+\.|[-*])\s", after) and not SENTENCE_END.search(line):
            yield number, line


PYTHON: dict[str, Callable[[str], Iterator[Place]]] = {
    "docstring's first line too long": long_first_lines,
    "docstring's first line ends in mid-sentence": open_first_lines,
    "constant begins with Of": constants_of,
    "banned word": banned_words,
}
MARKDOWN: dict[str, Callable[[str], Iterator[Place]]] = {
    "banned word": banned_words,
    "two sentences in a line": crowded_lines,
    "sentence broken over lines": broken_lines,
}


@cache
def findings() -> list[Finding]:
    """Every place that breaks a rule."""
    found = []
    for suffixes, rules in (((".py",), PYTHON), ((".md",), MARKDOWN), ((".j2", ".ini"), {"banned word": banned_words})):
        for path in files(*suffixes):
            name, text = relative(path), path.read_text(encoding="utf-8")
            for rule, check in rules.items():
                if rule == "banned word" and name.startswith(MAY_SAY):
                    continue
                found += [Finding(rule, name, line, words) for line, words in check(text)]
    return found


def counted(found: list[Finding]) -> dict[str, dict[str, int]]:
    """Rule -> file -> how often."""
    counts = Counter((one.rule, one.path) for one in found)
    return {
        rule: {path: count for (r, path), count in sorted(counts.items()) if r == rule}
        for rule in sorted({rule for rule, _ in counts})
    }


def debts() -> dict[str, dict[str, int]]:
    """What is still allowed: rule -> file -> how often."""
    loaded: dict[str, dict[str, int]] = json.loads(DEBTS.read_text(encoding="utf-8")) if DEBTS.exists() else {}
    return loaded


def write_debts(counts: dict[str, dict[str, int]]) -> None:
    """Replace the committed list."""
    DEBTS.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


def shrunk() -> dict[str, dict[str, int]]:
    """The smaller of what is allowed and what is found, without zeros."""
    found = counted(findings())
    lower = {
        rule: {path: min(count, found.get(rule, {}).get(path, 0)) for path, count in allowed.items()}
        for rule, allowed in debts().items()
    }
    return {rule: kept for rule, paths in lower.items() if (kept := {p: n for p, n in paths.items() if n})}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Show what breaks the house's rules of words, or shrink the debts.")
    parser.add_argument("--shrink", action="store_true")
    if parser.parse_args().shrink:
        write_debts(shrunk())
    else:
        for one in findings():
            print(f"{one.path}:{one.line}: {one.rule}: {one.text}")  # noqa: T201
