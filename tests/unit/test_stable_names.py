"""What others build on keeps its name.

A change is made in the committed list knowingly, or not at all.
"""

from __future__ import annotations

from tests.support.stable_names import difference


def test_no_name_that_others_build_on_has_changed() -> None:
    found = difference()
    assert not found, "\n".join(
        ["if this is meant: python -m tests.support.stable_names --update, and a line in CHANGELOG.md", *found]
    )
