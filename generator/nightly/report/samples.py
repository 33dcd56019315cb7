"""What the report reads of the tables: samples and extremes, never all rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from generator.nightly.frozen_prompt import FrozenImage, FrozenPrompt
from generator.nightly.ledger import Ledger
from generator.nightly.rows import CandidateRow
from generator.nightly.taken_back import not_taken_back
from schemas.tables import NightTask, Picture

SHEET_POSTERS = 36
EXTREMES = 6
"""Posters on the best sheet and on the worst."""
EXTREMES_READ = 300
"""Posters among which those of distinct pictures are looked for: a picture that many share would fill the sheet."""
PLOTTED_TASKS = 5000

# Ids of posters are hashes: their order is a sample that stays the same. What was taken back is looked for among some only, more
# than are shown: on all posters of a night that would take a minute.
_PICKED = """
WITH picked AS MATERIALIZED (
    SELECT poster_id FROM posters WHERE run_id = :run_id AND withheld IS NULL ORDER BY {order}, poster_id LIMIT :picked
)
"""
_POSTERS = """
SELECT p.poster_id, p.user_id, p.item_id, p.variant, p.picture_key, p.image_key, p.score, p.cs, p.cis_history, p.alpha,
       p.explored, p.propensity, p.synthetic, t.prompt - 'snapshot' AS prompt
FROM posters p JOIN night_tasks t ON t.run_id = p.run_id AND t.user_id = p.user_id AND t.item_id = p.item_id
"""
_SHOWN = f"p.poster_id IN (SELECT poster_id FROM picked) AND {not_taken_back('p', 'p.run_id')}"  # noqa: S608 - our words
_SAMPLE = text(f"{_PICKED.format(order='poster_id')} {_POSTERS} WHERE {_SHOWN} ORDER BY p.poster_id LIMIT :limit")
_BY_SCORE = (
    f"{_PICKED} SELECT p.poster_id, p.picture_key FROM posters p WHERE {_SHOWN} ORDER BY p.{{order}}, p.poster_id"  # noqa: S608
)
_NAMED = text(f"{_POSTERS} WHERE p.poster_id = ANY(:ids)")


@dataclass(frozen=True)
class ReportPoster:
    """A poster on the page, with what it was drawn from."""

    poster_id: str
    user_id: str
    item_id: str
    variant: int
    image_key: str
    score: float
    cs: float
    cis_history: float
    alpha: float
    explored: bool
    propensity: float
    synthetic: bool
    title: str
    reference: FrozenImage
    history: tuple[FrozenImage, ...]


@dataclass(frozen=True)
class Samples:
    """All that the page shows of single posters and pictures."""

    sheet: list[ReportPoster]
    best: list[ReportPoster]
    worst: list[ReportPoster]
    candidates: list[CandidateRow]
    files: dict[str, str]
    """Keys of the files of refused pictures, by picture."""


def read_samples(ledger: Ledger, run_id: str, refused: Iterable[str]) -> Samples:
    """Read the samples in one snapshot.

    `refused` are keys of pictures to be shown with the reason of their refusal.
    """
    with ledger.reading() as session:
        # The extremes are looked for among all posters of the run, which may take longer than a statement should.
        session.execute(text("SET LOCAL statement_timeout = 0"))
        sheet = _posters(
            session.execute(_SAMPLE, {"run_id": run_id, "picked": 10 * SHEET_POSTERS, "limit": SHEET_POSTERS})
        )
        best, worst = (_extremes(session, run_id, order) for order in ("score DESC", "score ASC"))
        return Samples(sheet, best, worst, _candidates(session, run_id), _files(session, refused))


def _extremes(session: Session, run_id: str, order: str) -> list[ReportPoster]:
    """Posters with the highest or the lowest scores, none of them twice the same picture."""
    rows = session.execute(text(_BY_SCORE.format(order=order)), {"run_id": run_id, "picked": EXTREMES_READ})
    first: dict[str, str] = {}
    for poster_id, picture_key in rows:
        first.setdefault(picture_key or poster_id, poster_id)
    ids = list(first.values())[:EXTREMES]
    found = {poster.poster_id: poster for poster in _posters(session.execute(_NAMED, {"ids": ids}))}
    return [found[one] for one in ids if one in found]


def _posters(rows: Iterable[Any]) -> list[ReportPoster]:
    return [_poster(row) for row in rows]


def _poster(row: Any) -> ReportPoster:
    prompt = FrozenPrompt.model_validate(row.prompt)
    return ReportPoster(
        row.poster_id,
        row.user_id,
        row.item_id,
        row.variant,
        row.image_key,
        row.score,
        row.cs,
        row.cis_history,
        row.alpha,
        row.explored,
        row.propensity,
        row.synthetic,
        prompt.reference.title,
        prompt.reference,
        prompt.history,
    )


def _candidates(session: Session, run_id: str) -> list[CandidateRow]:
    """Scored pictures of the run's first tasks."""
    tasks = session.scalars(
        select(NightTask.candidates)
        .where(NightTask.run_id == run_id, NightTask.status.in_(("done", "refused")))
        .order_by(NightTask.user_id, NightTask.item_id)
        .limit(PLOTTED_TASKS)
    )
    parsed = (CandidateRow.parse(row) for task in tasks for row in task)
    return [row for row in parsed if math.isfinite(row.score)]


def _files(session: Session, pictures: Iterable[str]) -> dict[str, str]:
    keys: Sequence[str] = list(pictures)
    rows = session.execute(
        select(Picture.picture_key, Picture.art_key).where(
            Picture.picture_key.in_(keys), Picture.art_key.is_not(None), Picture.safety != "unsafe"
        )
    )
    return {key: art_key for key, art_key in rows if art_key}
