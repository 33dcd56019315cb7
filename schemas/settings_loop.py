"""Settings of readers and of the click model; composed by schemas/settings.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.control import CONTROL_SHARE

Share = Annotated[float, Field(ge=0, le=1)]


class ReaderSettings(BaseModel):
    """What recommenders that read the manifest show; to be given to `PosterManifest.open`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotation: Literal["day", "session", "request"] = Field(
        "day",
        description="How long a user sees one variant of an item. session and request teach the loop more, and need the id of the "
        "session or request with each question.",
    )
    control_share: Share = Field(
        CONTROL_SHARE,
        description="Users, by a stable hash, who are shown the items' own posters, so that what drawn ones are worth is known.",
    )


class ClickSettings(BaseModel):
    """The click model: which showings it is fitted on, and when there are enough."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_days: int = Field(28, ge=2, description="Days of showings that a fit looks back.")
    attribution_hours: float = Field(
        24.0, gt=0, description="A click counts up to this long after its impression; younger impressions wait."
    )
    min_clicks: int = Field(100, ge=10, description="Clicks on drawn posters below which nothing is fitted.")
    max_showings: int = Field(
        100_000,
        ge=1_000,
        description="Showings of one fit, about 16 KiB each; where there are more, a part of the users is taken.",
    )
    max_weight: float = Field(5.0, ge=1, description="Inverse propensities are clipped here.")
    daily_cap: int = Field(50, ge=1, description="Showings that one user contributes per day, the first ones.")
    robot_daily_showings: int = Field(
        1_000, ge=1, description="Showings on one day above which a user counts as a robot and is left out."
    )
    robot_click_share: Share = Field(0.9, description="Share of clicked showings from which a user counts as one...")
    robot_min_showings: int = Field(30, ge=1, description="...once it has so many showings.")
