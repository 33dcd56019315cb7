"""What a plan freezes of a task, and the ids and seeds that follow from it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.errors import InputError
from schemas.hashing import unit_interval
from schemas.preferences import PromptSnapshot
from schemas.settings import NightSettings

# Part of every fingerprint: raise it when composing or selecting would give other bytes from the same input.
RECIPE_VERSION = 1


class FrozenImage(BaseModel):
    """An item's title and image as the plan saw them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: str
    title: str
    uri: str
    sha256: str


class FrozenPrompt(BaseModel):
    """Column `night_tasks.prompt`; `snapshot` is None until the task is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history: tuple[FrozenImage, ...]
    """Oldest first."""
    reference: FrozenImage
    description: str
    year: str | None = None
    synthetic: bool = False
    tokenizer_version: str
    snapshot: PromptSnapshot | None = None


def drawing_settings(settings: NightSettings) -> dict[str, Any]:
    """The settings that change what is drawn, kept or composed."""
    names = (
        "alphas variants exploration reference_weight min_reference_score near_duplicate_distance blank_stddev "
        "sizes webp_quality font"
    )
    dumped = settings.model_dump(mode="json")
    return {"version": RECIPE_VERSION, **{name: dumped[name] for name in names.split()}}


def as_planned(settings: NightSettings, run_settings: dict[str, Any]) -> NightSettings:
    """`settings` with the drawing settings that a run was planned with (`night_runs.settings`).

    Raises:
        InputError: this release draws by another recipe than the one that planned the run.
    """
    planned = dict(run_settings["recipe"])
    version = planned.pop("version")
    if version != RECIPE_VERSION:
        raise InputError(
            f"the night was planned by a release with recipe {version}, this one has {RECIPE_VERSION}: finish it with that "
            "release, or plan another --date"
        )
    return NightSettings.model_validate({**settings.model_dump(), **planned})


def input_fingerprint(prompt: FrozenPrompt, drawing: dict[str, Any]) -> str:
    """Hash of all that a task's posters depend on but the model.

    Of images the bytes count, not the addresses. `drawing`: as `drawing_settings` returns them.
    """
    content = prompt.model_dump(
        mode="json", exclude={"snapshot": True, "reference": {"uri"}, "history": {"__all__": {"uri"}}}
    )
    return _hash("input", json.dumps([content, drawing], sort_keys=True))[:32]


def task_seed(user_id: str, item_id: str, model_version: str, fingerprint: str) -> int:
    """The seed of a task; candidate i draws with (seed, i).

    In 0..2^53-1, so that every JSON reader keeps it exact.
    """
    return int(_hash("seed", user_id, item_id, model_version, fingerprint)[:16], 16) >> 11


def poster_id(user_id: str, item_id: str, model_version: str, variant: int, fingerprint: str) -> str:
    """The id of a kept variant: the same input gives the same id on any machine and any day."""
    return _hash("poster", user_id, item_id, model_version, str(variant), fingerprint)[:32]


def share(user_id: str, purpose: str) -> float:
    """A stable number in [0, 1) for a user, independent between purposes."""
    return unit_interval(_joined("share", purpose, user_id))


def _hash(*parts: str) -> str:
    return hashlib.sha256(_joined(*parts)).hexdigest()


def _joined(*parts: str) -> bytes:
    # Length first, so that ("ab", "c") and ("a", "bc") differ.
    return b"".join(len(data).to_bytes(8, "big") + data for data in (part.encode() for part in parts))
