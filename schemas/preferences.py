"""A preference pair: two posters for one user and item, one preferred, and the prompt of both."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PromptSnapshot(BaseModel):
    """The model's input as it was on the night: enough to rebuild the prompt without any table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history_titles: tuple[str, ...]
    history_tokens: tuple[tuple[int, ...], ...] = Field(
        description="Visual ids of each history picture, without start and end."
    )
    title: str
    description: str
    reference_tokens: tuple[int, ...] = Field(
        description="Visual ids of the reference's picture, without start and end."
    )


class PreferencePair(BaseModel):
    """Chosen over rejected, with where the preference comes from and its weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair_id: str
    user_id: str
    item_id: str
    prompt: PromptSnapshot
    alpha: float = Field(ge=0, le=1, description="Reference mask ratio of the prompt (the chosen poster's).")
    seed: int
    chosen_poster_id: str
    rejected_poster_id: str
    chosen_tokens: tuple[int, ...] = Field(min_length=1, description="Visual ids, without start and end.")
    rejected_tokens: tuple[int, ...] = Field(min_length=1)
    source: Literal["feedback", "reward", "score"]
    weight: float = Field(
        gt=0,
        description="Inverse-propensity weight, clipped; certainty of reward-ranked pairs; 1 for score-ranked ones.",
    )
