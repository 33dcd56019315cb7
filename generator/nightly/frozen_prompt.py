"""What a plan freezes of a task, and the ids and seeds that follow from it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from schemas.errors import InputError
from schemas.hashing import unit_interval
from schemas.preferences import PromptSnapshot
from schemas.settings import NightSettings

# Part of every fingerprint: raise it when composing or choosing would give something else from the same input.
RECIPE_VERSION = 2
ANSWERING = ("alphas", "answers", "temperatures")
"""Settings that the answers depend on."""
CHOOSING = (
    "policy variants max_draws exploration reference_weight min_reference_score near_duplicate_distance blank_stddev "
    "sizes webp_quality font"
)
"""Settings that only choosing, drawing and composing depend on."""


@dataclass(frozen=True)
class ServedVersions:
    """What the served model calls its parts; a plan is made for them."""

    tokenizer: str
    drawing: str
    base_weights: str

    @classmethod
    def of(cls, model: Served) -> ServedVersions:
        """As the server says now."""
        return cls(model.tokenizer_version, model.drawing_version, model.base_weights)


class Served(Protocol):
    """The versions of a served model (`generator.serving.api.ServedPigeon`)."""

    @property
    def tokenizer_version(self) -> str: ...

    @property
    def drawing_version(self) -> str: ...

    @property
    def base_weights(self) -> str: ...


class FrozenImage(BaseModel):
    """An item's title and image as the plan saw them; `sha256` is the hash of the image's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: str
    title: str
    uri: str
    sha256: str
    picture_key: str | None = None
    """Key of a drawn picture, in place of the item's own."""

    @model_serializer(mode="wrap")
    def _without_an_empty_key(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A catalogue picture as releases know it that have no drawn ones."""
        fields: dict[str, Any] = serialize(self)
        return fields if self.picture_key else {name: fields[name] for name in fields if name != "picture_key"}


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


def drawing_settings(settings: NightSettings, drawing_version: str) -> dict[str, Any]:
    """What changes which posters come of a prompt but the model's weights.

    Settings, and the version of what draws.
    """
    dumped = settings.model_dump(mode="json")
    names = (*ANSWERING, *CHOOSING.split(), *(("reward_exploration",) if settings.policy == "reward" else ()))
    return {"version": RECIPE_VERSION, "drawing_version": drawing_version, **{name: dumped[name] for name in names}}


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
    planned.pop("drawing_version")
    return NightSettings.model_validate({**settings.model_dump(), **planned})


def check_served(served: ServedVersions, run_settings: dict[str, Any]) -> None:
    """Refuse to draw a night with another model than it was planned for.

    Its rows would name the wrong one.

    Raises:
        InputError: tokenizer, decoder or base weights are others now.
    """
    planned = run_settings.get("served", {})
    others = [name for name, version in asdict(served).items() if planned.get(name, version) != version]
    if others:
        raise InputError(
            f"the night was planned for another model than is served ({', '.join(others)} differ): serve that one "
            "again and resume, or plan another --date"
        )


def task_seed(user_id: str, item_id: str, weights: str, answers: str) -> int:
    """The seed of a task: it masks the history, and answer i is sampled with (seed, i).

    `answers`: the answers' fingerprint, so that stored answers keep their seed. In 0..2^53-1, so that every JSON reader
    keeps it exact.
    """
    return int(hash_parts("seed", user_id, item_id, weights, answers)[:16], 16) >> 11


def poster_id(user_id: str, item_id: str, weights: str, variant: int, fingerprint: str, picture_key: str) -> str:
    """The id of a kept variant: the same input and picture give the same id on any machine and any day."""
    return hash_parts("poster", user_id, item_id, weights, str(variant), fingerprint, picture_key)[:32]


def share(user_id: str, purpose: str) -> float:
    """A stable number in [0, 1) for a user, independent between purposes."""
    return unit_interval(_joined("share", purpose, user_id))


def share_prefix(purpose: str) -> bytes:
    """What stands before the user's id, and its length, in the bytes that `share` is the hash of."""
    return _joined("share", purpose)


def hash_parts(*parts: str) -> str:
    """SHA-256 of texts, of which none can run into the next."""
    return hashlib.sha256(_joined(*parts)).hexdigest()


def _joined(*parts: str) -> bytes:
    # Length first, so that ("ab", "c") and ("a", "bc") differ.
    data = [part.encode() for part in parts]
    return b"".join([piece for one in data for piece in (len(one).to_bytes(8, "big"), one)])
