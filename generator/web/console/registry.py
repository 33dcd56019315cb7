"""Models for the console: states, gate and canary numbers, and what changes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import distinct_on

from generator.feedback import registry
from generator.web.console.sessions import reading
from schemas.errors import InputError
from schemas.settings import Settings
from schemas.tables import ClickModel, ModelEvent, ModelVersion

if TYPE_CHECKING:
    from generator.feedback.ports import RetrainContext

LAST_EVENTS = 50
MOST_FIGURES = 200
Figures = list[tuple[str, str]]
"""Names and values, as they are shown."""


@dataclass(frozen=True)
class VersionPage:
    """A version with its history."""

    version: ModelVersion
    figures: Figures
    events: list[tuple[ModelEvent, Figures]]
    moves: tuple[str, ...]
    """What an operator may do with it now."""


class Models:
    """Reads the registry, and changes it as the command line does."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine

    def page(self, before: int | None, limit: int) -> list[tuple[ModelVersion, ModelEvent | None]]:
        """Versions with a smaller number than `before`, the newest first, each with its last event."""
        query = select(ModelVersion).order_by(ModelVersion.number.desc()).limit(limit)
        if before is not None:
            query = query.where(ModelVersion.number < before)
        with reading(self._engine) as session:
            versions = list(session.scalars(query))
            names = [one.version for one in versions]
            events = session.scalars(
                select(ModelEvent)
                .ext(distinct_on(ModelEvent.version))
                .where(ModelEvent.version.in_(names))
                .order_by(ModelEvent.version, ModelEvent.event_id.desc())
            )
            last = {event.version: event for event in events}
        return [(one, last.get(one.version)) for one in versions]

    def clicks(self) -> ClickModel | None:
        """The click model that nights choose by."""
        with reading(self._engine) as session:
            return session.scalars(select(ClickModel).where(ClickModel.state == "active")).one_or_none()

    def get(self, name: str) -> VersionPage | None:
        """A version with its numbers and its latest events."""
        query = select(ModelEvent).where(ModelEvent.version == name).order_by(ModelEvent.event_id.desc())
        with reading(self._engine) as session:
            version = session.get(ModelVersion, name)
            events = list(session.scalars(query.limit(LAST_EVENTS)))
        if version is None:
            return None
        moves = [state for state in ("champion", "canary") if registry.allows(version, state)]
        moves += ["override"] if version.state == "refused" and version.number > 0 and version.adapter_key else []
        return VersionPage(
            version, flat(version.metrics), [(event, flat(event.figures)) for event in events], tuple(moves)
        )

    def change(self, move: str, name: str, reason: str, actor: str, hours: float) -> str:
        """Promote, begin a canary, override, or roll back (without a name); what was done, in words.

        Raises:
            InputError: no such move or version.
            Refused: the registry does not allow it.
            ServerUnavailable: Triton, Postgres or S3 is away.
        """
        from generator.feedback import canary, rollout

        moves: Mapping[str, Callable[[RetrainContext], None]] = {
            "champion": lambda context: rollout.promote(context, name, _by(reason, actor)),
            "canary": lambda context: canary.begin(context, name, _by(reason, actor)),
            "override": lambda context: rollout.override(context, name, actor, reason, hours),
            "rollback": lambda context: rollout.rollback(context, _by(reason, actor)),
        }
        if move not in moves:
            raise InputError(f"move {move!r}: one of {', '.join(moves)}")
        return self._with_servers(moves[move])

    def _with_servers(self, work: Callable[[RetrainContext], None]) -> str:
        from generator.feedback.backends import open_context
        from generator.feedback.ports import clear_errors

        said: list[str] = []
        context = open_context(self._settings, said.append)
        try:
            with clear_errors(context):
                work(context)
        finally:
            context.engine.dispose()
        return "; ".join(said)


def flat(values: Mapping[str, Any], prefix: str = "") -> Figures:
    """Nested figures as one list of names and values."""
    found: Figures = []
    for name, value in values.items():
        where = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found += flat(value, f"{where} · ")
        elif isinstance(value, str) or not isinstance(value, Sequence):
            found.append((where, f"{value:.4g}" if isinstance(value, float) else str(value)))
        else:
            found.append((where, ", ".join(f"{one:.4g}" if isinstance(one, float) else str(one) for one in value)))
    return found[:MOST_FIGURES]


def _by(reason: str, actor: str) -> str:
    """The registry notes the server's process as who changed it: the reason says who asked."""
    return f"{reason.strip()} ({actor}, at the console)"
