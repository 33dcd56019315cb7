"""Which posters nobody may be shown, withdrawn ones and those of users who object: one SQL condition."""

from __future__ import annotations

OPEN = "SELECT 1 FROM withdrawals w WHERE w.lifted_at IS NULL"


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
