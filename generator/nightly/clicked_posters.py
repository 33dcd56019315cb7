"""Clicked posters in a user's history: one entry per item, with the picture that was seen last.

A surface may send an interaction, a feedback click, or both for one click; they are one entry. What comes up to `SAME_VISIT` after
a click on an item's poster belongs to that click (a film that is played), and has the drawn picture; what comes later was
seen elsewhere and has the item's own.

Pure functions; nights and `pigeon simulate` follow the same rule.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

SAME_VISIT = timedelta(minutes=30)
"""Time after a click on a poster within which interactions with its item belong to that click."""

ItemId = TypeVar("ItemId", bound=Hashable)
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """A drawn picture that a history names."""

    picture_key: str
    uri: str
    """Address of its file in the bucket."""
    sha256: str
    """Hash of that file."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[ItemId, P]):
    """An item that a user clicked, and which picture of it."""

    item_id: ItemId
    at: datetime
    picture: P | None = None
    """The drawn one; None for the item's own."""


def with_clicks(history: Sequence[Seen[ItemId, P]], clicks: Sequence[Seen[ItemId, P]]) -> list[Seen[ItemId, P]]:
    """A history with clicks on posters.

    Both are given and returned newest first, each item once in each; entries of one moment stay in their order, those of the
    history first.
    """
    merged = {entry.item_id: entry for entry in history}
    for click in clicks:
        known = merged.get(click.item_id)
        if known is None:
            merged[click.item_id] = click
        elif known.at <= click.at + SAME_VISIT:
            merged[click.item_id] = Seen(click.item_id, max(known.at, click.at), click.picture)
    return sorted(merged.values(), key=lambda entry: entry.at, reverse=True)
