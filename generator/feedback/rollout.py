"""Promotion, canary and rollback: first the adapter answers in Triton, then the registry changes.

The registry changes in one transaction. Dying between the two leaves the old champion serving and an adapter too many in
memory; the same command again finishes the change. Adapters that were retired stay in memory for a grace, so that a rollback is
quick, and come back from the bucket after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from generator.feedback import registry
from generator.feedback.artifacts import fetch
from generator.feedback.ports import RetrainContext
from generator.feedback.retention import DROPPED
from generator.feedback.webhook import tell
from schemas.errors import InputError, ModelError, Refused
from schemas.faultpoints import reach
from schemas.tables import ModelVersion

ENDED = ("retired", "refused", "failed")


def ensure_serving(context: RetrainContext, version: ModelVersion, *, probe: bool = True) -> None:
    """Load a version's adapter into Triton, from the bucket if need be.

    And draw an image with it (`probe`).

    Raises:
        Refused: the version has no adapter to load.
        ModelError: the adapter is missing, altered or does not fit.
    """
    reach("before install")
    if version.adapter_key is not None and version.adapter_sha256 is not None:
        # Also when the number is loaded: whether it is this very adapter, only serving knows.
        context.serving.install(
            version.number, fetch(context.store, version.adapter_key, version.adapter_sha256, context.cache)
        )
    elif version.number not in context.serving.loaded():
        cure = (
            "`pigeon models build` and `pigeon models load`"
            if version.parent is None
            else "`pigeon retrain` finishes it"
        )
        if DROPPED in version.metrics:
            cure = f"it was deleted on {version.metrics[DROPPED][:10]} (retention.adapters_days); `pigeon retrain` trains another"
        raise Refused(f"{version.version} (adapter {version.number}) is not in Triton and has no artifact: {cure}")
    reach("installed")
    if probe:
        context.serving.probe(version.number)
    reach("probed")


def ensure_drawers(context: RetrainContext, drawers: Sequence[tuple[str, int]], *, has_repository: bool) -> None:
    """Have Triton serve the versions (name, number of the adapter) that a night is drawn by.

    Adapters that are missing are loaded.

    Without the server's repository on this machine what is loaded is all that can be asked.

    Raises:
        ModelError: the server has another build, or a version that cannot be loaded; the message names the fix.
        ServerUnavailable: Triton, Postgres or S3 is away.
    """
    if has_repository:
        context.serving.check_base()
    loaded = context.serving.loaded()
    with Session(context.engine, expire_on_commit=False) as session:
        versions = {name: session.get(ModelVersion, name) for name, _ in drawers}
    for name, number in drawers:
        version = versions[name]
        if version is not None and version.adapter_key is not None and has_repository:
            try:
                ensure_serving(context, version, probe=number not in loaded)
            except Refused as error:
                raise ModelError(str(error)) from error
            if number not in loaded:
                context.echo(f"adapter {number} of {name} was not in Triton: loaded")
        elif number not in loaded:
            raise ModelError(
                f"Triton does not serve adapter {number} of {name}: `pigeon models load` and `pigeon models sync`"
            )


def promote(context: RetrainContext, name: str, reason: str, figures: Mapping[str, Any] | None = None) -> None:
    """Make a version champion; all users of the next night are drawn by it.

    `figures`: what the reason rests on.
    """
    _check_reason(reason)
    with Session(context.engine, expire_on_commit=False) as session, session.begin():
        champion = registry.ensure_champion(session, context.settings.models.preset, context.base_sha256)
        version = registry.get(session, name)
        if champion.version != name:
            _check_allowed(session, version, "champion")
    ensure_serving(context, version)
    reach("before change")
    with Session(context.engine, expire_on_commit=False) as session, session.begin():
        replaced = registry.make_champion(session, name, reason, figures)
    reach("changed")
    if replaced is None:
        context.echo(f"{name} is champion already")
        return
    context.echo(f"{name} is champion, {replaced.version} retired")
    tell(context, "promoted", name, replaced.version, reason, figures or {})


def canary(context: RetrainContext, name: str, reason: str, figures: Mapping[str, Any] | None = None) -> None:
    """Let a version draw for `retrain.canary_share` of the next night's users.

    `figures`: what it will be judged by.
    """
    _check_reason(reason)
    with Session(context.engine, expire_on_commit=False) as session, session.begin():
        registry.ensure_champion(session, context.settings.models.preset, context.base_sha256)
        version = registry.get(session, name)
        if version.state != "canary":
            _check_allowed(session, version, "canary")
    ensure_serving(context, version)
    reach("before change")
    with Session(context.engine) as session, session.begin():
        replaced = registry.make_canary(session, name, reason, figures)
        share = f"{context.settings.retrain.canary_share:.0%} of the next night's users"
        context.echo(f"{name} is canary for {share}" + (f", {replaced.version} retired" if replaced else ""))
    reach("changed")


def override(context: RetrainContext, name: str, by: str, reason: str, hours: float) -> None:
    """Load a refused version beside the champion, by somebody's decision that ends after `hours`."""
    with Session(context.engine, expire_on_commit=False) as session, session.begin():
        registry.ensure_champion(session, context.settings.models.preset, context.base_sha256)
        expires = session.scalars(select(func.now() + timedelta(hours=hours))).one()
        version = registry.override(session, name, by, reason, expires)
    ensure_serving(context, version)
    context.echo(f"{name} is {version.state} by {by}'s override until {expires:%Y-%m-%d %H:%M %Z}")


def withdraw(context: RetrainContext, name: str, reason: str, figures: Mapping[str, Any]) -> None:
    """End a canary: the champion draws for all users again."""
    with Session(context.engine) as session, session.begin():
        registry.change_state(session, name, "retired", reason, figures)
    context.echo(f"canary {name} withdrawn: {reason}")
    tell(context, "withdrawn", name, None, reason, figures)


def rollback(context: RetrainContext, reason: str) -> None:
    """Withdraw the running canary; without one, bring back the champion before this one."""
    _check_reason(reason)
    with Session(context.engine, expire_on_commit=False) as session, session.begin():
        champion = registry.ensure_champion(session, context.settings.models.preset, context.base_sha256)
        running = registry.get_current(session, "canary")
        if running is not None:
            registry.change_state(session, running.version, "retired", f"rolled back: {reason}")
            context.echo(f"canary {running.version} withdrawn, champion {champion.version} draws for all users")
            return
        before = registry.get_predecessor(session, champion)
    ensure_serving(context, before)
    with Session(context.engine) as session, session.begin():
        if (now := registry.get_current(session, "champion")) is None or now.version != champion.version:
            raise Refused(
                f"the champion changed meanwhile to {now.version if now else 'none'}; nothing was rolled back"
            )
        registry.make_champion(session, before.version, f"rollback of {champion.version}: {reason}")
        context.echo(f"{before.version} is champion again, {champion.version} retired")


def adopt(context: RetrainContext, reason: str) -> None:
    """Make the settings' checkpoint champion as it is, once Triton serves it; retire earlier versions."""
    _check_reason(reason)
    context.serving.check_base()
    context.serving.probe(1)
    with Session(context.engine) as session, session.begin():
        champion = registry.adopt(session, context.settings.models.preset, context.base_sha256, reason)
        context.echo(f"{champion.version} is champion: checkpoint {context.base_sha256} as it is")


def sync(context: RetrainContext) -> None:
    """Load each adapter that serves or waits to, after Triton's repository was rebuilt or lost."""
    with Session(context.engine, expire_on_commit=False) as session, session.begin():
        registry.ensure_champion(session, context.settings.models.preset, context.base_sha256)
        wanted = [v for v in registry.list_versions(session) if v.state in {"champion", "canary", "loaded"}]
    for version in wanted:
        ensure_serving(context, version)
        context.echo(f"{version.version} ({version.state}): adapter {version.number} answers")


_BUSY = text(
    """
SELECT DISTINCT t.adapter_version FROM night_tasks t JOIN night_runs r USING (run_id)
WHERE t.status = 'pending' AND r.status IN ('planned', 'running', 'failed') AND r.started_at > now() - interval '3 days'
"""
)


def unload(context: RetrainContext) -> list[str]:
    """Take adapters out of Triton that were retired, refused or failed `retrain.unload_after_hours` ago.

    Returns their versions.

    One whose files were deleted goes at once; one that a night still has to draw with stays.
    """
    hours = context.settings.retrain.unload_after_hours
    ended = ModelVersion.state.in_(ENDED) & (ModelVersion.number > 1)
    old = (ModelVersion.updated_at <= func.now() - timedelta(hours=hours)) | ModelVersion.adapter_key.is_(None)
    with Session(context.engine, expire_on_commit=False) as session:
        versions = session.scalars(select(ModelVersion).where(ended, old).order_by(ModelVersion.number)).all()
        busy = set(session.scalars(_BUSY))
    loaded = context.serving.loaded() if versions else frozenset()
    gone = [version for version in versions if version.number in loaded - busy]
    for version in gone:
        context.serving.remove(version.number)
        context.echo(f"{version.version} ({version.state}): adapter {version.number} unloaded")
    return [version.version for version in gone]


def _check_allowed(session: Session, version: ModelVersion, state: str) -> None:
    if not registry.allows(version, state):
        raise Refused(f"{version.version} is {version.state} and cannot become {state}: {registry.advice(version)}")
    registry.check_override(session, version)


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise InputError("--reason must not be empty: the registry keeps why each model came and went")
