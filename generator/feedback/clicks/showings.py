"""Showings of drawn posters from the log, with the answers that each was chosen from.

An impression is a showing; impressions of one poster with one request id, or of one moment, are one. A click or dismissal
belongs to the showing of its request, else to the latest showing of its poster before it, if it came within
`clicks.attribution_hours`; a showing that was dismissed was not clicked. A showing counts once that time has passed, so that a
click that comes late counts like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from generator.feedback.clicks.examples import Showings
from generator.feedback.clicks.hygiene import LoggedShowing, clean
from generator.feedback.queries import WITH_NESTED_LOOPS, WITHOUT_NESTED_LOOPS
from schemas.answers import AnswerSet as Answers
from schemas.answers import distinct
from schemas.click_features import Array, Candidates
from schemas.images import features_version
from schemas.settings_loop import ClickSettings
from schemas.tables import ImageFeature

TASKS_AT_ONCE = 1_000

# Users to be erased never enter, even before the consumers' and the night's deletions have run; of the others, when there are
# too many, a part is taken by a hash. A later checkpoint has other previews: only posters of one checkpoint are looked at.
_DRAWN = """
WITH drawn AS (
    SELECT f.event_id, f.user_id, f.poster_id, f.action, f.position, f.surface, f.request_id, f.occurred_at,
           p.item_id, p.run_id, p.tokens, coalesce(f.propensity, p.propensity) * p.choice_propensity AS propensity
    FROM poster_feedback f
    JOIN posters p ON p.poster_id = f.poster_id AND p.user_id = f.user_id AND p.item_id = f.item_id
    JOIN night_runs r ON r.run_id = p.run_id AND r.settings -> 'served' ->> 'base_weights' = :base_weights
    WHERE f.occurred_at >= :start AND f.occurred_at < :stop
      AND NOT EXISTS (SELECT FROM erasures e WHERE e.user_id = f.user_id
                      AND (f.occurred_at <= e.requested_at OR p.created_at <= e.requested_at))
      AND ('x' || substr(md5(f.user_id), 1, 8))::bit(32)::bigint < :share * 4294967296
), showings AS (
    SELECT user_id, poster_id, item_id, run_id, tokens, request_id, min(occurred_at) AS shown_at,
           coalesce(min(position), -1) AS position, coalesce(max(surface), '') AS surface, max(propensity) AS propensity,
           count(*) AS impressions
    FROM drawn WHERE action = 'impression'
    GROUP BY user_id, poster_id, item_id, run_id, tokens, request_id,
             CASE WHEN request_id IS NULL THEN occurred_at END
), reactions AS (
    SELECT DISTINCT ON (d.event_id) d.event_id, d.action, s.user_id, s.poster_id, s.request_id, s.shown_at
    FROM drawn d
    JOIN showings s ON s.user_id = d.user_id AND s.poster_id = d.poster_id
         AND s.shown_at <= d.occurred_at AND d.occurred_at <= s.shown_at + make_interval(secs => :attribution)
         AND coalesce(s.request_id = d.request_id, true)
    WHERE d.action <> 'impression'
    ORDER BY d.event_id, s.request_id = d.request_id DESC NULLS LAST, s.shown_at DESC
)
"""
_SHOWINGS = text(
    _DRAWN  # noqa: S608 - two constants
    + """
, outcomes AS (
    SELECT user_id, poster_id, request_id, shown_at, bool_or(action = 'click') AND NOT bool_or(action = 'dismiss') AS clicked
    FROM reactions GROUP BY user_id, poster_id, request_id, shown_at
)
SELECT s.user_id, s.item_id, s.run_id, s.tokens, s.shown_at, s.position, s.surface, s.propensity,
       coalesce(o.clicked, false) AS clicked
FROM showings s
LEFT JOIN outcomes o ON o.user_id = s.user_id AND o.poster_id = s.poster_id AND o.shown_at = s.shown_at
     AND coalesce(o.request_id, '') = coalesce(s.request_id, '')
WHERE s.shown_at < :closed
ORDER BY s.shown_at, s.user_id, s.poster_id
"""
)
_COUNTS = text(
    _DRAWN  # noqa: S608 - two constants
    + """
SELECT (SELECT count(*) FROM showings) AS showings,
       (SELECT count(*) FROM showings WHERE shown_at >= :closed) AS showings_still_open,
       (SELECT coalesce(sum(impressions) - count(*), 0) FROM showings) AS repeated_impressions,
       (SELECT count(*) FROM drawn WHERE action <> 'impression') - (SELECT count(*) FROM reactions) AS reactions_without_a_showing
"""
)
_IMPRESSIONS = text(
    "SELECT count(*) FROM poster_feedback WHERE action = 'impression' AND occurred_at >= :start AND occurred_at < :stop"
)
_NEWEST = text("""
SELECT settings -> 'served' ->> 'base_weights' FROM night_runs
WHERE status = 'published' AND settings -> 'served' ? 'base_weights' AND logical_date <= cast(:stop AS date)
ORDER BY logical_date DESC, started_at DESC LIMIT 1
""")
_TASKS = text("""
SELECT t.run_id, t.user_id, t.item_id, t.prompt -> 'history' AS history, t.prompt ->> 'tokenizer_version' AS tokenizer, a.answers
FROM unnest(cast(:runs AS text[]), cast(:users AS text[]), cast(:items AS text[])) AS wanted (run_id, user_id, item_id)
JOIN night_tasks t ON t.run_id = wanted.run_id AND t.user_id = wanted.user_id AND t.item_id = wanted.item_id
JOIN night_runs r ON r.run_id = t.run_id AND r.settings -> 'served' ->> 'base_weights' = :base_weights
JOIN answer_sets a ON a.user_id = t.user_id AND a.item_id = t.item_id AND a.answers_fingerprint = t.answers_fingerprint
     AND a.weights = t.weights
""")

TaskKey = tuple[str, str, str]
"""Run, user, item."""


@dataclass(frozen=True)
class Answered:
    """The distinct answers of a task as a click model reads them."""

    candidates: Candidates
    places: dict[tuple[int, ...], int]
    """Codes -> place among the candidates."""


@dataclass(frozen=True)
class Read:
    """The showings of a window that count, and the counts that explain their number."""

    base_weights: str
    showings: Showings | None
    """None where there are none."""
    counts: dict[str, int]


def newest_checkpoint(session: Session, stop: datetime) -> str | None:
    """Base weights of the latest published night; None where there is none."""
    found: str | None = session.scalar(_NEWEST, {"stop": stop})
    return found


def read(
    session: Session,
    start: datetime,
    stop: datetime,
    base_weights: str,
    settings: ClickSettings,
    without: Callable[[str], bool] = lambda user: False,
) -> Read:
    """The showings in [start, stop) whose attribution window has closed by `stop`.

    `without`: users who are left out, as if they had never been there.
    """
    window = {"start": start, "stop": stop}
    impressions = int(session.scalar(_IMPRESSIONS, window) or 0)
    attribution = timedelta(hours=settings.attribution_hours)
    bindings = {
        **window,
        "base_weights": base_weights,
        "attribution": attribution.total_seconds(),
        "closed": stop - attribution,
        "share": min(1.0, settings.max_showings / max(1, impressions)),
    }
    session.execute(WITHOUT_NESTED_LOOPS)
    counts = {name: int(value) for name, value in session.execute(_COUNTS, bindings).mappings().one().items()}
    logged = [
        LoggedShowing(
            codes=tuple(row.tokens),
            **{
                name: getattr(row, name) for name in ("user_id", "item_id", "run_id", "shown_at", "position", "surface")
            },
            propensity=row.propensity,
            clicked=row.clicked,
        )
        for row in session.execute(_SHOWINGS, bindings)
    ]
    session.execute(WITH_NESTED_LOOPS)
    kept, left_out = clean([one for one in logged if not without(one.user_id)], settings)
    showings, unknown = _with_answers(session, kept, base_weights)
    counts |= {"impressions": impressions, **left_out, "showings_without_answers": unknown}
    counts |= {"used": len(showings) if showings else 0, "clicks": int(showings.clicked.sum()) if showings else 0}
    return Read(base_weights, showings, counts)


def _with_answers(session: Session, logged: Sequence[LoggedShowing], base_weights: str) -> tuple[Showings | None, int]:
    """Showings whose task's answers are still stored, and how many are not."""
    keys = list(dict.fromkeys(_key(one) for one in logged))
    tasks: dict[TaskKey, Answered] = {}
    for start in range(0, len(keys), TASKS_AT_ONCE):
        tasks |= read_tasks(session, keys[start : start + TASKS_AT_ONCE], base_weights)
    kept = [one for one in logged if _key(one) in tasks and one.codes in tasks[_key(one)].places]
    if not kept:
        return None, len(logged)
    width = max(set(widths := [tasks[_key(one)].candidates.previews.shape[1] for one in kept]), key=widths.count)
    kept = [one for one, found in zip(kept, widths, strict=True) if found == width]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(_key(one) for one in kept))}
    columns = Showings(
        users=np.array([one.user_id for one in kept]),
        items=np.array([one.item_id for one in kept]),
        tasks=np.array([numbers[_key(one)] for one in kept]),
        answers=np.array([tasks[_key(one)].places[one.codes] for one in kept]),
        clicked=np.array([float(one.clicked) for one in kept]),
        days=np.array([one.shown_at.toordinal() for one in kept]),
        positions=np.array([one.position for one in kept]),
        surfaces=np.array([one.surface for one in kept]),
        propensities=np.array([one.propensity for one in kept]),
        candidates=tuple(tasks[key].candidates for key in numbers),
    )
    return columns, len(logged) - len(kept)


def _key(showing: LoggedShowing) -> TaskKey:
    return showing.run_id, showing.user_id, showing.item_id


def read_tasks(session: Session, keys: Sequence[TaskKey], base_weights: str) -> dict[TaskKey, Answered]:
    """The distinct answers of tasks that a checkpoint answered; of the others nothing."""
    runs, users, items = zip(*keys, strict=True)
    bindings = {"runs": list(runs), "users": list(users), "items": list(items), "base_weights": base_weights}
    rows = session.execute(_TASKS, bindings).all()
    hashes = {(image["sha256"], features_version(row.tokenizer)) for row in rows for image in row.history}
    embeddings = _embeddings(session, hashes)
    found = {}
    for row in rows:
        answers = Answers.unpack(bytes(row.answers)).answers
        places = distinct(answers)
        pictures = [embeddings.get((image["sha256"], features_version(row.tokenizer))) for image in row.history]
        known = [one for one in pictures if one is not None]
        if places and len(known) == len(pictures) and known:
            candidates = Candidates.of([answers[place] for place in places], np.array(known))
            by_codes = {answers[place].codes: number for number, place in enumerate(places)}
            found[(row.run_id, row.user_id, row.item_id)] = Answered(candidates, by_codes)
    return found


def _embeddings(session: Session, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Array]:
    """Embeddings of catalogue pictures by hash and tokenizer."""
    rows = session.execute(
        select(ImageFeature.image_sha256, ImageFeature.tokenizer_version, ImageFeature.embedding).where(
            ImageFeature.image_sha256.in_(sorted({sha for sha, _ in wanted}))
        )
    )
    return {(sha, version): np.array(embedding) for sha, version, embedding in rows if (sha, version) in wanted}
