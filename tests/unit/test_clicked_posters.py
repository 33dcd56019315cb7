"""One entry per item and moment: what clicked posters make of a history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from generator.nightly.clicked_posters import SAME_VISIT, Seen, with_clicks
from schemas.settings_history import HistorySettings

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def entry(item: str, minutes: float, picture: str | None = None) -> Seen[str, str]:
    return Seen(item, NOON + timedelta(minutes=minutes), picture)


def test_an_interaction_and_a_feedback_click_for_one_click_are_one_entry_with_the_drawn_picture() -> None:
    history = [entry("b", 10), entry("a", 0)]
    for late in (-2, 0, 0.1, 29):
        found = with_clicks([entry("c", 20), *history], [entry("c", 20 - late, "drawn")])
        assert [(one.item_id, one.picture) for one in found] == [("c", "drawn"), ("b", None), ("a", None)]
        assert found[0].at == max(NOON + timedelta(minutes=20), NOON + timedelta(minutes=20 - late))


def test_an_interaction_of_a_later_visit_has_the_items_own_picture() -> None:
    visit = SAME_VISIT.total_seconds() / 60
    for minutes, picture in ((visit, "drawn"), (visit + 1, None)):
        assert with_clicks([entry("a", minutes)], [entry("a", 0, "drawn")])[0].picture == picture


def test_a_click_without_an_interaction_is_an_entry_and_moves_an_older_one_of_its_item() -> None:
    history = [entry("c", 30), entry("b", 20), entry("a", 10)]
    found = with_clicks(history, [entry("a", 60, "drawn"), entry("new", 25, "other")])
    assert [(one.item_id, one.picture) for one in found] == [("a", "drawn"), ("c", None), ("new", "other"), ("b", None)]


def test_two_clicks_at_one_moment_stay_in_their_order_behind_the_historys_own() -> None:
    found = with_clicks([entry("a", 0)], [entry("b", 0, "x"), entry("c", 0, "y")])
    assert [one.item_id for one in found] == ["a", "b", "c"]


_ENTRIES = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(0, 90)), unique_by=lambda pair: pair[0], max_size=6
).map(lambda pairs: sorted(pairs, key=lambda pair: -pair[1]))


@given(_ENTRIES, _ENTRIES)
def test_every_item_is_there_once_newest_first(own: list[tuple[str, int]], clicked: list[tuple[str, int]]) -> None:
    history, clicks = [entry(*one) for one in own], [entry(*one, "drawn") for one in clicked]
    found = with_clicks(history, clicks)
    assert sorted(one.item_id for one in found) == sorted({one.item_id for one in (*history, *clicks)})
    assert [one.at for one in found] == sorted((one.at for one in found), reverse=True)
    assert sum(one.picture is not None for one in found) <= len(clicks)
    assert with_clicks(history, []) == history


def test_a_share_of_the_history_is_drawn_at_most() -> None:
    shares = {0.0: 0, 0.19: 0, 0.2: 1, 0.6: 3, 1.0: 5}
    assert {share: HistorySettings(drawn_share=share).most_drawn(5) for share in shares} == shares
