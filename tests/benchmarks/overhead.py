"""Processor time that is not the model's, per poster: the release before over today's.

Both nights draw the same tasks with the same answers and pictures, which come from memory, into a database and a bucket of their
own. What is compared lies between the plan and the manifest: reading tasks and features, judging, composing, storing, rows.
"""

from __future__ import annotations

import time

from generator.nightly.ledger import Ledger
from generator.nightly.pictures import picture_seed
from generator.serving.api import Picture, PictureRequest
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas import faultpoints
from schemas.settings import Settings
from schemas.tables import NightTask
from tests.benchmarks.demo_night import USERS, DemoNight, beside, demo_night, run_night, write_users
from tests.benchmarks.per_poster import Kept, KeptPicture, PerPosterNight
from tests.benchmarks.table import Figure, Options, say


class _Planned(Exception):
    """The plan is written; the night goes no further."""


def rows(options: Options) -> list[Figure]:
    """CPU per poster of both ways."""
    night = demo_night()
    say("  the same night with recorded answers, today's way")
    now, posters_now = today(night)
    say("  the same, a file per poster and user")
    before, posters_before = per_poster(night)
    then, ours = before / posters_before, now / posters_now
    detail = (
        f"{1e3 * then:.1f} ms over {1e3 * ours:.1f} ms of the night's process, answers and pictures from memory; {posters_before} and "
        f"{posters_now} posters of {len(night.tasks)} tasks; the release before withheld posters on top of that, which is not counted"
    )
    return [
        Figure("overhead", "CPU that is not model time, per poster: before over now", then / ours, ">= 1.7", detail)
    ]


def world(night: DemoNight, name: str) -> Settings:
    """The night's users in a database and bucket of their own."""
    settings = beside(night.settings, name)
    write_users(settings, night.data, list(night.data.tastes)[:USERS])
    return settings


def today(night: DemoNight) -> tuple[float, int]:
    """Processor seconds between plan and manifest, and posters kept."""
    settings = world(night, "bench-now")
    marks: dict[str, float] = {}

    def mark(point: str) -> None:
        marks.setdefault(point, time.process_time())

    faultpoints.handler = mark
    try:
        run_night(settings, night.model, night.data.night, night.servers)
    finally:
        faultpoints.handler = None
    engine = connect(settings.database)
    run = Ledger(engine).get_run(night.data.night)
    engine.dispose()
    assert run is not None
    return marks["judged"] - marks["planned"], run.figures["posters_drawn"]


def per_poster(night: DemoNight) -> tuple[float, int]:
    """The same of the release before."""
    settings = world(night, "bench-before")
    plan_only(settings, night)
    engine = connect(settings.database)
    try:
        with lead(engine, "night") as lease:
            ledger = Ledger(engine, lease)
            drawn = PerPosterNight(settings, ledger, Store(settings.s3), night.model, kept_pictures(night))
            start = time.process_time()
            posters = drawn.run(night.run_id)
            return time.process_time() - start, posters
    finally:
        engine.dispose()


def plan_only(settings: Settings, night: DemoNight) -> None:
    """A night that ends when its plan is written."""

    def stop(point: str) -> None:
        if point == "planned":
            raise _Planned

    faultpoints.handler = stop
    try:
        run_night(settings, night.model, night.data.night, night.servers)
    except _Planned:
        pass
    finally:
        faultpoints.handler = None


def kept_pictures(night: DemoNight) -> Kept:
    """What each task of the real night kept, with the pictures that the model drew."""
    drawn = {(one.task.user_id, one.task.item_id): one.answers for one in night.tasks}
    version = night.model.drawing_version

    def kept(task: NightTask) -> list[KeptPicture]:
        found: list[tuple[int, tuple[int, ...], Picture]] = []
        for answer in drawn[task.user_id, task.item_id].answers:
            if answer.variant >= 0:
                request = PictureRequest(answer.codes, picture_seed(version, answer.codes))
                picture = night.model.draw_pictures([request])[0]
                found.append((answer.variant, answer.codes, picture))
        return [(codes, one.image, one.embedding) for _, codes, one in sorted(found, key=lambda row: row[0])]

    return kept
