"""What a night draws, and what it costs, against the published way."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from generator.nightly.frozen_prompt import FrozenPrompt
from generator.nightly.policies import distinct
from tests.benchmarks.demo_night import (
    USERS,
    DemoNight,
    Drawn,
    demo_night,
    next_night,
    read_lines,
    recommend_one_more,
)
from tests.benchmarks.published import METRICS, PublishedWay, Scorer
from tests.benchmarks.simulated import Asked, Novelty, simulate
from tests.benchmarks.table import Figure, Options, say

PUBLISHED_ALPHAS = (0.0, 0.3, 0.6, 0.9)
MORE_USERS = 10
SIMULATIONS = 5


def rows(options: Options) -> list[Figure]:
    """Processor time per task over the published way's; pictures per poster."""
    night = demo_night()
    sample = sampled(night.tasks, 32 if options.full else 10)
    return [*processor_time(night, sample), *pictures(night), one_new_task(night)]


def one_new_task(night: DemoNight) -> Figure:
    """What one new task costs a night, over a task of the first night; CPU seconds."""
    say("  a night with nothing new, and one with one new task")
    nothing = next_night(night, 1, tasks=0)
    recommend_one_more(night)
    one = next_night(night, 2, tasks=1)
    task = (night.process_seconds + night.triton.total()) / len(night.tasks)
    detail = (
        f"{1e3 * (one - nothing):.0f} ms beyond a night with nothing new ({1e3 * nothing:.0f} ms) over {1e3 * task:.0f} ms; "
        "Triton's included"
    )
    return Figure(
        "drawing",
        "a night with one new task, beyond one with none, over a task",
        (one - nothing) / task,
        "<= 3",
        detail,
    )


def sampled(tasks: Sequence[Drawn], count: int) -> list[Drawn]:
    """Tasks at even distances."""
    return [tasks[int(place)] for place in np.linspace(0, len(tasks) - 1, min(count, len(tasks)))]


def processor_time(night: DemoNight, sample: Sequence[Drawn]) -> list[Figure]:
    """CPU seconds per task of the published way over ours.

    Raises:
        SystemExit: an answer that both ways should give alike differs in more than one of a hundred tasks.
    """
    say(f"  the published way, {len(sample)} tasks")
    way = PublishedWay(night.repository)
    looks = [way.look(FrozenPrompt.model_validate(one.task.prompt)) for one in sample]
    way.draw(looks[0], PUBLISHED_ALPHAS[:1], 0)  # what a first call sets up is nobody's cost
    start = time.process_time()
    answers = [way.draw(look, PUBLISHED_ALPHAS, one.task.seed) for look, one in zip(looks, sample, strict=True)]
    seconds = (time.process_time() - start) / len(sample)
    seconds += METRICS * len(PUBLISHED_ALPHAS) * scorer_seconds(night) / len(night.tasks)
    equal = same_answers(way, sample)
    tasks = len(night.tasks)
    ours = (night.process_seconds + night.triton.total()) / tasks
    models = ", ".join(f"{name} {1e3 * spent / tasks:.0f}" for name, spent in night.triton.most_common() if spent > 0)
    before = float(np.mean([len(set(codes)) for codes in answers]))
    now = distinct_answers(night)
    detail = (
        f"published {1e3 * seconds:.0f} ms of processor time per task ({len(sample)} tasks, in process, the served ONNX graphs), "
        f"ours {1e3 * ours:.0f} ms ({tasks} tasks: the night's process {1e3 * night.process_seconds / tasks:.0f}, plan and "
        f"publishing included; Triton's {models}); both ways give the same codes for {equal} of their answers at one seed"
    )
    return [
        Figure(
            "drawing", "CPU time per task: the published way over ours with 8 answers", seconds / ours, ">= 3.5", detail
        ),
        Figure(
            "drawing",
            "distinct answers per task over the published way's four",
            now / before,
            ">= 1",
            f"{now:.2f} of {night.settings.night.answers} over {before:.2f} of {len(PUBLISHED_ALPHAS)}",
        ),
    ]


def scorer_seconds(night: DemoNight) -> float:
    """Processor seconds of loading the scorer."""
    start = time.process_time()
    Scorer(night.repository)
    return time.process_time() - start


def same_answers(way: PublishedWay, sample: Sequence[Drawn]) -> str:
    """How many of the served answers the published way gives as well, at the same seed.

    It is given the pictures, and samples each answer alone.

    Raises:
        SystemExit: more than one of a hundred differs, so that the two ways do not draw the same thing.
    """
    alike = total = 0
    for one in sample:
        look = way.look(FrozenPrompt.model_validate(one.task.prompt))
        for number, answer in enumerate(one.answers.answers):
            codes = way.codes(look, answer.alpha, one.task.seed, number, answer.temperature)
            alike, total = alike + (codes == answer.codes), total + 1
    if total - alike > total // 100:
        raise SystemExit(
            f"the published way gives other codes for {total - alike} of {total} answers at the same seeds"
        )
    return f"{alike} of {total}"


def distinct_answers(night: DemoNight) -> float:
    """Mean number of distinct answers of a task."""
    return float(np.mean([len(distinct(one.answers.answers)) for one in night.tasks]))


def pictures(night: DemoNight) -> list[Figure]:
    """Pictures drawn per poster in the manifest: of this night, and simulated for more users."""
    drawn, posters = night.session["pictures_drawn"], night.figures["posters_drawn"]
    asked = [as_asked(one) for one in night.tasks]
    targets = targets_of(night, USERS * MORE_USERS)
    own = dict(list(targets.items())[:USERS])
    novelty = Novelty.fitted(asked)
    few = [simulate(own, asked, novelty, seed).per_poster for seed in range(SIMULATIONS)]
    many = [simulate(targets, asked, novelty, seed).per_poster for seed in range(SIMULATIONS)]
    answers = f"{distinct_answers(night):.2f} distinct answers per task"
    return [
        Figure(
            "drawing",
            f"pictures drawn per poster in the manifest, the demo's {USERS} users",
            drawn / max(1, posters),
            "<= 1",
            f"{drawn} pictures for {posters} posters of {len(night.tasks)} tasks; {answers}",
        ),
        Figure(
            "drawing",
            f"the same, {MORE_USERS} times the users, simulated",
            float(np.mean(many)),
            "<= 0.5",
            f"{len(targets)} users of MovieLens with their own recommendations; answers by the statistics of the night's (Pitman's "
            f"formula, strength {novelty.strength:g}, discount {novelty.discount:g}), no UNet; the same simulation gives "
            f"{float(np.mean(few)):.2f} for the {USERS} users; {answers}",
        ),
    ]


def as_asked(one: Drawn) -> Asked:
    """What a drawn task asked for and kept."""
    chosen = tuple(answer.codes for answer in one.answers.answers if answer.chosen_with > 0)
    return Asked(one.task.item_id, chosen, sum(answer.variant >= 0 for answer in one.answers.answers))


def targets_of(night: DemoNight, users: int) -> dict[str, list[str]]:
    """The items that so many users would be drawn, as the plan takes them."""
    wanted = list(night.data.tastes)[:users]
    recommended = {line["user_id"]: line["item_ids"] for line in read_lines(night.data.recommendations)}
    return {user: recommended[user][: night.settings.night.targets_per_user] for user in wanted}
