"""Retention of feedback, of what is known of the catalogue and its users, and of moments."""

from __future__ import annotations

from sqlalchemy import text

from generator.upkeep.batches import Upkeep
from schemas.manifest_files import art_key

PAGE_USERS = 10_000

# Features are asked for by hash and tokenizer. They stay while an address has the picture, or it is a drawn one (of which a
# history may be), or a task may still be drawn of it, and were made for a tokenizer of a night that is still known.
_FEATURES = """
x.created_at < :before AND (
  (NOT EXISTS (SELECT FROM catalog_images c WHERE c.sha256 = x.image_sha256)
   AND NOT EXISTS (SELECT FROM pictures p WHERE p.art_key = :art_folder || x.image_sha256 || :art_ending))
  OR NOT EXISTS (
    SELECT FROM night_runs r
    WHERE x.tokenizer_version = r.settings #>> '{served,tokenizer}'
       OR starts_with(x.tokenizer_version, (r.settings #>> '{served,tokenizer}') || '/')
  )
)
"""
_USERS_END = text("SELECT user_id FROM planned_users WHERE user_id > :after ORDER BY user_id OFFSET :page - 1 LIMIT 1")


def drop_feedback(upkeep: Upkeep) -> None:
    """Delete old feedback, by when it came in: history that was imported yesterday is not old."""
    settings = upkeep.settings
    days = max(settings.retention.feedback_days, settings.retrain.window_days, settings.history.drawn_days + 1)
    where = "x.occurred_at < :before AND x.ingested_at < :before"
    upkeep.delete_rows("feedback", "poster_feedback", where, {"before": upkeep.before(days)})


def drop_catalog(upkeep: Upkeep) -> None:
    """Delete what is known of pictures of no item, and of users without history."""
    before = upkeep.before(upkeep.settings.retention.catalog_days)
    upkeep.delete_rows(
        "catalog_images",
        "catalog_images",
        "x.checked_at < :before AND NOT EXISTS "
        "(SELECT FROM items i WHERE i.image_uri = x.uri AND (i.deleted_at IS NULL OR i.deleted_at >= :before))",
        {"before": before},
    )
    upkeep.delete_rows(
        "planned_items",
        "planned_items",
        "NOT EXISTS (SELECT FROM items i WHERE i.item_id = x.item_id "
        "AND (i.deleted_at IS NULL OR i.deleted_at >= :before))",
        {"before": before},
    )
    folder, _, ending = art_key("|").partition("|")
    drawn = {"art_folder": folder, "art_ending": ending}
    upkeep.delete_rows("image_features", "image_features", _FEATURES, {"before": before, **drawn})
    for after, until in _user_ranges(upkeep):
        upkeep.delete_rows(
            "planned_users",
            "planned_users",
            "x.user_id > :after AND (CAST(:until AS text) IS NULL OR x.user_id <= :until) AND x.planned_at < :before "
            "AND NOT EXISTS (SELECT FROM user_histories h WHERE h.user_id = x.user_id)",
            {"before": before, "after": after, "until": until},
        )


def _user_ranges(upkeep: Upkeep) -> list[tuple[str, str | None]]:
    """Bounds of pages of planned users; the last one is open."""
    bounds: list[tuple[str, str | None]] = []
    after = ""
    with upkeep.ledger.reading() as session:
        while (until := session.scalar(_USERS_END, {"after": after, "page": PAGE_USERS})) is not None:
            bounds.append((after, until))
            after = until
    return [*bounds, (after, None)]


def drop_moments(upkeep: Upkeep) -> None:
    """Delete moments of the scheduler that are over."""
    before = upkeep.before(upkeep.settings.retention.moments_days)
    where = "x.due_at < :before AND x.status IN ('done', 'gave_up')"
    upkeep.delete_rows("moments", "schedule_moments", where, {"before": before})
