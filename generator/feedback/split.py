"""The split into pairs that train and pairs that judge: held-out users, and the newest evidence.

train    pairs of other users, up to the time cut
holdout  all pairs of held-out users: the gate's; no user of theirs is ever trained on, in any week
future   other users' pairs past the cut: reported beside the gate's figures (does it hold next week?), neither trained nor gating
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from generator.feedback.dated_pair import DatedPair
from generator.feedback.outlook import Outlook
from schemas.errors import Refused
from schemas.hashing import unit_interval
from schemas.preferences import PreferencePair

Split = Literal["train", "holdout", "future"]
SPLITS: tuple[Split, ...] = get_args(Split)
FUTURE_SHARE = 0.1


class SplitPairs(NamedTuple):
    """The pairs by the part they play."""

    train: tuple[DatedPair, ...] = ()
    holdout: tuple[DatedPair, ...] = ()
    future: tuple[DatedPair, ...] = ()

    def select(self, split: Split, source: str | None = None) -> list[PreferencePair]:
        """The pairs of a split, in their order, of one source if named."""
        return [dated.pair for dated in getattr(self, split) if source in (None, dated.pair.source)]

    def each(self) -> Iterator[tuple[Split, DatedPair]]:
        """All pairs with their split."""
        for split in SPLITS:
            for dated in getattr(self, split):
                yield split, dated


def is_held_out(user_id: str, share: float) -> bool:
    """Whether no adapter may train on a user: stable over weeks while the share does not shrink."""
    return unit_interval(f"holdout:{user_id}", bits=32) < share


def divide(pairs: Sequence[DatedPair], holdout_share: float) -> SplitPairs:
    """The pairs by split, each split ordered by pair id."""
    times = sorted(
        d.decided_at for d in pairs if d.pair.source == "feedback" and not is_held_out(d.pair.user_id, holdout_share)
    )
    cut = times[max(0, round(len(times) * (1 - FUTURE_SHARE)) - 1)] if times else None

    def split(dated: DatedPair) -> Split:
        if is_held_out(dated.pair.user_id, holdout_share):
            return "holdout"
        # Score-ranked pairs rest on no later evidence than the night itself.
        late = dated.pair.source == "feedback" and cut is not None and dated.decided_at > cut
        return "future" if late else "train"

    return group((split(dated), dated) for dated in pairs)


def select_judges(pairs: Sequence[PreferencePair], share: float, min_pairs: int, rotation: str) -> frozenset[str]:
    """The held-out users who judge one retraining.

    A share of those with pairs, others for another `rotation`.

    More of them where they have fewer than `min_pairs` pairs. So that the gate is not passed by what suits the same users week
    after week.
    """
    counts = Counter(pair.user_id for pair in pairs)
    order = sorted(counts, key=lambda user: (unit_interval(f"judge:{rotation}:{user}"), user))
    wanted, found, have = math.ceil(share * len(order)), 0, 0
    for user in order:
        if found >= wanted and have >= min_pairs:
            break
        found, have = found + 1, have + counts[user]
    return frozenset(order[:found])


def group(pairs: Iterable[tuple[Split, DatedPair]]) -> SplitPairs:
    """Pairs with their split, by split, each split ordered by pair id."""
    found: dict[Split, list[DatedPair]] = {split: [] for split in SPLITS}
    for split, dated in pairs:
        found[split].append(dated)
    return SplitPairs(*(tuple(sorted(found[split], key=lambda d: d.pair.pair_id)) for split in SPLITS))


def check_leaks(pairs: SplitPairs) -> None:
    """Refuse when what trains could have been seen by what judges.

    Raises:
        Refused: a held-out user, a pair or a poster is in two splits that must not share it.
    """
    users: dict[str, bool] = {}
    seen: set[str] = set()
    posters: dict[str, bool] = {}
    for split, dated in pairs.each():
        held, pair = split == "holdout", dated.pair
        if users.setdefault(pair.user_id, held) != held:
            raise Refused(f"leak: user {pair.user_id} is both held out and trained on")
        if pair.pair_id in seen:
            raise Refused(f"leak: pair {pair.pair_id} is in the snapshot twice")
        seen.add(pair.pair_id)
        for poster in (pair.chosen_poster_id, pair.rejected_poster_id):
            if posters.setdefault(poster, held) != held:
                raise Refused(f"leak: poster {poster} is both held out and trained on")


def check_enough(pairs: SplitPairs, min_pairs: int, min_judged: int, outlook: Outlook) -> None:
    """Refuse to train on too little, on one user's taste, or what nothing could judge.

    Raises:
        Refused: with the counts, and after how many days there will be enough.
    """
    train, judged = pairs.select("train"), pairs.select("holdout", "feedback")
    users = {pair.user_id for pair in train}
    found = f"{len(train)} training pairs of {len(users)} users, {len(judged)} held-out feedback pairs"
    if len(train) < min_pairs:
        raise Refused(
            f"too little feedback: {found}; retrain.min_pairs is {min_pairs}; {outlook.words(len(train), min_pairs)}; nothing was "
            "trained"
        )
    if len(users) < 2:
        raise Refused(f"feedback of one user only: {found}; nothing was trained")
    if len(judged) < min_judged:
        raise Refused(
            f"too little to judge by: {found}; retrain.gate_min_pairs is {min_judged}: more feedback or a larger "
            f"retrain.holdout_share is needed; {outlook.words(len(judged), min_judged)}; nothing was trained"
        )
