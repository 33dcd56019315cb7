"""The rules of words (CONTRIBUTING.md): what breaks them is counted by file, and the counts only fall."""

from __future__ import annotations

import pytest

from tests.support import house


def test_no_file_breaks_a_rule_more_often_than_it_is_allowed_to() -> None:
    allowed = house.debts()
    found = house.findings()
    counts = house.counted(found)
    worse = {
        (rule, path)
        for rule, paths in counts.items()
        for path, count in paths.items()
        if count > allowed.get(rule, {}).get(path, 0)
    }
    lines = [f"{f.path}:{f.line}: {f.rule}: {f.text}" for f in found if (f.rule, f.path) in worse]
    assert not lines, "\n".join(lines)


def test_what_was_mended_is_no_longer_allowed() -> None:
    assert house.debts() == house.shrunk(), "something was mended: python -m tests.support.house --shrink"


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("docstring's first line too long", f'"""{"x" * 101}."""', f'def f():\n    """{"x" * 99}."""'),
        ("docstring's first line ends in mid-sentence", '"""One sentence\nover two lines."""', '"""One.\n\nMore."""'),
        ("constant begins with Of", 'A = 1\n"""Of the pixels."""', 'A = 1\n"""Share of the pixels."""'),
        ("banned word", "# made anew", "# made again"),
    ],
)
def test_a_rule_of_code_finds_what_breaks_it(rule: str, bad: str, good: str) -> None:
    assert list(house.PYTHON[rule](bad))
    assert not list(house.PYTHON[rule](good))


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("two sentences in a line", "One. Two.", "Xu et al. Wrote it.\n\n    code. More.\n\n| a. B |"),
        ("sentence broken over lines", "One that\ngoes on.", "One.\nTwo.\n\n- three\n- four"),
        ("banned word", "It reigned.", "It served."),
    ],
)
def test_a_rule_of_markdown_finds_what_breaks_it(rule: str, bad: str, good: str) -> None:
    assert list(house.MARKDOWN[rule](bad))
    assert not list(house.MARKDOWN[rule](good))
