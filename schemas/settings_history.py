"""Settings of the histories that nights read; composed by schemas/settings.py."""

from __future__ import annotations

from pydantic import Field

from schemas.settings_group import Group, Share


class HistorySettings(Group):
    """Posters that a user clicked, as pictures of the user's history."""

    drawn_share: Share = Field(
        0.6,
        description="Share of night.history_length that may be drawn pictures whose posters the user clicked; the newest ones. 0 = "
        "histories are of catalogue pictures alone.",
    )
    drawn_days: int = Field(
        90,
        ge=1,
        description="A click on a poster counts for so many days, and retention keeps the poster for as long.",
    )

    def most_drawn(self, history_length: int) -> int:
        """Drawn pictures that a history of that length may have."""
        return int(self.drawn_share * history_length + 1e-9)
