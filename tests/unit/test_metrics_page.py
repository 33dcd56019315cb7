"""The page of metrics is what the code has, and names have units."""

from __future__ import annotations

from collections import Counter

from tests.support.metrics import PAGE, all_metrics, page


def test_the_page_lists_what_the_code_has() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python -m tests.support.metrics"


def test_names_are_ours_unique_and_without_other_units() -> None:
    names = [one.name for one in all_metrics()]
    assert not [name for name, count in Counter(names).items() if count > 1]
    assert all(name.startswith("pigeon_") for name in names)
    assert not [
        name for name in names if name.endswith(("_ms", "_minutes", "_hours", "_days", "_mib", "_kb", "_total"))
    ]
