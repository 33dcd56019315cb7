"""`pigeon retrain`: pairs, snapshot, DPO, registry, gate, and the promised promotion, in steps that a rerun continues.

A version is known by its snapshot and its parent, a snapshot by its content: after a crash the same command finds what is done, in the
registry and in the work folder, and goes on from there. Only a refused or failed challenger is final for its snapshot.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from generator.feedback import gate, gate_metrics, pairs, registry, rollout, split
from generator.feedback.artifacts import fetch, upload
from generator.feedback.ports import Loop, clear_errors
from generator.feedback.snapshot import Snapshot, write
from generator.serving.api import InferenceCorrupt, InferenceRejected
from generator.storage.lease import Lease, lead
from schemas.errors import ModelError, Refused
from schemas.tables import ModelVersion

Promotion = Literal["none", "canary", "champion"]
OFFLINE = tuple(check for check in gate.CHECKS if check.metric in {"accuracy", "margin", "kl"})


@dataclass(frozen=True)
class Outcome:
    """What came of it; `version` is None after a dry run."""

    version: str | None
    snapshot: str | None
    counts: dict[str, int]
    metrics: dict[str, float | None]


def retrain(loop: Loop, day: date, *, min_pairs: int, promote: Promotion, dry_run: bool = False) -> Outcome:
    """Retrain on the feedback of the `retrain.window_days` that end with `day` (UTC).

    Raises:
        LockHeld: another retrain is under way.
        Refused: too little feedback, a leak, nothing new since the last time, or the gate refused; with the reasons.
        ModelError: the challenger could not be loaded; it is marked failed and the champion serves on.
        ServerUnavailable: a server is away; the same command goes on later.
    """
    with lead(loop.engine, "retrain") as lease, clear_errors(loop):
        return _steps(loop, lease, day, min_pairs, promote, dry_run)


def _steps(loop: Loop, lease: Lease, day: date, min_pairs: int, promote: Promotion, dry_run: bool) -> Outcome:
    settings = loop.settings.retrain
    stop = datetime.combine(day + timedelta(days=1), time(), UTC)
    window = (stop - timedelta(days=settings.window_days), stop)
    with Session(loop.engine) as session:
        mined = pairs.mine(session, *window, score_share=settings.score_pairs_share)
    examples = split.divide(mined.pairs, settings.holdout_share)
    parts = Counter(example.split for example in examples)
    counts = {**mined.counts, **{f"{name}_pairs": parts[name] for name in ("train", "holdout", "future")}}
    loop.say(
        f"feedback of {settings.window_days} days to {day}: {counts['showings']} showings, {counts['clicked']} clicked -> "
        f"{counts['feedback_pairs']} feedback pairs + {counts['score_pairs']} score-ranked = {counts['train_pairs']} to train, "
        f"{counts['holdout_pairs']} of held-out users, {counts['future_pairs']} newest kept back"
    )
    split.check_leaks(examples)
    split.check_enough(examples, min_pairs, settings.gate_min_pairs)
    if dry_run:
        loop.say("dry run: nothing was written")
        return Outcome(None, None, counts, {})

    with Session(loop.engine, expire_on_commit=False) as session, session.begin():
        _still_ours(lease, session)
        champion = registry.ensure_first(session, loop.settings.models.preset, loop.base_sha256)
        snapshot = write(session, loop.store, examples, window, counts)
        reason = f"DPO on {counts['train_pairs']} pairs"
        version = registry.register(
            session, loop.settings.models.preset, champion, snapshot.snapshot_id, _recipe(loop), reason
        )
    if version.state in {"refused", "failed", "retired"}:
        raise Refused(f"nothing new: {version.version} was trained from this very feedback and is {version.state}")
    if version.state == "champion":
        loop.say(f"nothing new: {version.version} was trained from this very feedback and is champion")
        return Outcome(version.version, snapshot.snapshot_id, counts, _metrics_of(version))
    loop.say(f"snapshot {snapshot.snapshot_id[:12]} -> {version.version}, challenger of {champion.version}")

    champion_dir = _adapter(loop, champion)
    adapter_dir = _train(loop, lease, version, champion_dir, snapshot)
    metrics = _metrics_of(version)
    if version.state == "registered":
        metrics = _judge(loop, lease, version, champion, adapter_dir, champion_dir, snapshot, window)
    _roll_out(loop, version, promote)
    return Outcome(version.version, snapshot.snapshot_id, counts, metrics)


def _train(loop: Loop, lease: Lease, version: ModelVersion, champion: Path | None, snapshot: Snapshot) -> Path:
    """The challenger's adapter folder; trained and stored unless that has been done."""
    if version.adapter_key and version.adapter_sha256:
        return fetch(loop.store, version.adapter_key, version.adapter_sha256, loop.cache)
    out = loop.work / f"{snapshot.snapshot_id}-{champion.name if champion else 'shipped'}-{_recipe(loop)}"
    try:
        trained = loop.trainer.train(champion, snapshot.pairs("train"), out)
    except ModelError as error:
        _settle(loop, lease, version, "failed", str(error), {}, (str(error),))
        raise ModelError(f"{version.version} failed: {error}; {version.parent} serves on") from error
    key, sha256 = upload(loop.store, version.version, trained.adapter_dir)
    with Session(loop.engine) as session, session.begin():
        _still_ours(lease, session)
        row = registry.get(session, version.version)
        row.adapter_key, row.adapter_sha256 = key, sha256
        row.metrics = {**row.metrics, "train": finite(trained.figures)}
    version.adapter_key, version.adapter_sha256 = key, sha256
    loop.say(f"{version.version}: adapter stored at s3://{loop.store.bucket}/{key}")
    return trained.adapter_dir


def _judge(
    loop: Loop,
    lease: Lease,
    version: ModelVersion,
    champion: ModelVersion,
    adapter: Path,
    champion_dir: Path | None,
    snapshot: Snapshot,
    window: tuple[datetime, datetime],
) -> dict[str, float | None]:
    """The gate, cheap figures first: a challenger that ranks people's choices worse is never loaded.

    Leaves the version loaded, refused or failed.
    """
    settings = loop.settings.retrain
    judged = loop.trainer.judge(adapter, champion_dir, snapshot.pairs("holdout", "feedback"))
    figures = gate_metrics.figures(judged)
    figures["accuracy_future"] = None
    if later := snapshot.pairs("future", "feedback"):
        figures["accuracy_future"] = loop.trainer.judge(adapter, champion_dir, later).accuracy
    verdict = gate.decide(figures, settings, OFFLINE)
    if verdict.passed:
        try:
            loop.serving.install(version.number, adapter)
            loop.serving.probe(version.number)
            with Session(loop.engine) as session:
                tasks = gate_metrics.held_out_tasks(
                    session, *window, holdout_share=settings.holdout_share, limit=settings.gate_tasks
                )
            loop.say(f"{version.version}: loaded beside {champion.version}; both draw {len(tasks)} held-out tasks")
            rollout.ensure_serving(loop, champion)
            challenger_draws = gate_metrics.draw(loop, tasks, version.number)
            figures |= gate_metrics.figures(judged, challenger_draws, gate_metrics.draw(loop, tasks, champion.number))
        except (ModelError, InferenceRejected, InferenceCorrupt) as error:
            _settle(loop, lease, version, "failed", str(error), figures, (str(error),))
            loop.serving.remove(version.number)
            raise ModelError(f"{version.version} failed: {error}; {champion.version} serves on") from error
        verdict = gate.decide(figures, settings)
    for reason in verdict.reasons:
        loop.say(f"gate: {reason}")
    if not verdict.passed:
        _settle(loop, lease, version, "refused", verdict.refusal, figures, verdict.reasons)
        loop.serving.remove(version.number)
        raise Refused(f"{version.version} refused by the gate: {verdict.refusal}; {champion.version} serves on")
    _settle(loop, lease, version, "loaded", "passed the gate", figures, verdict.reasons)
    version.state = "loaded"
    return figures


def _settle(
    loop: Loop,
    lease: Lease,
    version: ModelVersion,
    state: str,
    reason: str,
    figures: Mapping[str, Any],
    reasons: tuple[str, ...],
) -> None:
    with Session(loop.engine) as session, session.begin():
        _still_ours(lease, session)
        row = registry.move(session, version.version, state, reason)
        row.metrics = {
            **row.metrics,
            "gate": {**finite(figures), "passed": state == "loaded", "reasons": list(reasons)},
        }


def _roll_out(loop: Loop, version: ModelVersion, promote: Promotion) -> None:
    if promote == "champion":
        rollout.promote(loop, version.version, "passed the gate, --promote champion")
    elif promote == "canary" and version.state in {"loaded", "canary"}:
        rollout.canary(loop, version.version, "passed the gate, --promote canary")
    else:
        loop.say(
            f"{version.version} is {version.state}; `pigeon models promote {version.version} --reason ...` when you like"
        )


def _adapter(loop: Loop, version: ModelVersion) -> Path | None:
    """A version's adapter folder; None for the checkpoint as shipped."""
    if version.adapter_key is None or version.adapter_sha256 is None:
        return None
    return fetch(loop.store, version.adapter_key, version.adapter_sha256, loop.cache)


def _recipe(loop: Loop) -> str:
    """Part of a work folder's name, so that a training resumes only with the reference and the settings it began with."""
    s = loop.settings.retrain
    named = f"{loop.base_sha256} {s.beta} {s.learning_rate} {s.batch_size} {s.epochs} {s.seed}"
    return hashlib.sha256(named.encode()).hexdigest()[:8]


def finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON columns, which hold no NaN: what is not finite becomes null."""
    return {k: None if isinstance(v, float) and not (-1.7e308 < v < 1.7e308) else v for k, v in figures.items()}


def _metrics_of(version: ModelVersion) -> dict[str, float | None]:
    return {k: v for k, v in version.metrics.get("gate", {}).items() if v is None or isinstance(v, float)}


def _still_ours(lease: Lease, session: Session) -> None:
    lease.check(session.connection())
