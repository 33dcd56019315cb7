"""Settings of retention: how long what nights, users and the loop leave behind is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.settings_group import Group

Days = Annotated[int, Field(ge=1)]


class RetentionSettings(Group):
    """`pigeon night upkeep` deletes what is older than this; what is shown, or may be led back to, stays."""

    replaced_days: Days = Field(
        45,
        description="Posters, with their tasks and answers, that a later night replaced this long ago. Kept at least as long as "
        "retrain.window_days and as the oldest set in the bucket; clicked ones as history.drawn_days says.",
    )
    skips_days: Days = Field(14, description="Rows of what a plan left out, with the reasons.")
    runs_days: Days = Field(400, description="Runs with their figures, once they have no tasks and posters any more.")
    feedback_days: Days = Field(
        400,
        description="What users did with posters, by when it came in; at least retrain.window_days and history.drawn_days.",
    )
    unused_days: Days = Field(
        14, description="Pictures and poster files that no poster has, counted from when they were last used."
    )
    orphan_days: Days = Field(7, description="Objects in the bucket that no row names, as killed processes leave them.")
    orphan_slices: int = Field(
        1,
        ge=1,
        le=16,
        description="Sixteenths of the bucket's posters and pictures that one upkeep compares with the tables.",
    )
    catalog_days: Days = Field(
        90,
        description="What is known of pictures at addresses that no item has any more, and of users without history.",
    )
    adapters_days: Days = Field(
        180,
        description="Adapters of refused, failed and retired model versions; that of the champion before this one stays.",
    )
    snapshots_days: Days = Field(400, description="Snapshots of pairs whose model versions are all decided.")
    moments_days: Days = Field(30, description="Due moments of the scheduler that are done or given up.")
    batch_rows: int = Field(2_000, ge=1, le=100_000, description="Rows that one transaction deletes at most.")
