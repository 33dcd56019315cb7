"""Retention of adapters and snapshots in the bucket.

Rows and reasons stay, for they are the registry's history.
Objects go before their row says so: what dies in between is finished by the next call.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, delete, func, select, text, update
from sqlalchemy.orm import Session

from generator.feedback import registry
from generator.storage.objects import Store
from generator.storage.postgres import plain_errors
from schemas.errors import Refused
from schemas.faultpoints import reach
from schemas.settings import Settings
from schemas.tables import ModelVersion, PreferenceSnapshot, PreferenceSnapshotUser

DECIDED = ("refused", "failed", "retired")
"""States in which a version's adapter is not served."""

DROPPED = "adapter_dropped_at"
"""Name in a version's metrics: when its adapter was deleted."""

_OPEN = ("registered", "loaded", "canary", "champion")


def drop_adapters(engine: Engine, store: Store, settings: Settings, now: datetime, *, dry_run: bool = False) -> int:
    """Delete adapters of versions that were decided against long ago; how many went.

    Those that no version has go, too. That of the champion before this one stays: a rollback brings it back.
    """
    before = now - timedelta(days=settings.retention.adapters_days)
    with plain_errors(engine), Session(engine) as session:
        kept = _predecessor(session)
        old = session.scalars(
            select(ModelVersion.version)
            .where(
                ModelVersion.state.in_(DECIDED),
                ModelVersion.adapter_key.is_not(None),
                ModelVersion.updated_at < before,
                ModelVersion.version != (kept or ""),
            )
            .order_by(ModelVersion.number)
        ).all()
    if not dry_run:
        for version in old:
            _drop(engine, store, settings, version)
    return len(old) + _drop_orphans(
        engine, store, now - timedelta(days=settings.retention.orphan_days), dry_run=dry_run
    )


def _predecessor(session: Session) -> str | None:
    """The version that a rollback would bring back."""
    champion = registry.get_current(session, "champion")
    try:
        return registry.get_predecessor(session, champion).version if champion else None
    except Refused:
        return None


def _drop(engine: Engine, store: Store, settings: Settings, name: str) -> None:
    with plain_errors(engine), Session(engine) as session, session.begin():
        # Nobody promotes it meanwhile.
        version = session.get_one(ModelVersion, name, with_for_update=True)
        if version.state not in DECIDED or version.adapter_key is None:
            return
        for key in list(store.keys(version.adapter_key)):
            store.delete(key)
        reach("adapter deleted")
        if version.adapter_sha256:
            cache = settings.state_dir / "cache" / "adapters" / version.adapter_sha256[:16]
            shutil.rmtree(cache, ignore_errors=True)
        version.adapter_key = None
        version.metrics = {**version.metrics, DROPPED: datetime.now(UTC).isoformat(timespec="seconds")}


def _drop_orphans(engine: Engine, store: Store, before: datetime, *, dry_run: bool) -> int:
    """Adapters that a killed training left before its version named them; how many."""
    old = [entry.key for page in store.pages("models/") for entry in page if entry.modified_at < before]
    with plain_errors(engine), Session(engine) as session:
        named = tuple(session.scalars(select(ModelVersion.adapter_key).where(ModelVersion.adapter_key.is_not(None))))
    orphans = [key for key in old if not key.startswith(tuple(name for name in named if name))]
    if not dry_run:
        for key in orphans:
            store.delete(key)
    return len({key.rpartition("/")[0] for key in orphans})


def drop_snapshots(engine: Engine, store: Store, settings: Settings, now: datetime, *, dry_run: bool = False) -> int:
    """Delete old snapshots that no version in use or under way was trained from; how many went."""
    before = now - timedelta(days=settings.retention.snapshots_days)
    in_use = select(ModelVersion.snapshot_id).where(
        ModelVersion.state.in_(_OPEN), ModelVersion.snapshot_id == PreferenceSnapshot.snapshot_id
    )
    with plain_errors(engine), Session(engine) as session:
        rows = session.execute(
            select(PreferenceSnapshot.snapshot_id, PreferenceSnapshot.key).where(
                PreferenceSnapshot.created_at < before,
                text("NOT preference_snapshots.counts ?| ARRAY['purged_at', 'dropped_at']"),
                ~in_use.exists(),
            )
        ).all()
    for snapshot_id, key in rows if not dry_run else ():
        store.delete(key)
        with plain_errors(engine), Session(engine) as session, session.begin():
            session.execute(delete(PreferenceSnapshotUser).where(PreferenceSnapshotUser.snapshot_id == snapshot_id))
            session.execute(
                update(PreferenceSnapshot)
                .where(PreferenceSnapshot.snapshot_id == snapshot_id)
                .values(
                    counts=PreferenceSnapshot.counts.op("||")(
                        func.jsonb_build_object("dropped_at", datetime.now(UTC).isoformat(timespec="seconds"))
                    )
                )
            )
    return len(rows)
