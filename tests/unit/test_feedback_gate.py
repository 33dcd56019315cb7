"""The gate and the split: nothing passes because it was not looked at, nobody is on both sides."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.feedback import gate, snapshot, split
from generator.feedback.pairs import DatedPair, pair_id
from generator.feedback.split import SplitPairs
from schemas.errors import Refused
from schemas.preferences import PreferencePair, PromptSnapshot
from schemas.settings import RetrainSettings

GOOD = {"accuracy": 0.8, "margin": 0.3, "kl": 1.0, "cs_drop": 0.0, "cis_drop": -2.0}
PROMPT = PromptSnapshot(
    history_titles=("a",), history_tokens=((1,),), title="t", description="d", reference_tokens=(2,)
)
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def dated(user: str, n: int = 0, source: str = "feedback", at: datetime = NOON) -> DatedPair:
    chosen, rejected = f"{user}-{n}-a", f"{user}-{n}-b"
    pair = PreferencePair(
        pair_id=pair_id(chosen, rejected, source),
        user_id=user,
        item_id=f"i{n}",
        prompt=PROMPT,
        alpha=0.5,
        seed=1,
        chosen_poster_id=chosen,
        rejected_poster_id=rejected,
        chosen_tokens=(1, 2),
        rejected_tokens=(3,),
        source=source,
        weight=1.0,
    )
    return DatedPair(pair, at)


def test_a_better_challenger_passes_with_a_line_per_check() -> None:
    verdict = gate.decide(GOOD, RetrainSettings())
    assert verdict.passed
    assert [reason.split()[1] for reason in verdict.reasons] == [check.metric for check in gate.CHECKS]
    assert verdict.refusal == ""


@pytest.mark.parametrize("metric", GOOD)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_missing_or_mad_metric_refuses_whichever_it_is(metric: str, value: float | None) -> None:
    verdict = gate.decide({**GOOD, metric: value}, RetrainSettings())
    assert not verdict.passed
    assert metric in verdict.refusal
    assert not gate.decide({k: v for k, v in GOOD.items() if k != metric}, RetrainSettings()).passed


@pytest.mark.parametrize("check", gate.CHECKS, ids=lambda check: check.metric)
def test_a_threshold_that_is_not_set_refuses_and_names_the_setting(check: gate.Check) -> None:
    verdict = gate.decide(GOOD, RetrainSettings.model_validate({check.setting: None}))
    assert not verdict.passed
    assert f"retrain.{check.setting}" in verdict.refusal


def test_an_equal_challenger_is_not_better() -> None:
    verdict = gate.decide(
        {"accuracy": 0.0, "margin": 0.0, "kl": 0.0, "cs_drop": 0.0, "cis_drop": 0.0}, RetrainSettings()
    )
    assert not verdict.passed
    assert "margin 0 nats, must be more than 0" in verdict.refusal


def test_no_checks_is_no_pass() -> None:
    assert not gate.decide(GOOD, RetrainSettings(), checks=()).passed


@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=40), st.floats(0, 1))
def test_users_are_on_one_side_and_every_pair_is_somewhere(users: set[str], share: float) -> None:
    pairs = [dated(user, n, at=NOON + timedelta(hours=n)) for user in users for n in range(3)]
    divided = split.divide(pairs, share)
    split.check_leaks(divided)
    assert sorted(d.pair.pair_id for _, d in divided.each()) == sorted(d.pair.pair_id for d in pairs)
    trained = [d.decided_at for d in divided.train]
    assert all(d.decided_at > max(trained) for d in divided.future)


def test_held_out_users_stay_held_out_and_their_share_is_as_asked() -> None:
    users = [f"user-{n}" for n in range(2000)]
    at_20 = {user for user in users if split.is_held_out(user, 0.2)}
    assert 0.17 < len(at_20) / len(users) < 0.23
    assert at_20 < {user for user in users if split.is_held_out(user, 0.3)}


def test_leaks_are_named() -> None:
    with pytest.raises(Refused, match="user u is both"):
        split.check_leaks(SplitPairs(train=(dated("u", 0),), holdout=(dated("u", 1),)))
    with pytest.raises(Refused, match="twice"):
        split.check_leaks(SplitPairs(train=(dated("u"),), future=(dated("u"),)))
    other = dated("v").pair.model_copy(update={"rejected_poster_id": "u-0-a"})
    with pytest.raises(Refused, match="poster u-0-a"):
        split.check_leaks(SplitPairs(train=(dated("u"),), holdout=(DatedPair(other, NOON),)))


def test_too_little_one_user_and_nothing_to_judge_by_are_refused_with_counts() -> None:
    with pytest.raises(Refused, match="0 training pairs of 0 users"):
        split.check_enough(SplitPairs(), 1, 1)
    many = tuple(dated("u", n) for n in range(9))
    with pytest.raises(Refused, match=r"9 training pairs.*min_pairs is 10"):
        split.check_enough(SplitPairs(many), 10, 1)
    with pytest.raises(Refused, match="one user"):
        split.check_enough(SplitPairs(many), 5, 1)
    two = (*many, dated("w"))
    with pytest.raises(Refused, match="too little to judge by"):
        split.check_enough(SplitPairs(two, holdout=(dated("x", source="score"),)), 5, 1)
    split.check_enough(SplitPairs(two, holdout=(dated("x"),)), 5, 1)
    with pytest.raises(Refused, match="gate_min_pairs is 2"):
        split.check_enough(SplitPairs(two, holdout=(dated("x"),)), 5, 2)


def test_a_snapshot_is_named_by_its_content_and_refused_when_altered() -> None:
    pairs = split.divide([dated(f"u{n}") for n in range(20)], 0.2)
    body = snapshot.encode(pairs)
    assert snapshot.encode(SplitPairs(*(each[::-1] for each in pairs))) == body
    assert [json.loads(line)["split"] for line in body.splitlines()].count("holdout") == len(pairs.holdout) > 0
    name = snapshot.snapshot_of(body)
    assert snapshot.decode(body, name).pairs == pairs
    assert not {p.user_id for p in pairs.select("train")} & {p.user_id for p in pairs.select("holdout")}
    with pytest.raises(Refused, match="altered"):
        snapshot.decode(body.replace(b'"weight":1.0', b'"weight":2.0', 1), name)
