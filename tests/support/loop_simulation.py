"""Arms of the simulation on codes alone, with the product's own policies and click model.

python -m tests.support.loop_simulation --seeds 8 --effects 0.4 0.2 0
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from generator.feedback.clicks.examples import Showings, build
from generator.feedback.clicks.fit import fit
from generator.feedback.clicks.judge import judge
from generator.feedback.clicks.simulation import (
    Chooser,
    Shown,
    World,
    distinct_answers,
    oracle,
    run,
)
from generator.feedback.clicks.simulation import build as build_world
from generator.nightly.policies import ChoicePolicy, ModelPolicy, reader_shares
from generator.nightly.reward_policy import RewardPolicy
from schemas.settings import NightSettings

LAST_NIGHTS = 3
FITS_AFTER = (2, 4, 6)
MAX_WEIGHT = 5.0


def greedy(answers: Sequence, history: object, seed: int) -> list[Shown]:
    """The model's own favourite and nothing else."""
    return [Shown(0, 1.0, 1.0)]


def chooser_of(policy: ChoicePolicy, settings: NightSettings) -> Chooser:
    """What readers may show under a policy of the night."""

    def choose(answers: Sequence, history: np.ndarray, seed: int) -> list[Shown]:
        choices = policy.choose(answers, settings.variants, seed, history)
        shares = reader_shares(choices, settings)
        return [Shown(one.index, one.probability, share) for one, share in zip(choices, shares, strict=True)]

    return choose


@dataclass
class Learner:
    """The product's click model, fitted and judged; `verdicts` tells of each fit whether it passed."""

    settings: NightSettings = field(default_factory=lambda: NightSettings(policy="reward"))
    verdicts: list[bool] = field(default_factory=list)
    always: bool = False

    def __call__(self, showings: Showings) -> Chooser | None:
        examples = build(showings, MAX_WEIGHT)
        judged = judge(examples)
        self.verdicts.append(bool(judged and judged.passed))
        if judged is None or not (judged.passed or self.always):
            return None
        model = fit(examples, np.array([judged.intercept, judged.slope]), "world")
        return chooser_of(RewardPolicy(model, len(self.verdicts), ModelPolicy()), self.settings)


def arms(world: World, *, always: bool = False) -> dict[str, object]:
    """Mean true click rate in the last nights, by arm."""
    days = build_world(world)
    learner = Learner(always=always)
    found = {
        "frozen": run(days, greedy),
        "model": run(days, chooser_of(ModelPolicy(), NightSettings(policy="model"))),
        "loop": run(days, chooser_of(ModelPolicy(), NightSettings(policy="model")), learner, FITS_AFTER),
    }
    rates = {name: float(arm.rates[-LAST_NIGHTS:].mean()) for name, arm in found.items()}
    rates["oracle"] = float(oracle(days)[-LAST_NIGHTS:].mean())
    best = [max(t.truth[look] for look in t.looks) for day in days[-LAST_NIGHTS:] for t in day]
    rates["best drawn"] = float(np.mean(best))
    return {
        "rates": rates,
        "passed": learner.verdicts,
        "distinct": distinct_answers(days[:1]),
        "explored": found["loop"].explored_share,
    }


def main() -> None:
    """Print the lifts over the model's own favourite, paired by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--effects", type=float, nargs="+", default=[0.4, 0.2, 0.0])
    parser.add_argument("--always", action="store_true", help="use click models that were refused, too")
    given = parser.parse_args()
    for effect in given.effects:
        results = [arms(World(seed, effect), always=given.always) for seed in range(given.seeds)]
        line = {"effect": effect, "frozen": np.mean([r["rates"]["frozen"] for r in results]).round(4)}
        for arm in ("model", "loop", "best drawn", "oracle"):
            lifts = np.array([r["rates"][arm] / r["rates"]["frozen"] - 1 for r in results])
            error = 1.96 * lifts.std(ddof=1) / np.sqrt(len(lifts)) if len(lifts) > 1 else float("nan")
            line[arm] = f"{lifts.mean():+.1%} ± {error:.1%}"
        line["passed"] = np.mean([r["passed"] for r in results], axis=0).round(2).tolist()
        line["distinct"] = float(np.mean([r["distinct"] for r in results]).round(2))
        line["explored"] = float(np.mean([r["explored"] for r in results]).round(3))
        print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
