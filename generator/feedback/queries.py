"""The loop's set-based SQL: comparisons from showings (generator/storage/showings.py).

The reasons are in the docstring of generator/feedback/pairs.py.
"""

from __future__ import annotations

from sqlalchemy import text

from generator.storage.showings import SHOWINGS
from schemas.settings_models import PIPELINE_VERSION

# A task that can be trained on: it was drawn, its prompt was kept, and its codes are of the checkpoint that is trained now.
# A version that the registry does not know is the checkpoint as shipped, before the first retraining, or a pipeline.
_USABLE = f"""t.status = 'done' AND jsonb_typeof(t.prompt -> 'snapshot') = 'object' AND t.model_version <> '{PIPELINE_VERSION}'
     AND NOT EXISTS (SELECT FROM model_versions v WHERE v.version = t.model_version AND v.base_sha256 <> :base)"""

# The planner takes showings for one row, because it cannot know how the joins' keys hang together, and would compare each with
# each: a minute and more for 10,000 showings, half a second with hash joins. Ends with the transaction, or before.
WITHOUT_NESTED_LOOPS = text("SET LOCAL enable_nestloop = off")
WITH_NESTED_LOOPS = text("SET LOCAL enable_nestloop = DEFAULT")

FEEDBACK_PAIRS = text(
    SHOWINGS  # noqa: S608 - constants
    + """
, rated AS (
    SELECT *, avg(clicked) OVER (PARTITION BY item_id) AS item_rate FROM showings
), positions AS (
    SELECT surface, position, (sum(clicked) + :prior) / (sum(item_rate) + :prior) AS ratio
    FROM rated GROUP BY surface, position
), examination AS (
    SELECT surface, position,
           greatest(:floor, ratio / max(ratio) OVER (PARTITION BY surface)) AS theta FROM positions
), tally AS (
    SELECT s.user_id, s.poster_id, s.item_id, s.run_id,
           row_number() OVER w AS nth,
           count(*) OVER (PARTITION BY s.user_id, s.poster_id) AS total,
           sum(s.clicked) OVER w AS clicks, sum(e.theta) OVER w AS examined,
           avg(s.propensity) OVER w AS propensity, max(s.shown_at) OVER w AS decided_at
    FROM showings s JOIN examination e USING (surface, position)
    WINDOW w AS (PARTITION BY s.user_id, s.poster_id ORDER BY s.shown_at, s.showing ROWS UNBOUNDED PRECEDING)
)
SELECT a.user_id, a.item_id, a.run_id, a.poster_id AS chosen, b.poster_id AS rejected,
       greatest(a.decided_at, b.decided_at) AS decided_at,
       least(:max_weight, 1 / (a.propensity * b.propensity)) AS weight,
       pa.tokens AS chosen_tokens, pb.tokens AS rejected_tokens, pa.alpha, pa.seed, t.prompt -> 'snapshot' AS prompt
FROM tally a
JOIN tally b ON b.user_id = a.user_id AND b.item_id = a.item_id AND b.run_id = a.run_id
     AND b.poster_id <> a.poster_id AND b.nth = a.nth AND a.nth = least(a.total, b.total)
JOIN posters pa ON pa.poster_id = a.poster_id
JOIN posters pb ON pb.poster_id = b.poster_id
JOIN night_tasks t ON t.run_id = a.run_id AND t.user_id = a.user_id AND t.item_id = a.item_id
     AND """
    + _USABLE
    + """
WHERE a.clicks > b.clicks AND a.clicks / a.examined > b.clicks / b.examined
  AND a.propensity > 0 AND b.propensity > 0
ORDER BY a.user_id, a.item_id, a.run_id, chosen, rejected
"""
)

_RANKED = """
WITH ranked AS (
    SELECT p.*, r.logical_date,
           row_number() OVER (PARTITION BY p.run_id, p.user_id, p.item_id ORDER BY p.cis_history DESC, p.poster_id) AS best,
           row_number() OVER (PARTITION BY p.run_id, p.user_id, p.item_id ORDER BY p.cis_history, p.poster_id DESC) AS worst
    FROM posters p JOIN night_runs r USING (run_id)
    WHERE r.logical_date >= cast(:start AS date)
      AND r.logical_date <= cast(cast(:stop AS timestamptz) - interval '1 microsecond' AS date)
      AND p.withheld IS NULL
      AND NOT EXISTS (SELECT FROM erasures e WHERE e.user_id = p.user_id
                      AND (e.completed_at IS NULL OR p.created_at <= e.requested_at))
)
"""

SCORE_PAIRS = text(
    _RANKED
    + """
SELECT a.user_id, a.item_id, a.run_id, a.poster_id AS chosen, b.poster_id AS rejected,
       (a.logical_date AT TIME ZONE 'UTC') AS decided_at, 1.0 AS weight,
       a.tokens AS chosen_tokens, b.tokens AS rejected_tokens, a.alpha, a.seed, t.prompt -> 'snapshot' AS prompt
FROM ranked a
JOIN ranked b ON b.run_id = a.run_id AND b.user_id = a.user_id AND b.item_id = a.item_id AND b.worst = 1
JOIN night_tasks t ON t.run_id = a.run_id AND t.user_id = a.user_id AND t.item_id = a.item_id
     AND """
    + _USABLE
    + """
WHERE a.best = 1 AND a.cis_history > b.cis_history
  AND NOT (a.run_id || '/' || a.user_id || '/' || a.item_id) = ANY(:taken)
ORDER BY md5(a.run_id || '/' || a.user_id || '/' || a.item_id)
LIMIT :limit
"""
)

COUNTS = text(
    SHOWINGS  # noqa: S608 - constants
    + """
SELECT (SELECT count(*) FROM showings) AS showings,
       (SELECT coalesce(sum(clicked), 0) FROM showings) AS clicked,
       (SELECT count(*) FROM robots) AS robots,
       (SELECT count(*) FROM logged) - (SELECT count(*) FROM showings) AS showings_left_out,
       (SELECT count(*) FROM events WHERE showing = 0) AS orphans,
       (SELECT count(*) FROM showings s JOIN posters p USING (poster_id)
        LEFT JOIN model_versions v ON v.version = p.model_version
        WHERE v.base_sha256 <> :base OR p.model_version = '"""
    + PIPELINE_VERSION
    + """') AS other_base,
       (SELECT count(*) FROM poster_feedback WHERE occurred_at >= :start AND occurred_at < :stop) AS events
"""
)

# The latest task of each user and item with all answers that were chosen from.
ANSWERED_TASKS = text(
    """
SELECT DISTINCT ON (t.user_id, t.item_id)
       t.run_id, t.user_id, t.item_id, t.seed, t.prompt -> 'snapshot' AS prompt, s.answers,
       coalesce(t.finished_at, s.created_at) AS decided_at
FROM night_tasks t
JOIN night_runs r USING (run_id)
JOIN answer_sets s ON s.user_id = t.user_id AND s.item_id = t.item_id
     AND s.answers_fingerprint = t.answers_fingerprint AND s.weights = t.weights
WHERE r.logical_date >= cast(:start AS date)
  AND r.logical_date <= cast(cast(:stop AS timestamptz) - interval '1 microsecond' AS date)
  AND NOT EXISTS (SELECT FROM erasures e WHERE e.user_id = t.user_id
                  AND (e.completed_at IS NULL OR coalesce(t.finished_at, s.created_at) <= e.requested_at))
  AND """
    + _USABLE
    + """
ORDER BY t.user_id, t.item_id, r.logical_date DESC
"""
).execution_options(yield_per=500)

# Showings with all answers of their tasks, and with which propensities the reader shows the task's variants.
SHOWN_ANSWERS = text(
    SHOWINGS  # noqa: S608 - constants
    + """
SELECT s.run_id, s.user_id, s.item_id, p.variant, s.clicked, s.propensity, s.shown_at, t.seed,
       t.prompt -> 'snapshot' AS prompt, a.answers,
       (SELECT array_agg(o.propensity ORDER BY o.variant) FROM posters o
        WHERE o.run_id = s.run_id AND o.user_id = s.user_id AND o.item_id = s.item_id) AS reader
FROM showings s
JOIN posters p ON p.poster_id = s.poster_id
JOIN night_tasks t ON t.run_id = s.run_id AND t.user_id = s.user_id AND t.item_id = s.item_id
JOIN answer_sets a ON a.user_id = t.user_id AND a.item_id = t.item_id
     AND a.answers_fingerprint = t.answers_fingerprint AND a.weights = t.weights
WHERE """
    + _USABLE
    + """
ORDER BY s.run_id, s.user_id, s.item_id, s.shown_at, s.poster_id, s.showing
"""
)

USER_CLICKS = text(
    SHOWINGS  # noqa: S608 - constants
    + "SELECT user_id, count(*) AS showings, sum(clicked) AS clicks FROM showings GROUP BY user_id ORDER BY user_id"
)
