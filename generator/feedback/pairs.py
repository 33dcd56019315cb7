"""Preference pairs from logged feedback, topped up by the paper's score-ranked pairs.

The estimator, for the variants a and b of one (user, item) that were drawn from the same prompt in the same night:

1. *Showings.* Each impression opens a showing of its poster; clicks and dismissals up to that poster's next impression belong
   to it. A showing counts as clicked if it was clicked and not dismissed. Clicks without an impression in the window are dropped,
   and so are robots and what is past a user's daily cap (`clicks.*`; they are counted).
2. *Exposure matching.* Only the first m showings of each variant count, m = the smaller number of showings of the two, so that the
   variant the policy favoured does not win by being shown more.
3. *Position debiasing.* θ_k, the chance that position k of a surface is examined at all relative to the best-examined one, is
   estimated from the same window by indirect standardisation: clicks at k over the clicks expected there from the shown
   items' own mean rates, shrunk by `PRIOR_CLICKS`, at least `MIN_EXAMINATION`. A variant's rate is clicks / Σ θ_k over
   its matched showings (the position-based click model). Shrinkage and items seen once bias θ towards 1, never past it.
4. *Preference.* a is chosen over b when it has more clicks and the higher rate; ties give no pair.
5. *Weight.* The comparison is in the log only because both variants were shown, so it weighs 1 / (π_a π_b) with the logged propensities
   π (the published ones where the surface logged none), clipped at `MAX_WEIGHT`, then divided by the mean (self-normalised), so
   that the learning rate keeps its meaning.

Score-ranked pairs (Pigeon, arXiv 2410.14170, section on alignment): highest over lowest history CIS among a task's variants,
weight 1, for tasks without a feedback pair, at most a stated share of all pairs. Reward-ranked pairs: generator/feedback/reward_pairs.py.
A task whose frozen prompt cannot be read gives no pair and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import RowMapping
from sqlalchemy.orm import Session

from generator.feedback.dated_pair import DatedPair, pair_id, prompt_of
from generator.feedback.queries import (
    COUNTS,
    FEEDBACK_PAIRS,
    SCORE_PAIRS,
    WITH_NESTED_LOOPS,
    WITHOUT_NESTED_LOOPS,
)
from generator.feedback.reward_pairs import RewardRanking, rank_answers
from generator.storage.showings import hygiene
from schemas.preferences import PreferencePair
from schemas.settings_loop import ClickSettings

MAX_WEIGHT = 10.0
MIN_EXAMINATION = 0.1
PRIOR_CLICKS = 5.0


@dataclass(frozen=True)
class Mined:
    """All pairs of a window and the counts that explain their number."""

    pairs: tuple[DatedPair, ...]
    counts: dict[str, int]


def mine(
    session: Session,
    start: datetime,
    stop: datetime,
    *,
    score_share: float,
    base_sha256: str,
    reward: RewardRanking | None = None,
    clicks: ClickSettings | None = None,
) -> Mined:
    """Pairs whose evidence lies in [start, stop).

    Their tasks were drawn with the checkpoint `base_sha256` or an adapter of it.

    `reward`: a click model, which ranks the answers of tasks that have no feedback pair. `clicks`: who counts as a robot, and
    the daily cap; the defaults when None.
    """
    window = {"start": start, "stop": stop, **hygiene(clicks or ClickSettings())}
    counts = {
        name: int(value)
        for name, value in session.execute(COUNTS, {**window, "base": base_sha256}).mappings().one().items()
    }
    bindings = {"prior": PRIOR_CLICKS, "floor": MIN_EXAMINATION, "max_weight": MAX_WEIGHT, "base": base_sha256}
    session.execute(WITHOUT_NESTED_LOOPS)
    rows = session.execute(FEEDBACK_PAIRS, {**window, **bindings}).mappings().all()
    session.execute(WITH_NESTED_LOOPS)
    feedback = _decide(rows, "feedback")
    taken = {(dated.pair.user_id, dated.pair.item_id) for dated in feedback}
    ranked = list(rank_answers(session, {**window, "base": base_sha256}, reward, taken)) if reward else []
    limit = None if score_share >= 1 else int((len(feedback) + len(ranked)) * score_share / (1 - score_share) + 1e-9)
    done = [f"{row['run_id']}/{row['user_id']}/{row['item_id']}" for row in rows]
    bindings = {**window, "taken": done, "limit": limit, "base": base_sha256}
    score_rows = session.execute(SCORE_PAIRS, bindings).mappings().all()
    others = {(dated.pair.user_id, dated.pair.item_id) for dated in ranked}
    scored = _decide([row for row in score_rows if (row["user_id"], row["item_id"]) not in others], "score")
    counts |= {"feedback_pairs": len(feedback), "reward_pairs": len(ranked), "score_pairs": len(scored)}
    counts["unreadable"] = sum(prompt_of(row["prompt"]) is None for row in (*rows, *score_rows))
    return Mined((*feedback, *ranked, *scored), counts)


def yield_words(counts: Mapping[str, int]) -> str:
    """How much of the showings became pairs, in one line."""
    if not counts["showings"]:
        return "no showings: feedback teaches nothing yet"
    direct, ranked = (1000 * counts[f"{source}_pairs"] / counts["showings"] for source in ("feedback", "reward"))
    words = f"pairs per 1,000 showings: {direct:.1f} of direct comparisons, {direct + ranked:.1f} with the reward-ranked ones"
    if counts["showings_left_out"]:
        words += (
            f"; left out: {counts['showings_left_out']:,} showings of {counts['robots']:,} robots or past the daily cap"
        )
    return words


def _decide(rows: Sequence[RowMapping], source: Literal["feedback", "score"]) -> list[DatedPair]:
    # A poster without visual tokens cannot be a training example; the night refuses such ones, old rows may hold them. Of one
    # answer drawn twice the model can prefer neither: its margin is 0 whatever it learns.
    rows = [
        row
        for row in rows
        if row["chosen_tokens"] and row["rejected_tokens"] and row["chosen_tokens"] != row["rejected_tokens"]
    ]
    prompts = [prompt_of(row["prompt"]) for row in rows]
    readable = [(row, prompt) for row, prompt in zip(rows, prompts, strict=True) if prompt is not None]
    mean = sum(row["weight"] for row, _ in readable) / len(readable) if readable else 1.0
    return [
        DatedPair(
            PreferencePair(
                pair_id=pair_id(row["chosen"], row["rejected"], source),
                user_id=row["user_id"],
                item_id=row["item_id"],
                prompt=prompt,
                alpha=row["alpha"],
                seed=row["seed"],
                chosen_poster_id=row["chosen"],
                rejected_poster_id=row["rejected"],
                chosen_tokens=tuple(row["chosen_tokens"]),
                rejected_tokens=tuple(row["rejected_tokens"]),
                source=source,
                weight=round(row["weight"] / mean, 6),
            ),
            row["decided_at"],
        )
        for row, prompt in readable
    ]
