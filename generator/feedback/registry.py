"""Model versions, their states and the history of both.

    registered ──> loaded ──> canary ──> champion ──> retired
        │            │          │                        │
        ├─> refused <┤          └────────> retired       └──> champion (rollback)
        └─> failed  <┘   (refused ──> loaded: by an override alone, until it expires)

Every change is one transaction that writes the new state and an event with its reason. A partial unique index allows one champion,
so that a promotion which dies anywhere leaves the old champion or the new one, never none or two; running it again finishes it.

Adapters belong to the checkpoint they were trained on. When that changes, `adopt` starts over: the versions before keep their rows, but
their numbers turn negative, for Triton no longer has a place for them.

`get_` and `list_` functions, `allows` and `advice` read; the others write.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from schemas.errors import InputError, Refused
from schemas.tables import ModelEvent, ModelOverride, ModelVersion

# Taken for the length of each changing transaction: numbers are unique and two promotions cannot interleave.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('pigeon:model_versions', 0))")

_MOVES: Mapping[str, frozenset[str]] = {
    "registered": frozenset({"loaded", "refused", "failed"}),
    "loaded": frozenset({"canary", "champion", "refused", "failed", "retired"}),
    "canary": frozenset({"champion", "retired", "failed"}),
    "champion": frozenset({"retired"}),
    "retired": frozenset({"canary", "champion"}),
    "refused": frozenset(),
    "failed": frozenset({"loaded"}),
}


def current_actor() -> str:
    """The user and process that change a state, for the history."""
    return f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}:{os.getpid()}"


def ensure_champion(session: Session, preset: str, base_sha256: str) -> ModelVersion:
    """Return the champion; on first use, make the checkpoint as shipped version 1 and champion.

    Raises:
        Refused: the registry's versions belong to other base weights than `base_sha256`; adapters do not carry over.
    """
    session.execute(_LOCK)
    champion = get_current(session, "champion")
    if champion is None and session.scalar(select(func.count()).select_from(ModelVersion)) == 0:
        champion = ModelVersion(version=f"{preset}-1", number=1, state="champion", base_sha256=base_sha256, metrics={})
        session.add(champion)
        session.flush()
        _record(session, champion, None, "the checkpoint as shipped")
    if champion is None:
        raise Refused(
            "no champion in model_versions although versions exist: `pigeon models promote VERSION --reason ...`"
        )
    check_base(session, base_sha256)
    return champion


def check_base(session: Session, base_sha256: str) -> None:
    """Refuse when the champion, if there is one yet, belongs to another checkpoint.

    Raises:
        Refused: it does.
    """
    champion = get_current(session, "champion")
    if champion is not None and champion.base_sha256 != base_sha256:
        raise Refused(
            f"champion {champion.version} belongs to checkpoint {champion.base_sha256[:12]}, "
            f"models.checkpoint is {base_sha256[:12]}: set it back, or `pigeon models adopt --reason ...` to start over with it"
        )


def adopt(session: Session, preset: str, base_sha256: str, reason: str) -> ModelVersion:
    """Make another checkpoint champion as it is and retire all versions of the one before."""
    session.execute(_LOCK)
    champion = get_current(session, "champion")
    if champion is None or champion.base_sha256 == base_sha256:
        return champion or ensure_champion(session, preset, base_sha256)
    for version in list_versions(session):
        if "retired" in _MOVES[version.state]:
            change_state(session, version.version, "retired", f"another checkpoint was adopted: {reason}")
        elif version.state == "registered":
            change_state(session, version.version, "refused", f"another checkpoint was adopted: {reason}")
    versions = list_versions(session)
    lowest = min(0, *(version.number for version in versions))
    for place, version in enumerate((v for v in versions if v.number > 0), start=1):
        version.number = lowest - place
    session.flush()
    made = ModelVersion(
        version=_next_name(session, preset), number=1, state="champion", base_sha256=base_sha256, metrics={}
    )
    session.add(made)
    session.flush()
    _record(session, made, None, f"checkpoint adopted as it is: {reason}")
    return made


def get_current(session: Session, state: str) -> ModelVersion | None:
    """The one version in a state that at most one can have (champion, canary)."""
    return session.scalars(select(ModelVersion).where(ModelVersion.state == state)).one_or_none()


def get(session: Session, version: str) -> ModelVersion:
    """A version by name.

    Raises:
        InputError: there is none; the message lists those that are.
    """
    found = session.get(ModelVersion, version)
    if found is None:
        known = ", ".join(v.version for v in list_versions(session)) or "none yet: `pigeon retrain` registers them"
        raise InputError(f"no model version {version!r}; there are: {known}")
    return found


def list_versions(session: Session) -> Sequence[ModelVersion]:
    """All versions, oldest first."""
    return session.scalars(select(ModelVersion).order_by(ModelVersion.number)).all()


def list_events(session: Session, version: str) -> Sequence[ModelEvent]:
    """A version's events, oldest first."""
    return session.scalars(select(ModelEvent).where(ModelEvent.version == version).order_by(ModelEvent.event_id)).all()


def register(
    session: Session, preset: str, parent: ModelVersion, snapshot_id: str, training_key: str, reason: str
) -> ModelVersion:
    """Register a challenger of champion `parent`, trained from a snapshot by a recipe.

    `training_key`: the recipe, a hash of the training's settings. When snapshot, parent and recipe have met before, the version
    that came of it is returned; when `parent` itself was trained from the snapshot, `parent`.
    """
    session.execute(_LOCK)
    if parent.snapshot_id == snapshot_id:
        return parent
    same = select(ModelVersion).where(ModelVersion.snapshot_id == snapshot_id, ModelVersion.parent == parent.version)
    same = same.where(ModelVersion.metrics["recipe"].astext == training_key)
    found = session.scalars(same.order_by(ModelVersion.number.desc()).limit(1)).one_or_none()
    if found is not None:
        return found
    number = 1 + (session.scalar(select(func.max(ModelVersion.number))) or 0)
    made = ModelVersion(
        version=_next_name(session, preset),
        number=number,
        state="registered",
        parent=parent.version,
        base_sha256=parent.base_sha256,
        snapshot_id=snapshot_id,
        metrics={"recipe": training_key},
    )
    session.add(made)
    session.flush()
    _record(session, made, None, reason)
    return made


def change_state(
    session: Session, version: str, to_state: str, reason: str, figures: Mapping[str, Any] | None = None
) -> ModelVersion:
    """Change a version's state; to its own state nothing is changed. `figures`: what the reason rests on.

    Raises:
        InputError: no such version, or no reason given.
        Refused: the state machine does not allow it.
    """
    if not reason.strip():
        raise InputError("--reason must not be empty: the registry keeps why each model came and went")
    session.execute(_LOCK)
    found = get(session, version)
    session.refresh(found, with_for_update=True)
    if found.state == to_state:
        return found
    if to_state not in _MOVES[found.state]:
        allowed = ", ".join(sorted(_MOVES[found.state])) or "nothing"
        raise Refused(f"{version} is {found.state}: it can become {allowed}, not {to_state}")
    return _move(session, found, to_state, reason, figures)


def note(session: Session, version: ModelVersion, reason: str, figures: Mapping[str, Any]) -> None:
    """Write an event that changes no state: what was found out about a version."""
    _record(session, version, version.state, reason, figures)


def override(session: Session, version: str, by: str, reason: str, expires_at: datetime) -> ModelVersion:
    """Let a refused version be loaded, and made canary or champion until `expires_at`.

    A later one prolongs it.

    Raises:
        InputError: no such version, no name, or no reason.
        Refused: it was not refused, or has no adapter to load.
    """
    if not by.strip() or not reason.strip():
        raise InputError("--by and --reason must not be empty: the registry keeps who overrode the gate, and why")
    session.execute(_LOCK)
    found = get(session, version)
    session.refresh(found, with_for_update=True)
    if found.state != "refused" and get_override(session, version) is None:
        raise Refused(f"{version} is {found.state}: only a refused version needs an override")
    if found.number < 0 or found.adapter_key is None:
        raise Refused(f"{version} has no adapter that could be loaded")
    session.add(ModelOverride(version=version, by=by, reason=reason, expires_at=expires_at))
    words = f"overridden by {by} until {expires_at:%Y-%m-%d %H:%M %Z}: {reason}"
    if found.state == "refused":
        return _move(session, found, "loaded", words, {})
    note(session, found, words, {})
    return found


def get_override(session: Session, version: str) -> ModelOverride | None:
    """The override of a version that ends last, if it has any."""
    query = select(ModelOverride).where(ModelOverride.version == version)
    return session.scalars(query.order_by(ModelOverride.expires_at.desc()).limit(1)).one_or_none()


def check_override(session: Session, version: ModelVersion) -> None:
    """Refuse a version that may serve by an override only, once that has expired.

    Raises:
        Refused: it has.
    """
    found = get_override(session, version.version)
    if found is not None and version.state in {"loaded", "canary"} and not is_live(session, found):
        raise Refused(
            f"{version.version}: the override by {found.by} expired at {found.expires_at:%Y-%m-%d %H:%M %Z}: "
            "`pigeon models override` prolongs it"
        )


def is_live(session: Session, override: ModelOverride) -> bool:
    """Whether an override has not expired, by the database's clock."""
    return bool(session.scalar(select(func.now() < override.expires_at)))


def _move(
    session: Session, version: ModelVersion, to_state: str, reason: str, figures: Mapping[str, Any] | None
) -> ModelVersion:
    before, version.state = version.state, to_state
    version.updated_at = func.now()  # the database's clock, as for all stamps of a row
    _record(session, version, before, reason, figures)
    return version


def make_champion(
    session: Session, version: str, reason: str, figures: Mapping[str, Any] | None = None
) -> ModelVersion | None:
    """Retire the champion and promote `version` in this transaction.

    Returns:
        The version it replaced; None when `version` was champion already, or there was no champion.

    Raises:
        InputError: no such version, or no reason given.
        Refused: the version cannot become champion.
    """
    session.execute(_LOCK)
    champion = get_current(session, "champion")
    if champion is not None and champion.version == version:
        return None
    challenger = get(session, version)
    if not allows(challenger, "champion"):
        raise Refused(f"{version} is {challenger.state} and cannot become champion: {advice(challenger)}")
    check_override(session, challenger)
    if champion is not None:
        change_state(session, champion.version, "retired", f"replaced by {version}: {reason}")
    change_state(session, version, "champion", reason, figures)
    return champion


def make_canary(
    session: Session, version: str, reason: str, figures: Mapping[str, Any] | None = None
) -> ModelVersion | None:
    """Let `version` draw for the canary share; returns the canary it replaced.

    Raises:
        InputError: no such version, or no reason given.
        Refused: the version cannot become canary.
    """
    session.execute(_LOCK)
    running = get_current(session, "canary")
    if running is not None and running.version == version:
        return None
    challenger = get(session, version)
    if not allows(challenger, "canary"):
        raise Refused(f"{version} is {challenger.state} and cannot become canary: {advice(challenger)}")
    check_override(session, challenger)
    if running is not None:
        change_state(session, running.version, "retired", f"replaced by canary {version}: {reason}")
    change_state(session, version, "canary", reason, figures)
    return running


def get_predecessor(session: Session, champion: ModelVersion) -> ModelVersion:
    """The version that a rollback brings back: what `champion` replaced when it first became champion.

    The first time, so that rolling back twice goes two steps back instead of returning to what was just withdrawn.

    Raises:
        Refused: it replaced none, or one of an earlier checkpoint.
    """
    first_promotion = select(func.min(ModelEvent.event_id)).where(
        ModelEvent.version == champion.version, ModelEvent.to_state == "champion"
    )
    retired = (
        select(ModelEvent.version)
        .where(ModelEvent.to_state == "retired", ModelEvent.from_state == "champion")
        .where(ModelEvent.event_id < first_promotion.scalar_subquery())
        .order_by(ModelEvent.event_id.desc())
        .limit(1)
    )
    version = session.scalars(retired).one_or_none()
    if version is None:
        raise Refused(f"champion {champion.version} replaced no other version: there is nothing to roll back to")
    before = get(session, version)
    if before.number < 0:
        raise Refused(
            f"{version}, the champion before {champion.version}, belongs to an earlier checkpoint: nothing to roll back to"
        )
    return before


def allows(version: ModelVersion, state: str) -> bool:
    """Whether the state machine has this step, and Triton a place for this version."""
    return state in _MOVES[version.state] and version.number > 0


def advice(version: ModelVersion) -> str:
    """What to do about a version that cannot serve."""
    if version.number < 0:
        return "it belongs to an earlier checkpoint"
    if version.state == "registered":
        return "it is not loaded in Triton yet; `pigeon retrain` finishes it"
    if version.state == "refused":
        return "`pigeon models override` lets a named person decide otherwise, for a time"
    return "see its reason in `pigeon models list`"


def _next_name(session: Session, preset: str) -> str:
    return f"{preset}-{1 + (session.scalar(select(func.count()).select_from(ModelVersion)) or 0)}"


def _record(
    session: Session,
    version: ModelVersion,
    before: str | None,
    reason: str,
    figures: Mapping[str, Any] | None = None,
) -> None:
    event: dict[str, Any] = {"version": version.version, "from_state": before, "to_state": version.state}
    session.add(ModelEvent(**event, reason=reason, actor=current_actor(), figures=dict(figures or {})))
    session.flush()
