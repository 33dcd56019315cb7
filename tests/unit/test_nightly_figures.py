"""Figures of sessions that add up, the estimate of a night to come, and the report's charts."""

from __future__ import annotations

import pytest

from generator.nightly.figures import estimate, total_figures
from generator.nightly.report.charts import Line, bars, histogram, lines, number
from generator.nightly.report.nights import NightLine, funnel_of
from generator.nightly.runs import Rates
from generator.nightly.sessions import sessions_of, total_of
from generator.nightly.tally import EXAMPLES, Refusals, Tally

FIRST = Tally(
    done=7,
    refused=2,
    failed=1,
    posters=14,
    chosen_for=10,
    answered=9,
    distinct_answers=15,
    pictures_drawn=8,
    pictures_reused=6,
    model_seconds=12.5,
    stage_seconds={"answer": 2.0, "draw": 10.5},
    refusals={"unsafe": Refusals(2), "blank": Refusals(1, ["p1"])},
)
SECOND = Tally(
    done=3,
    posters=6,
    chosen_for=3,
    distinct_answers=3,
    pictures_drawn=1,
    stage_seconds={"draw": 1.5, "manifest": 0.5},
    refusals={"blank": Refusals(2, ["p2", "p1"])},
)


def stored(*sessions: tuple[Tally, float]) -> dict[str, object]:
    return {
        "sessions": [
            {"kind": "first", "started_at": f"2026-03-01T0{n}:00:00", "ended": "finished", **tally.figures(seconds)}
            for n, (tally, seconds) in enumerate(sessions)
        ]
    }


def test_what_is_stored_of_a_session_is_read_as_it_was() -> None:
    (session,) = sessions_of(stored((FIRST, 20.0)))
    assert (session.tally, session.seconds, session.ended) == (FIRST, 20.0, "finished")


def test_sessions_add_up_and_their_means_are_those_of_the_sum() -> None:
    total, seconds = total_of(sessions_of(stored((FIRST, 20.0), (SECOND, 6.0))))
    assert seconds == 26
    assert (total.finished, total.posters, total.pictures_drawn) == (13, 20, 9)
    assert total.distinct_answers_per_task == pytest.approx(18 / 13)
    assert total.stage_seconds == {"answer": 2.0, "draw": 12.0, "manifest": 0.5}
    assert total.refusals == {"unsafe": Refusals(2), "blank": Refusals(3, ["p1", "p2"])}
    figures = total_figures(stored((FIRST, 20.0), (SECOND, 6.0)))
    assert (figures["tasks_per_second"], figures["pictures_drawn_per_poster"]) == (0.5, 0.45)
    assert total_figures({}) == {}


def test_a_session_of_the_release_before_counts_as_far_as_it_tells() -> None:
    (session,) = sessions_of(
        {"sessions": [{"started_at": "2026-03-01", "seconds": 4.0, "tasks": 8, "pictures_drawn": 3}]}
    )
    assert (session.tally.finished, session.tally.pictures_drawn, session.tally.posters) == (8, 3, 0)


def test_a_reason_keeps_a_few_examples_however_often_it_comes() -> None:
    tally = Tally()
    for number_ in range(100):
        tally.refuse("blank", f"p{number_}")
        tally.refuse("unsafe", None)
    assert tally.refusals["blank"] == Refusals(100, [f"p{n}" for n in range(EXAMPLES)])
    assert tally.refusals["unsafe"] == Refusals(100)


def test_a_night_is_estimated_from_the_last_ones_or_not_at_all() -> None:
    assert estimate(0, Rates(0, 0, 0, 0.0)) == "estimate: nothing to draw"
    assert estimate(5, Rates(0, 0, 0, 0.0)) == "estimate: none, there is no earlier night to estimate from"
    rates = Rates(3, 1000, 1300, 900.0)
    assert estimate(4000, rates) == (
        "estimate: about 5200 pictures in 1.0 hours of drawing (1.30 pictures and 0.90 s per task in the last 3 nights)"
    )
    assert "in 9.0 seconds of drawing" in estimate(10, rates)


def test_a_cost_is_told_only_where_a_price_is_set() -> None:
    rates = Rates(1, 1000, 1300, 900.0)
    assert "1.50 (night.price_per_hour is 1.5)" in estimate(4000, rates, 1.5)
    assert "price" not in estimate(4000, rates)
    assert "for 0.00" in estimate(4000, rates, 0.0), "a price of nothing is a price"


def test_a_night_among_others_is_none_where_it_does_not_tell() -> None:
    assert NightLine.of("2026-03-01", {"empty": True, "skips": {}}).drawn == 0
    assert NightLine.of("2026-03-01", {}).drawn is None
    night = NightLine.of(
        "2026-03-01",
        {"tasks": {"done": 9, "refused": 1}, "posters_drawn": 18, "posters_carried": 40, **stored((FIRST, 20.0))},
    )
    assert (night.published, night.unchanged, night.failed, night.rate) == (58, 40, 0, 0.5)


def test_the_funnel_tells_where_tasks_are_lost() -> None:
    figures = {"tasks": {"done": 6, "refused": 1, "failed": 2, "pending": 1}, "skips": {"unchanged": 30}}
    steps = [(step.count, step.share, step.left_out) for step in funnel_of(figures)]
    assert steps == [
        (40, 100.0, ""),
        (10, 25.0, "30 left out by the plan"),
        (6, 15.0, "1 refused, 2 failed, 1 open"),
    ]
    assert [step.share for step in funnel_of({"tasks": {}, "skips": {}})] == [0, 0, 0]


def test_charts_draw_what_they_are_given_and_escape_it() -> None:
    drawn = bars([1, None, 4], ["a", "b", "<c>"], "posters & more")
    assert drawn.count("<rect") == 2
    assert "posters &amp; more: a 1, &lt;c&gt; 4" in drawn
    assert 'class="now"' in drawn
    assert "<rect" not in bars([None], ["a"], "none")
    line = lines([Line("cs", "a", ((0.0, 30.0), (0.9, 20.0)))], "alpha", "Scores")
    assert line.count("<circle") == 2
    assert lines([], "alpha", "Scores") == ""
    stacked = histogram([1.0, 1.0, 2.0], [2.0], "score", "Scores")
    assert stacked.count('<rect class="a"') == 2
    assert stacked.count('<rect class="b"') == 1
    assert histogram([], [], "score", "Scores") == ""
    assert "<rect" in histogram([3.0], [], "score", "Scores"), "one value is a chart too"


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (3.0, "3"), (0.4567, "0.46"), (12.34, "12.3"), (12345.6, "12,346"), (1234567, "1,234,567")],
)
def test_numbers_are_written_for_people(value: float, words: str) -> None:
    assert number(value) == words
