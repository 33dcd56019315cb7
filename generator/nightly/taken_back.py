"""Which posters nobody may be shown, withdrawn ones and those of users who object: one SQL condition."""

from __future__ import annotations

NOT_TO_BE_SHOWN = """
SELECT kind, subject FROM withdrawals WHERE lifted_at IS NULL
UNION SELECT 'user', o.user_id FROM user_objections o
WHERE o.objects AND EXISTS (SELECT FROM posters p WHERE p.user_id = o.user_id)
UNION SELECT 'user', e.user_id FROM erasures e WHERE e.completed_at IS NULL
"""
"""Query of kinds and subjects that readers are told of: what is in sets that were written before, but must not be shown."""

OPEN = "SELECT 1 FROM withdrawals w WHERE w.lifted_at IS NULL"


def with_stamp(change: str) -> str:
    """SQL that changes `current_posters` and stamps the posters that become current again.

    Retention counts from then on. `change`: UPDATE or INSERT of `current_posters` AS c, without RETURNING.
    """
    return f"""
WITH again AS ({change} RETURNING c.user_id, c.item_id, c.input_fingerprint, c.weights)
UPDATE posters p SET shown_again_at = now() FROM again a
WHERE p.user_id = a.user_id AND p.item_id = a.item_id AND p.input_fingerprint = a.input_fingerprint AND p.weights = a.weights
"""  # noqa: S608 - our own words


def not_taken_back(posters: str, run: str) -> str:
    """SQL condition on the table or alias `posters`; `run` is the column with the run that drew them.

    A subquery for each kind: these become hash joins, one with OR would be a loop.
    """
    subjects = {
        "poster": f"{posters}.poster_id",
        "picture": f"{posters}.picture_key",
        "item": f"{posters}.item_id",
        "user": f"{posters}.user_id",
        "night": run,
    }
    conditions = [f"NOT EXISTS ({OPEN} AND w.kind = '{kind}' AND w.subject = {it})" for kind, it in subjects.items()]
    objects = f"SELECT 1 FROM user_objections o WHERE o.user_id = {posters}.user_id AND o.objects"  # noqa: S608 - our own name
    conditions.append(f"NOT EXISTS ({objects})")
    return "(" + " AND ".join(conditions) + ")"
