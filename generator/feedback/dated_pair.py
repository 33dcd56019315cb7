"""A preference pair with the time of its evidence, and what pairs of every source are made from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from schemas.preferences import PreferencePair, PromptSnapshot


@dataclass(frozen=True)
class DatedPair:
    """A pair and when its evidence was complete; the time split needs it, training does not."""

    pair: PreferencePair
    decided_at: datetime


def pair_id(chosen: str, rejected: str, source: str) -> str:
    """Stable id of a comparison; poster ids already name user, item, model and input."""
    return hashlib.sha256(f"{source}:{chosen}>{rejected}".encode()).hexdigest()[:32]


def prompt_of(snapshot: dict[str, Any] | None) -> PromptSnapshot | None:
    """The model's input as a drawn task keeps it; None where it cannot be read."""
    try:
        return PromptSnapshot.model_validate(snapshot)
    except ValidationError:
        return None
