"""The demo's page: self-contained HTML of what the loop did, read back from Postgres and S3."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from deploy.local.demo.data import DemoData
from deploy.local.demo.steps import Step
from generator.nightly.figures import history_words
from schemas.connections import postgres_options, s3_client, s3_options
from schemas.settings import Settings
from schemas.tables import (
    Interaction,
    Item,
    ModelEvent,
    ModelVersion,
    NightRun,
    NightTask,
    Poster,
    PosterFeedback,
    PreferenceSnapshot,
    UserHistory,
)

SHOWN_USERS = 6
SHOWN_TARGETS = 3
SHOWN_PAIRS = 8
THUMBNAIL_WIDTH = 272

SOURCES = (
    "Clicks: MovieLens-100k (GroupLens; F. M. Harper and J. A. Konstan, 2015), fetched at set-up, not redistributed. "
    "Icon art: Noto Emoji (Google, Apache-2.0), Twemoji (CC BY 4.0), Fluent Emoji (Microsoft, MIT), through the Iconify packages; "
    "labels: emojibase (MIT). Model: Pigeon (Xu et al., WWW 2025) on LaVIT (Jin et al., ICLR 2024), nano preset trained by this project."
)


def write(
    path: Path,
    settings: Settings,
    data: DemoData,
    nights: Sequence[date],
    steps: Sequence[Step],
    simulator: str,
    simulation: Path,
) -> None:
    """Render the page to `path`.

    Args:
        path: of the page.
        settings: where Postgres and S3 are.
        data: the demo's input.
        nights: logical dates before and after the retrain.
        steps: what ran.
        simulator: the assumptions about the simulated users, in words.
        simulation: folder of `pigeon simulate`.
    """
    engine = create_engine(
        settings.database.url.get_secret_value(), connect_args=postgres_options(settings.database, "pigeon-demo")
    )
    images = _Thumbnails(settings, data)
    with Session(engine) as session:
        page = {
            "figures": _figures(session, nights[0]),
            "selection": "the users whose last five clicks agree most on one drawing style, the styles taken in turn",
            "users": _users(session, nights[0], data, images),
            "retrain": _retrain(session, steps),
            "simulation": (simulation / "plot.svg").read_text(encoding="utf-8"),
            "simulator": simulator,
            "steps": [asdict(step) for step in steps],
            "sources": SOURCES,
            **_before_after(session, nights, images),
        }
    engine.dispose()
    environment = Environment(
        loader=PackageLoader("deploy.local.demo", "."), autoescape=True, undefined=StrictUndefined
    )
    path.write_text(environment.get_template("page.html.j2").render(page), encoding="utf-8")


class _Thumbnails:
    """Pictures as data URIs, each fetched and shrunk once."""

    def __init__(self, settings: Settings, data: DemoData) -> None:
        self._bucket = settings.s3.bucket
        self._client = s3_client(**s3_options(settings.s3))
        self._folder = data.posters
        self._known: dict[str, str] = {}

    def own(self, item_id: str) -> str:
        """A film's own poster."""
        path = self._folder / f"{item_id}.png"
        return self._cached(str(path), path.read_bytes)

    def stored(self, key: str) -> str:
        """An object of the bucket."""

        def fetch() -> bytes:
            data: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            return data

        return self._cached(key, fetch)

    def _cached(self, name: str, read: Callable[[], bytes]) -> str:
        if name not in self._known:
            image = Image.open(io.BytesIO(read())).convert("RGB")
            image.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=80)
            self._known[name] = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        return self._known[name]


def _run_id(session: Session, night: date) -> str | None:
    return session.scalar(select(NightRun.run_id).where(NightRun.logical_date == night))


def _figures(session: Session, night: date) -> list[dict[str, Any]]:
    def count(table: Any, *conditions: Any) -> int:
        return session.scalar(select(func.count()).select_from(table).where(*conditions)) or 0

    run = _run_id(session, night)
    tasks = count(NightTask, NightTask.run_id == run)
    done = count(NightTask, NightTask.run_id == run, NightTask.status == "done")
    posters = count(Poster, Poster.run_id == run)
    # The ledger's own clock: what the tasks took each, not how long this command ran (a second run draws nothing).
    seconds = session.scalar(
        select(func.avg(NightTask.seconds)).where(NightTask.run_id == run, NightTask.status == "done")
    )
    return [
        {"name": "films in the catalogue", "value": f"{count(Item):,}"},
        {"name": "clicks through Kafka into Postgres", "value": f"{count(Interaction):,}"},
        {"name": "user histories", "value": f"{count(UserHistory):,}"},
        {"name": "tasks of the first night", "value": f"{tasks:,}"},
        {"name": "of them drawn", "value": f"{done:,}"},
        {"name": "posters kept", "value": f"{posters:,}"},
        {"name": "seconds that a task took, of several at once", "value": f"{seconds:.1f}" if seconds else "none"},
        {"name": "impressions shown", "value": f"{count(PosterFeedback, PosterFeedback.action == 'impression'):,}"},
        {"name": "of them clicked", "value": f"{count(PosterFeedback, PosterFeedback.action == 'click'):,}"},
    ]


def _users(session: Session, night: date, data: DemoData, images: _Thumbnails) -> list[dict[str, Any]]:
    run = _run_id(session, night)
    drawn_for = set(session.scalars(select(Poster.user_id).where(Poster.run_id == run)))
    users = []
    for user_id in [user for user in data.tastes if user in drawn_for][:SHOWN_USERS]:
        tasks = session.scalars(
            select(NightTask)
            .where(NightTask.run_id == run, NightTask.user_id == user_id, NightTask.status == "done")
            .order_by(NightTask.item_id)
            .limit(SHOWN_TARGETS)
        ).all()
        users.append(
            {
                "user_id": user_id,
                "taste": f"mostly {data.tastes[user_id]}",
                "history": [
                    {"title": image["title"], "image": images.own(image["item_id"])}
                    for image in tasks[0].prompt["history"]
                ],
                "targets": [
                    {
                        "title": task.prompt["reference"]["title"],
                        "own": images.own(task.item_id),
                        "posters": [
                            _poster(session, poster, images) for poster in _posters(session, run, user_id, task.item_id)
                        ],
                    }
                    for task in tasks
                ],
            }
        )
    return users


def _posters(session: Session, run: str | None, user_id: str, item_id: str) -> Sequence[Poster]:
    return session.scalars(
        select(Poster)
        .where(Poster.run_id == run, Poster.user_id == user_id, Poster.item_id == item_id)
        .order_by(Poster.variant)
    ).all()


def _poster(session: Session, poster: Poster, images: _Thumbnails) -> dict[str, Any]:
    actions = dict(
        session.execute(
            select(PosterFeedback.action, func.count())
            .where(PosterFeedback.poster_id == poster.poster_id)
            .group_by(PosterFeedback.action)
        )
        .tuples()
        .all()
    )
    return {
        "image": images.stored(poster.image_key),
        "alpha": poster.alpha,
        "cs": poster.cs,
        "cis": poster.cis_history,
        "impressions": actions.get("impression", 0),
        "clicks": actions.get("click", 0),
        "clicked": actions.get("click", 0) > 0,
        "withheld": poster.withheld,
    }


def _retrain(session: Session, steps: Sequence[Step]) -> dict[str, Any]:
    challenger = session.scalars(
        select(ModelVersion).where(ModelVersion.parent.is_not(None)).order_by(ModelVersion.number.desc()).limit(1)
    ).first()
    if challenger is None:
        missing = next((step.outcome for step in steps if step.command.startswith("pigeon retrain")), "it did not run")
        return {"sentence": f"The retrain made no model version. What is missing: {missing}", "gate": []}
    snapshot = session.get(PreferenceSnapshot, challenger.snapshot_id) if challenger.snapshot_id else None
    events = session.scalars(
        select(ModelEvent).where(ModelEvent.version == challenger.version).order_by(ModelEvent.event_id)
    ).all()
    pairs = (
        f"{snapshot.train_pairs} training and {snapshot.holdout_pairs} held-out pairs" if snapshot else "no snapshot"
    )
    story = "; ".join(f"{event.to_state}: {event.reason}" for event in events)
    return {
        "sentence": f"{challenger.version} was trained from {challenger.parent} by DPO on {pairs} and is now {challenger.state}. {story}",
        "gate": [
            {
                "passed": reason.startswith(("ok: ", "open: ")),
                "text": reason.removeprefix("ok: ").removeprefix("open: "),
            }
            for reason in challenger.metrics.get("gate", {}).get("reasons", [])
        ],
    }


def _before_after(session: Session, nights: Sequence[date], images: _Thumbnails) -> dict[str, Any]:
    before, after = (_run_id(session, night) for night in nights)
    if after is None:
        return {"pairs": [], "pairs_note": ""}
    tasks = session.scalars(
        select(NightTask)
        .where(NightTask.run_id == after, NightTask.status == "done")
        .order_by(NightTask.user_id, NightTask.item_id)
    ).all()
    pairs = []
    for task in tasks:
        sides = []
        for label, run in (("before", before), ("after", after)):
            best = next(iter(_posters(session, run, task.user_id, task.item_id)), None)
            if best is not None:
                sides.append(
                    {
                        "label": f"{label}: {best.model_version}",
                        "image": images.stored(best.image_key),
                        "cs": best.cs,
                        "cis": best.cis_history,
                    }
                )
        if len(sides) == 2:
            pairs.append(
                {
                    "title": task.prompt["reference"]["title"],
                    "user_id": task.user_id,
                    "own": images.own(task.item_id),
                    "sides": sides,
                }
            )
    note = (
        "The best variant of the same user and film, in the first night and in the one after the retrain; "
        f"{len(pairs)} such pairs, {min(len(pairs), SHOWN_PAIRS)} shown."
    )
    if histories := history_words(session.get_one(NightRun, after).figures):
        note += f" Histories of the second night: {histories}."
    return {"pairs": pairs[:SHOWN_PAIRS], "pairs_note": note}
