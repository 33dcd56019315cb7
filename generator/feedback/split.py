"""Which pairs train and which judge: held-out users by a stable hash, and the newest evidence kept back.

train    pairs of other users, up to the time cut
holdout  all pairs of held-out users: the gate's; no user of theirs is ever trained on, in any week
future   other users' pairs past the cut: reported beside the gate's figures (does it hold next week?), neither trained nor gating
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from generator.feedback.pairs import Decided
from schemas.errors import Refused
from schemas.hashing import unit_interval

Split = Literal["train", "holdout", "future"]
FUTURE_SHARE = 0.1


class Example(NamedTuple):
    """A pair and the part it plays."""

    split: Split
    decided: Decided


def is_held_out(user_id: str, share: float) -> bool:
    """Stable over weeks and processes: a user once held out stays so while the share does not shrink."""
    return unit_interval(f"holdout:{user_id}", bits=32) < share


def divide(pairs: Sequence[Decided], holdout_share: float) -> list[Example]:
    """Each pair with its split, ordered by pair id."""
    times = sorted(
        d.decided_at for d in pairs if d.pair.source == "feedback" and not is_held_out(d.pair.user_id, holdout_share)
    )
    cut = times[max(0, round(len(times) * (1 - FUTURE_SHARE)) - 1)] if times else None

    def split(decided: Decided) -> Split:
        if is_held_out(decided.pair.user_id, holdout_share):
            return "holdout"
        # Score-ranked pairs rest on no later evidence than the night itself.
        late = decided.pair.source == "feedback" and cut is not None and decided.decided_at > cut
        return "future" if late else "train"

    return sorted((Example(split(d), d) for d in pairs), key=lambda e: e.decided.pair.pair_id)


def check_leaks(examples: Iterable[Example]) -> None:
    """Refuse when what trains could have been seen by what judges.

    Raises:
        Refused: a held-out user, a pair or a poster is in two splits that must not share it.
    """
    users: dict[str, bool] = {}
    pairs: set[str] = set()
    posters: dict[str, bool] = {}
    for split, (pair, _) in ((e.split, (e.decided.pair, e.decided.decided_at)) for e in examples):
        held = split == "holdout"
        if users.setdefault(pair.user_id, held) != held:
            raise Refused(f"leak: user {pair.user_id} is both held out and trained on")
        if pair.pair_id in pairs:
            raise Refused(f"leak: pair {pair.pair_id} is in the snapshot twice")
        pairs.add(pair.pair_id)
        for poster in (pair.chosen_poster_id, pair.rejected_poster_id):
            if posters.setdefault(poster, held) != held:
                raise Refused(f"leak: poster {poster} is both held out and trained on")


def check_enough(examples: Sequence[Example], min_pairs: int, min_judged: int) -> None:
    """Refuse to train on too little, on one user's taste, or what nothing could judge.

    Raises:
        Refused: with the counts.
    """
    train = [e.decided.pair for e in examples if e.split == "train"]
    judged = [e.decided.pair for e in examples if e.split == "holdout" and e.decided.pair.source == "feedback"]
    users = {pair.user_id for pair in train}
    found = f"{len(train)} training pairs of {len(users)} users, {len(judged)} held-out feedback pairs"
    if len(train) < min_pairs:
        raise Refused(f"too little feedback: {found}; retrain.min_pairs is {min_pairs}; nothing was trained")
    if len(users) < 2:
        raise Refused(f"feedback of one user only: {found}; nothing was trained")
    if len(judged) < min_judged:
        raise Refused(
            f"too little to judge by: {found}; retrain.gate_min_pairs is {min_judged}: more feedback or a larger "
            "retrain.holdout_share is needed; nothing was trained"
        )
