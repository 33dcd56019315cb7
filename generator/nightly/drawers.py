"""Who draws for a user: the champion, or the canary for a stable share of the users."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.nightly.frozen_prompt import share
from schemas.hashing import weights_of
from schemas.settings import Settings
from schemas.settings_models import PIPELINE_VERSION
from schemas.tables import ModelVersion


@dataclass(frozen=True)
class Drawer:
    """A model version that draws, the number of its adapter in Triton, and what its weights are known by."""

    version: str
    number: int
    weights: str


@dataclass(frozen=True)
class Drawers:
    """The champion, and the canary for a stable share of the users."""

    champion: Drawer
    canary: Drawer | None
    canary_share: float

    def all(self) -> list[Drawer]:
        """Those who draw tonight."""
        return [self.champion, *([self.canary] if self.canary else [])]

    def drawer_for(self, user_id: str) -> Drawer:
        """The version that draws for a user: the same on every night while the canary and its share stay."""
        if self.canary and share(user_id, f"canary {self.canary.version}") < self.canary_share:
            return self.canary
        return self.champion

    @classmethod
    def read(cls, session: Session, settings: Settings, base_weights: str) -> Drawers:
        """Read the registry; before it has versions, the checkpoint as shipped draws.

        The registry is Pigeon's: a pipeline has one version, which draws for everybody. `base_weights`: as the model states them.
        """
        if settings.models.preset == "pipeline":
            return cls(Drawer(PIPELINE_VERSION, 1, weights_of(base_weights, None)), None, 0.0)
        rows = session.execute(
            select(ModelVersion.state, ModelVersion.version, ModelVersion.number, ModelVersion.adapter_sha256).where(
                ModelVersion.state.in_(("champion", "canary"))
            )
        )
        found = {
            state: Drawer(version, number, weights_of(base_weights, adapter))
            for state, version, number, adapter in rows
        }
        champion = found.get("champion", Drawer(f"{settings.models.preset}-1", 1, weights_of(base_weights, None)))
        return cls(champion, found.get("canary"), settings.retrain.canary_share)
