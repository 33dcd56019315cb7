"""The demo's input files: MovieLens-100k with posters that we draw.

A catalogue, clicks and recommendations.

Real: users, films, and when somebody rated one 4 or 5 (a "click" here). Synthetic, and labelled so in the catalogue:
the posters. Recommendations come from a plain item-to-item recommender over those clicks.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.datasets import (
    STYLE_NAMES,
    ConceptFinder,
    Movie,
    attributes,
    description,
    draw,
    load_icons,
    load_movielens,
    spec_for,
)
from schemas.settings import Settings

CLICK_RATING = 4
POSTER_SIDE = 256
RECOMMENDED = 10
HISTORY = 5

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DemoData:
    """Where the input files are, and what is in them."""

    catalog: Path
    clicks: Path
    recommendations: Path
    items: int
    click_count: int
    user_count: int
    night: date
    """The night after the last click."""
    tastes: dict[str, str]
    """User -> name of the style of most of the user's last five clicks, most concentrated first, styles in turn."""

    @property
    def posters(self) -> Path:
        """Folder of the films' own posters, `<item_id>.png`."""
        return self.catalog.parent / "posters"


def build(settings: Settings, progress: Progress) -> DemoData:
    """Write the input files into `<state_dir>/cache/demo`, fetching and drawing what is missing.

    Raises:
        DatasetError: a download failed or the art cannot be drawn.
    """
    cache = settings.state_dir / "cache"
    movielens = load_movielens(cache, progress)
    art = load_icons(cache, progress)
    finder = ConceptFinder(art.concepts)
    specs = {movie.item_id: spec_for(movie, finder) for movie in movielens.movies}
    clicks = [row for row in movielens.interactions if row.rating >= CLICK_RATING]

    folder = cache / "demo"
    (folder / "posters").mkdir(parents=True, exist_ok=True)
    for number, movie in enumerate(movielens.movies):
        target = folder / "posters" / f"{_item(movie)}.png"
        # The name of the art is part of the file's own text, so that a changed drawing is drawn again.
        stamp = f"{specs[movie.item_id]}@{POSTER_SIDE}"
        mark = target.with_suffix(".spec")
        if not target.exists() or not mark.exists() or mark.read_text() != stamp:
            Image.fromarray(draw(specs[movie.item_id], POSTER_SIDE, art)).save(target)
            mark.write_text(stamp)
        if number % 50 == 0:
            progress("Draw posters", number, len(movielens.movies))
    progress("Draw posters", len(movielens.movies), len(movielens.movies))

    _write(
        folder / "catalog.jsonl",
        (
            {
                "item_id": _item(movie),
                "title": movie.title,
                "description": description(movie, art.concept(specs[movie.item_id].concept)),
                "genres": list(movie.genres),
                "image_uri": f"posters/{_item(movie)}.png",
                "attributes": attributes(specs[movie.item_id]),
            }
            for movie in movielens.movies
        ),
    )
    events = [
        {
            "event_id": str(uuid5(NAMESPACE_URL, f"ml-100k:{row.user_id}:{row.item_id}:{row.timestamp}")),
            "user_id": f"u{row.user_id}",
            "item_id": f"m{row.item_id}",
            "kind": "click",
            "occurred_at": datetime.fromtimestamp(row.timestamp, UTC).isoformat(),
            "context": {"source": "ml-100k", "rating": row.rating},
        }
        for row in clicks
    ]
    _write(folder / "clicks.jsonl", events)
    last = datetime.fromtimestamp(max(row.timestamp for row in clicks), UTC)
    recommended = recommend([(str(e["user_id"]), str(e["item_id"])) for e in events])
    _write(
        folder / "recommendations.jsonl",
        ({"user_id": user, "item_ids": items, "occurred_at": last.isoformat()} for user, items in recommended.items()),
    )
    styles = {f"m{item}": STYLE_NAMES[spec.style] for item, spec in specs.items()}
    return DemoData(
        catalog=folder / "catalog.jsonl",
        clicks=folder / "clicks.jsonl",
        recommendations=folder / "recommendations.jsonl",
        items=len(movielens.movies),
        click_count=len(events),
        user_count=len(recommended),
        night=last.date() + timedelta(days=1),
        tastes=concentrated_tastes(events, styles),
    )


def recommend(clicks: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Recommend by item-to-item collaborative filtering.

    Unseen items by summed cosine similarity to the user's clicks, best first."""
    pairs = sorted(set(clicks))
    users = sorted({user for user, _ in pairs})
    items = sorted({item for _, item in pairs})
    row = {user: i for i, user in enumerate(users)}
    column = {item: i for i, item in enumerate(items)}
    clicked: npt.NDArray[np.float32] = np.zeros((len(users), len(items)), np.float32)
    for user, item in pairs:
        clicked[row[user], column[item]] = 1
    unit = clicked / np.maximum(np.linalg.norm(clicked, axis=0), 1)
    scores = clicked @ (unit.T @ unit)
    scores[clicked > 0] = -1
    best = np.argsort(-scores, axis=1, kind="stable")[:, :RECOMMENDED]
    return {user: [items[i] for i in best[row[user]] if scores[row[user], i] >= 0] for user in users}


def concentrated_tastes(events: list[dict[str, Any]], styles: dict[str, str]) -> dict[str, str]:
    """Users whose last five clicks agree most on one style, the styles taken in turn."""
    last: dict[str, list[str]] = {}
    for event in sorted(events, key=lambda e: (e["occurred_at"], e["event_id"])):
        last[event["user_id"]] = [*last.get(event["user_id"], [])[1 - HISTORY :], event["item_id"]]
    by_style: dict[str, list[tuple[int, str, str]]] = {}
    for user, items in last.items():
        style, count = Counter(styles[item] for item in items).most_common(1)[0]
        # A stable shuffle among equals, so that the demo does not show the lowest user numbers only.
        by_style.setdefault(style, []).append((-count, hashlib.sha256(user.encode()).hexdigest(), user))
    queues = [(style, [user for _, _, user in sorted(rows)]) for style, rows in sorted(by_style.items())]
    order: dict[str, str] = {}
    for rank in range(max(len(users) for _, users in queues)):
        for style, users in queues:
            if rank < len(users):
                order[users[rank]] = style
    return order


def _item(movie: Movie) -> str:
    return f"m{movie.item_id}"


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
