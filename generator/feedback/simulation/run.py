"""A simulation from its plan to its figures.

Arms that have no result yet are run, then everything is summed up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.feedback.intervals import Estimate, finite
from generator.feedback.simulation.arms import ARMS, BASELINE, ArmResult, retrain_nights, run_arm
from generator.feedback.simulation.plot import plot
from generator.feedback.simulation.store import Key, Plan, Store, write_whole
from generator.feedback.simulation.summary import LAST_NIGHTS, ArmFigures, cost_of_exploring, summarise
from generator.feedback.simulation.tables import table
from generator.feedback.simulation.world import Draws, World
from schemas.errors import InputError
from schemas.settings import Settings

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to."""

    figures: dict[float, list[ArmFigures]]
    exploring: dict[float, Estimate | None]
    folder: Path


def simulate(plan: Plan, folder: Path, settings: Settings, echo: Echo) -> Outcome:
    """Run what has no result yet, and write figures.json, table.md and plot.svg.

    Raises:
        InputError: the folder holds another simulation, or options that do not fit together.
    """
    _check(plan)
    store = Store(folder, plan)
    keys = list(plan.keys())
    missing = [key for key in keys if store.get(key) is None]
    if len(missing) < len(keys):
        echo(f"{len(keys) - len(missing)} of {len(keys)} runs are there already")
    runner = _Runner(plan, settings)
    for number, key in enumerate(missing, 1):
        result = runner.run(key)
        store.put(key, result)
        echo(f"[{number}/{len(missing)}] {_words(key, result)}")
    return write(plan, store, keys)


def write(plan: Plan, store: Store, keys: list[Key]) -> Outcome:
    """Sum up the results of `keys`."""
    results: dict[float, dict[str, dict[int, ArmResult]]] = {}
    for key in keys:
        if (found := store.get(key)) is not None:
            results.setdefault(key.strength, {}).setdefault(key.arm, {})[key.seed] = found
    figures = {strength: summarise(arms) for strength, arms in results.items()}
    exploring = {strength: cost_of_exploring(arms) for strength, arms in results.items()}
    costs = {f"{strength:g}": cost for strength, cost in exploring.items()}
    document = {
        "what": what(plan),
        "plan": json.loads((store.folder / "plan.json").read_text(encoding="utf-8"))
        | {"seeds": plan.seeds, "strengths": plan.strengths, "arms": plan.arms},
        "arms": {name: ARMS[name] for name in plan.arms},
        "cpu_seconds": round(
            sum(one.cpu_seconds for arms in results.values() for s in arms.values() for one in s.values())
        ),
        "strengths": {f"{strength:g}": [one.as_json() for one in rows] for strength, rows in figures.items()},
        "cost_of_exploring": {name: cost and cost.__dict__ for name, cost in costs.items()},
    }
    write_whole(store.folder / "figures.json", json.dumps(finite(document), indent=1) + "\n")
    write_whole(store.folder / "table.md", f"{what(plan)}\n\n{table(figures, exploring)}")
    write_whole(store.folder / "plot.svg", plot(figures, what(plan)))
    return Outcome(figures, exploring, store.folder)


def what(plan: Plan) -> str:
    """What the figures are of, in one line."""
    return (
        f"Simulated ({plan.mode}): {plan.users} users, {plan.showings} showings a night, {plan.nights} nights, retrains after "
        f"nights {', '.join(str(night + 1) for night in retrain_nights(plan.nights, plan.retrains)) or 'none'}; lift over "
        f"{BASELINE} in the last {LAST_NIGHTS} nights, {len(plan.seeds)} {'seed' if len(plan.seeds) == 1 else 'seeds'}."
    )


class _Runner:
    """Runs arms; a world's random numbers are made once for all of its arms."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._plan, self._settings = plan, settings
        self._draws: Draws | None = None

    def run(self, key: Key) -> ArmResult:
        draws = self._world(key)
        return run_arm(key.arm, draws, retrain_nights(self._plan.nights, self._plan.retrains), self._settings)

    def _world(self, key: Key) -> Draws:
        night = self._settings.night
        world = World(
            seed=key.seed,
            strength=key.strength,
            users=self._plan.users,
            items=self._plan.items,
            nights=self._plan.nights,
            showings=self._plan.showings,
            history=night.history_length,
            answers=night.answers,
            temperatures=night.temperatures,
        )
        if self._draws is None or self._draws.world != world:
            self._draws = Draws(world)
        return self._draws


def deciding(settings: Settings) -> dict[str, Any]:
    """The settings that decide what is shown and learned, as a plan keeps them."""
    night = {"history_length", "answers", "temperatures", "variants", "exploration", "reward_exploration"}
    retrain = {"min_pairs", "holdout_share", "reward_certainty", "beta", "label_smoothing", "off_policy_tasks"}
    gates = {name for name in type(settings.retrain).model_fields if name.startswith("gate_")}
    return {
        "night": settings.night.model_dump(mode="json", include=night),
        "history": settings.history.model_dump(mode="json", include={"drawn_share"}),
        "clicks": settings.clicks.model_dump(mode="json", include={"max_weight"}),
        "retrain": settings.retrain.model_dump(
            mode="json", include=retrain | gates | {"off_policy_min_samples", "off_policy_min_clicks"}
        ),
    }


def _check(plan: Plan) -> None:
    unknown = [name for name in plan.arms if name not in ARMS]
    if unknown:
        raise InputError(f"--arm {unknown[0]}: there is no such arm; there are {', '.join(ARMS)}")
    if plan.retrains >= plan.nights:
        raise InputError(
            f"--retrains {plan.retrains}: fewer than --nights {plan.nights} are needed, each after a night of its own"
        )
    if plan.showings > plan.items:
        raise InputError(f"--showings {plan.showings}: a user is shown different items, and --items is {plan.items}")


def _words(key: Key, result: ArmResult) -> str:
    rate = 1000 * sum(result.rates[-LAST_NIGHTS:]) / len(result.rates[-LAST_NIGHTS:])
    return f"strength {key.strength:g}, seed {key.seed}, {key.arm}: {rate:.1f} clicks per 1,000 ({result.cpu_seconds:.1f} CPU s)"
