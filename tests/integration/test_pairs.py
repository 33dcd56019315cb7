"""Which showings and clicks make a preference pair, and how much it weighs, on a real Postgres."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from generator.feedback import pairs
from tests.support.loop_world import Night, mine

pytestmark = pytest.mark.integration


def chosen(mined: pairs.Mined) -> set[tuple[str, str]]:
    return {(d.pair.chosen_poster_id, d.pair.rejected_poster_id) for d in mined.pairs}


def test_a_click_wins_over_a_showing_and_clicks_belong_to_the_showing_before(engine: Engine) -> None:
    night = Night(engine)
    a, b = night.task("u", "x")
    night.feedback(b, "c")  # clicked out of nowhere: no impression to belong to
    night.feedback(a, "ic")
    night.feedback(b, "i")
    never, shown = night.task("v", "x")
    night.feedback(shown, "ic")
    dismissed, calm = night.task("w", "x")
    night.feedback(dismissed, "icd")
    night.feedback(calm, "i")
    both = night.task("z", "x")
    for poster in both:
        night.feedback(poster, "ic")
    mined = mine(engine)
    assert chosen(mined) == {(a, b)}, f"{never} was never shown, {dismissed} was dismissed, {both} are equal"
    pair = mined.pairs[0].pair
    assert (pair.chosen_tokens, pair.rejected_tokens, pair.alpha, pair.weight) == ((10,), (11,), 0.0, 1.0)
    assert pair.prompt.title == "x"
    assert mined.counts["orphans"] == 1


def test_only_equal_numbers_of_showings_are_compared(engine: Engine) -> None:
    night = Night(engine)
    favoured, rare = night.task("u", "x", propensity=(0.9, 0.1))
    night.feedback(favoured, "iiiic")  # one click in four showings, none in the first
    night.feedback(rare, "i")
    early, late = night.task("v", "x")
    night.feedback(early, "iciii")
    night.feedback(late, "i")
    assert chosen(mine(engine)) == {(early, late)}


def test_a_low_position_excuses_and_a_high_one_does_not(engine: Engine) -> None:
    night = Night(engine)
    for n in range(60):  # position 9 is looked at a fifth as often as position 0, for the same item
        top, bottom = night.task(f"u{n}", "x")
        night.feedback(top, "ic" if n % 2 == 0 else "i", position=0)
        night.feedback(bottom, "ic" if n % 10 == 0 else "i", position=9)
    a, b = night.task("judge", "x")
    night.feedback(a, "icic", position=9)  # 2 of 2 where few look...
    night.feedback(b, "ici", position=0)  # ...over 1 of 2 where all look
    c, d = night.task("judge", "y")
    night.feedback(c, "icicii", position=0)  # 2 of 4 where all look is less than...
    night.feedback(d, "iciii", position=9)  # ...1 of 4 where few look, but not with fewer clicks
    found = chosen(mine(engine))
    assert (a, b) in found
    assert not {(c, d), (d, c)} & found


def test_rare_comparisons_weigh_more_up_to_the_clip_and_weights_average_to_one(engine: Engine) -> None:
    night = Night(engine)
    for user, share in (("even", 0.5), ("skewed", 0.8), ("extreme", 0.999)):
        a, b = night.task(user, "x", propensity=(share, 1 - share))
        night.feedback(a, "ic")
        night.feedback(b, "i")
    logged, other = night.task("logged", "x", propensity=(0.999, 0.001))
    night.feedback(logged, "ic", propensity=0.5)
    night.feedback(other, "i", propensity=0.5)
    weights = {d.pair.user_id: d.pair.weight for d in mine(engine).pairs}
    raw = {"even": 4.0, "skewed": 6.25, "extreme": pairs.MAX_WEIGHT, "logged": 4.0}
    mean = sum(raw.values()) / 4
    assert weights == pytest.approx({user: weight / mean for user, weight in raw.items()}, rel=1e-4)


def test_score_ranked_pairs_fill_up_to_their_share_and_never_contradict_people(engine: Engine) -> None:
    night = Night(engine)
    for n in range(10):
        low, high = night.task(f"u{n}", "x", cis=(50.0, 60.0))
        if n < 4:
            night.feedback(low, "ic")
            night.feedback(high, "i")
    night.task("tie", "x", cis=(50.0, 50.0))
    mined = mine(engine, share=0.5)
    assert (mined.counts["feedback_pairs"], mined.counts["score_pairs"]) == (4, 4)
    assert all(d.pair.chosen_tokens == (11,) for d in mined.pairs if d.pair.source == "score")
    assert len({d.pair.user_id for d in mined.pairs}) == 8
    assert mine(engine, share=0.0).counts["score_pairs"] == 0
    assert mine(engine, share=1.0).counts["score_pairs"] == 6
