"""The steps of `pigeon retrain`: pairs, snapshot, registry, DPO, gate, promotion.

A version is known by its snapshot and its parent, a snapshot by its content: after a crash the same command finds what is done, in the
registry and in the work folder, and goes on from there. Only a refused or failed challenger is final for its snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from generator.feedback import gate, gate_metrics, pairs, registry, rollout, split
from generator.feedback.artifacts import fetch, upload
from generator.feedback.gate_metrics import DrawnScores
from generator.feedback.ports import RetrainContext, clear_errors
from generator.feedback.snapshot import Snapshot, write
from generator.serving.api import InferenceCorrupt, InferenceRejected
from generator.storage.lease import Lease, lead
from schemas.errors import ModelError, Refused
from schemas.tables import ModelVersion

Promotion = Literal["none", "canary", "champion"]
OFFLINE = tuple(check for check in gate.CHECKS if check.metric in {"accuracy", "margin", "kl"})


@dataclass(frozen=True)
class Outcome:
    """Result of a retraining; `version` is None after a dry run."""

    version: str | None
    snapshot: str | None
    counts: dict[str, int]
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class _Challenge:
    """What the steps from training to the gate share."""

    context: RetrainContext
    lease: Lease
    window: tuple[datetime, datetime]
    snapshot: Snapshot
    champion: ModelVersion
    champion_dir: Path | None
    """Its adapter's folder; None for the checkpoint as shipped."""
    version: ModelVersion
    """The challenger."""


def retrain(
    context: RetrainContext, day: date, *, min_pairs: int, promote: Promotion, dry_run: bool = False
) -> Outcome:
    """Retrain on the feedback of the `retrain.window_days` that end with `day` (UTC).

    Raises:
        LockHeld: another retrain is under way.
        Refused: too little feedback, a leak, nothing new since the last time, or the gate refused; with the reasons.
        ModelError: the challenger could not be loaded; it is marked failed and the champion serves on.
        ServerUnavailable: a server is away; the same command goes on later.
    """
    with lead(context.engine, "retrain") as lease, clear_errors(context):
        return _steps(context, lease, day, min_pairs, promote, dry_run)


def _steps(
    context: RetrainContext, lease: Lease, day: date, min_pairs: int, promote: Promotion, dry_run: bool
) -> Outcome:
    settings = context.settings.retrain
    stop = datetime.combine(day + timedelta(days=1), time(), UTC)
    window = (stop - timedelta(days=settings.window_days), stop)
    with Session(context.engine) as session:
        mined = pairs.mine(session, *window, score_share=settings.score_pairs_share)
    divided = split.divide(mined.pairs, settings.holdout_share)
    counts = {**mined.counts, **{f"{name}_pairs": len(getattr(divided, name)) for name in split.SPLITS}}
    context.echo(
        f"feedback of {settings.window_days} days to {day}: {counts['showings']} showings, {counts['clicked']} clicked -> "
        f"{counts['feedback_pairs']} feedback pairs + {counts['score_pairs']} score-ranked = {counts['train_pairs']} to train, "
        f"{counts['holdout_pairs']} of held-out users, {counts['future_pairs']} newest kept back"
    )
    split.check_leaks(divided)
    split.check_enough(divided, min_pairs, settings.gate_min_pairs)
    if dry_run:
        context.echo("dry run: nothing was written")
        return Outcome(None, None, counts, {})

    with Session(context.engine, expire_on_commit=False) as session, session.begin():
        lease.check(session.connection())
        champion = registry.ensure_champion(session, context.settings.models.preset, context.base_sha256)
        snapshot = write(session, context.store, divided, window, counts)
        reason = f"DPO on {counts['train_pairs']} pairs"
        version = registry.register(
            session, context.settings.models.preset, champion, snapshot.snapshot_id, _training_key(context), reason
        )
    if version.state in {"refused", "failed", "retired"}:
        raise Refused(f"nothing new: {version.version} was trained from this very feedback and is {version.state}")
    if version.state == "champion":
        context.echo(f"nothing new: {version.version} was trained from this very feedback and is champion")
        return Outcome(version.version, snapshot.snapshot_id, counts, _metrics_of(version))
    context.echo(f"snapshot {snapshot.snapshot_id[:12]} -> {version.version}, challenger of {champion.version}")

    champion_dir = _adapter(context, champion)
    challenge = _Challenge(context, lease, window, snapshot, champion, champion_dir, version)
    adapter_dir = _train(challenge)
    metrics = _metrics_of(version)
    if version.state == "registered":
        metrics = _judge(challenge, adapter_dir)
    _roll_out(context, version, promote)
    return Outcome(version.version, snapshot.snapshot_id, counts, metrics)


def _train(challenge: _Challenge) -> Path:
    """The challenger's adapter folder; trained and stored unless that has been done."""
    context, version, snapshot = challenge.context, challenge.version, challenge.snapshot
    if version.adapter_key and version.adapter_sha256:
        return fetch(context.store, version.adapter_key, version.adapter_sha256, context.cache)
    champion = challenge.champion_dir
    out = context.work / f"{snapshot.snapshot_id}-{champion.name if champion else 'shipped'}-{_training_key(context)}"
    try:
        trained = context.trainer.train(champion, snapshot.pairs.select("train"), out)
    except ModelError as error:
        _record_verdict(challenge, "failed", str(error), {}, (str(error),))
        raise ModelError(f"{version.version} failed: {error}; {version.parent} serves on") from error
    key, sha256 = upload(context.store, version.version, trained.adapter_dir)
    with Session(context.engine) as session, session.begin():
        challenge.lease.check(session.connection())
        row = registry.get(session, version.version)
        row.adapter_key, row.adapter_sha256 = key, sha256
        row.metrics = {**row.metrics, "train": finite(trained.figures)}
    version.adapter_key, version.adapter_sha256 = key, sha256
    context.echo(f"{version.version}: adapter stored at s3://{context.store.bucket}/{key}")
    return trained.adapter_dir


def _judge(challenge: _Challenge, adapter: Path) -> dict[str, float | None]:
    """Measure the challenger and put it through the gate; it is loaded, refused or failed afterwards.

    Cheap figures come first: a challenger that ranks users' choices worse is never loaded.
    """
    context, version, champion = challenge.context, challenge.version, challenge.champion
    settings, trainer, pairs = context.settings.retrain, context.trainer, challenge.snapshot.pairs
    judged = trainer.judge(adapter, challenge.champion_dir, pairs.select("holdout", "feedback"))
    figures = gate_metrics.figures(judged)
    figures["accuracy_future"] = None
    if later := pairs.select("future", "feedback"):
        figures["accuracy_future"] = trainer.judge(adapter, challenge.champion_dir, later).accuracy
    verdict = gate.decide(figures, settings, OFFLINE)
    if verdict.passed:
        try:
            figures |= gate_metrics.figures(judged, *_draw_beside(challenge, adapter))
        except (ModelError, InferenceRejected, InferenceCorrupt) as error:
            _record_verdict(challenge, "failed", str(error), figures, (str(error),))
            context.serving.remove(version.number)
            raise ModelError(f"{version.version} failed: {error}; {champion.version} serves on") from error
        verdict = gate.decide(figures, settings)
    for reason in verdict.reasons:
        context.echo(f"gate: {reason}")
    if not verdict.passed:
        _record_verdict(challenge, "refused", verdict.refusal, figures, verdict.reasons)
        context.serving.remove(version.number)
        raise Refused(f"{version.version} refused by the gate: {verdict.refusal}; {champion.version} serves on")
    _record_verdict(challenge, "loaded", "passed the gate", figures, verdict.reasons)
    version.state = "loaded"
    return figures


def _draw_beside(challenge: _Challenge, adapter: Path) -> tuple[DrawnScores | None, DrawnScores | None]:
    """Load the challenger and draw held-out tasks with it and with the champion: scores of both."""
    context, version, champion = challenge.context, challenge.version, challenge.champion
    settings = context.settings.retrain
    context.serving.install(version.number, adapter)
    context.serving.probe(version.number)
    with Session(context.engine) as session:
        tasks = gate_metrics.held_out_tasks(
            session, *challenge.window, holdout_share=settings.holdout_share, limit=settings.gate_tasks
        )
    context.echo(f"{version.version}: loaded beside {champion.version}; both draw {len(tasks)} held-out tasks")
    rollout.ensure_serving(context, champion)
    return gate_metrics.draw(context, tasks, version.number), gate_metrics.draw(context, tasks, champion.number)


def _record_verdict(
    challenge: _Challenge, state: str, reason: str, figures: Mapping[str, Any], reasons: tuple[str, ...]
) -> None:
    """Change the challenger's state and write what the gate measured, in one transaction."""
    with Session(challenge.context.engine) as session, session.begin():
        challenge.lease.check(session.connection())
        row = registry.change_state(session, challenge.version.version, state, reason)
        row.metrics = {
            **row.metrics,
            "gate": {**finite(figures), "passed": state == "loaded", "reasons": list(reasons)},
        }


def _roll_out(context: RetrainContext, version: ModelVersion, promote: Promotion) -> None:
    if promote == "champion":
        rollout.promote(context, version.version, "passed the gate, --promote champion")
    elif promote == "canary" and version.state in {"loaded", "canary"}:
        rollout.canary(context, version.version, "passed the gate, --promote canary")
    else:
        context.echo(
            f"{version.version} is {version.state}; `pigeon models promote {version.version} --reason ...` when you like"
        )


def _adapter(context: RetrainContext, version: ModelVersion) -> Path | None:
    """A version's adapter folder; None for the checkpoint as shipped."""
    if version.adapter_key is None or version.adapter_sha256 is None:
        return None
    return fetch(context.store, version.adapter_key, version.adapter_sha256, context.cache)


def _training_key(context: RetrainContext) -> str:
    """Hash of what a training depends on but its pairs and reference; part of its work folder's name.

    So a training resumes only with the settings that it started with.
    """
    s = context.settings.retrain
    named = f"{context.base_sha256} {s.beta} {s.learning_rate} {s.batch_size} {s.epochs} {s.seed}"
    return hashlib.sha256(named.encode()).hexdigest()[:8]


def finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures for a JSON column, which cannot have NaN: what is not finite becomes null."""
    return {k: None if isinstance(v, float) and not (-1.7e308 < v < 1.7e308) else v for k, v in figures.items()}


def _metrics_of(version: ModelVersion) -> dict[str, float | None]:
    return {k: v for k, v in version.metrics.get("gate", {}).items() if v is None or isinstance(v, float)}
