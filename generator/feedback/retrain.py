"""The steps of `pigeon retrain`: pairs, snapshot, registry, DPO, gate, promotion.

A window ends at a fixed moment: the one that the job was due at, or the end of a day; the day that is not over ends now. A version is
known by its snapshot and its parent, a snapshot by its content: after a crash the same command goes on with the snapshot of that
window whose retraining did not come to an end, and finds what is done in the registry and in the work folder. Only a refused or
failed challenger is final for its snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from generator.feedback import canary, gate, gate_metrics, off_policy_log, pairs, registry, rollout, split
from generator.feedback.artifacts import fetch, upload
from generator.feedback.gate_metrics import Beside
from generator.feedback.intervals import Estimate, finite
from generator.feedback.off_policy import OffPolicyValue
from generator.feedback.outlook import read_outlook
from generator.feedback.ports import RetrainContext, clear_errors
from generator.feedback.reward_pairs import RewardRanking
from generator.feedback.snapshot import Snapshot, find_unfinished, put, write
from generator.serving.api import InferenceCorrupt, InferenceRejected
from generator.storage.lease import Lease, lead
from generator.worth import Worth, read_worth
from schemas.errors import ModelError, Refused
from schemas.faultpoints import reach
from schemas.tables import ModelVersion

Promotion = Literal["none", "canary", "champion"]


@dataclass(frozen=True)
class Outcome:
    """Result of a retraining; `version` is None after a dry run."""

    version: str | None
    snapshot: str | None
    counts: dict[str, int]
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Window:
    """The feedback that a retraining learns from: `days` long, up to `stop`."""

    stop: datetime
    days: int
    after: datetime
    """A retraining of a window that ended later than this, and by `stop`, is this one."""

    @classmethod
    def until(cls, moment: datetime, days: int) -> Window:
        """Up to a moment, usually the one that a job was due at."""
        return cls(moment, days, moment - timedelta(microseconds=1))

    @classmethod
    def of_day(cls, day: date, days: int, now: datetime) -> Window:
        """Up to the end of a day (UTC); up to now, in whole seconds, while it is not over."""
        start = datetime.combine(day, time(), UTC)
        return cls(min(start + timedelta(days=1), max(start, now.replace(microsecond=0))), days, start)

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """Start, and the moment before which feedback counts."""
        return self.stop - timedelta(days=self.days), self.stop


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
    context: RetrainContext, window: Window, *, min_pairs: int, promote: Promotion, dry_run: bool = False
) -> Outcome:
    """Retrain on the window's feedback, or go on with a retraining of it that was killed.

    Raises:
        LockHeld: another retrain is under way.
        Refused: too little feedback, a leak, nothing new since the last time, or the gate refused; with the reasons.
        ModelError: the challenger could not be loaded; it is marked failed and the champion serves on.
        ServerUnavailable: a server is away; the same command goes on later.
    """
    with lead(context.engine, "retrain") as lease, clear_errors(context):
        if dry_run:
            mined = _mine(_with_clicks(context, window), window, min_pairs)
            context.echo("dry run: nothing was written")
            return Outcome(None, None, mined.counts, {})
        with Session(context.engine) as session:
            registry.check_base(session, context.base_sha256)
        context = _with_clicks(context, window)
        _note_worth(context, lease, window)
        snapshot = _unfinished(context, window)
        counts: dict[str, int] = {}
        if snapshot is None:
            snapshot, counts = _snapshot(context, lease, window, min_pairs)
        return _challenge(context, lease, window, snapshot, counts, promote)


def _with_clicks(context: RetrainContext, window: Window) -> RetrainContext:
    """The context with the window's click model of users who are not held out, where there is one."""
    from generator.feedback.clicks.ranking import fit_ranking  # scikit-learn

    found = context.clicks or fit_ranking(context.engine, context.settings, window.stop, context.echo)
    return replace(context, clicks=found)


def _note_worth(context: RetrainContext, lease: Lease, window: Window) -> None:
    """Write what drawn posters were worth over the items' own into the champion's history.

    Only told where that is unknown.
    """
    with Session(context.engine) as session, session.begin():
        found = read_worth(session, context.settings.clicks, window.stop, window.days)
        lease.check(session.connection())
        champion = registry.get_current(session, "champion")
        figures = {**finite(found.figures()), "until": window.stop.isoformat()}
        if isinstance(found, Worth) and champion is not None and not _noted(session, champion, figures["until"]):
            registry.note(session, champion, found.words, figures)
    context.echo(found.words)


def _noted(session: Session, champion: ModelVersion, until: str) -> bool:
    return any(event.figures.get("until") == until for event in registry.list_events(session, champion.version))


def _unfinished(context: RetrainContext, window: Window) -> Snapshot | None:
    settings = context.settings.retrain
    with Session(context.engine) as session:
        found = find_unfinished(
            session, context.store, window.after, window.stop, timedelta(days=window.days), settings.holdout_share
        )
    if found is not None:
        context.echo(f"going on with snapshot {found.snapshot_id[:12]}, whose retraining did not come to an end")
    return found


@dataclass(frozen=True)
class _Divided:
    pairs: split.SplitPairs
    counts: dict[str, int]
    mined_at: datetime


def _mine(context: RetrainContext, window: Window, min_pairs: int) -> _Divided:
    """The window's pairs, divided and checked."""
    settings = context.settings.retrain
    reward = RewardRanking(context.clicks, settings.reward_certainty) if context.clicks else None
    with Session(context.engine) as session:
        mined_at = session.scalars(select(func.now())).one()
        mined = pairs.mine(
            session,
            *window.bounds,
            score_share=settings.score_pairs_share,
            base_sha256=context.base_sha256,
            reward=reward,
            clicks=context.settings.clicks,
        )
        outlook = read_outlook(session, *window.bounds)
    divided = split.divide(mined.pairs, settings.holdout_share)
    counts = {**mined.counts, **{f"{name}_pairs": len(getattr(divided, name)) for name in split.SPLITS}}
    context.echo(
        f"feedback of {window.days} days until {window.stop:%Y-%m-%d %H:%M} UTC: {counts['showings']} showings, "
        f"{counts['clicked']} clicked -> {counts['feedback_pairs']} feedback pairs + {counts['reward_pairs']} reward-ranked + "
        f"{counts['score_pairs']} score-ranked = {counts['train_pairs']} to train, {counts['holdout_pairs']} of held-out users, "
        f"{counts['future_pairs']} newest kept back"
    )
    context.echo(pairs.yield_words(counts))
    if counts["other_base"]:
        context.echo(f"{counts['other_base']} showings are of posters by an earlier checkpoint: no pairs come of them")
    if counts["unreadable"]:
        context.echo(f"{counts['unreadable']} pairs left out: the frozen prompts of their tasks cannot be read")
    split.check_leaks(divided)
    split.check_enough(divided, min_pairs, settings.gate_min_pairs, outlook)
    return _Divided(divided, counts, mined_at)


def _snapshot(context: RetrainContext, lease: Lease, window: Window, min_pairs: int) -> tuple[Snapshot, dict[str, int]]:
    """Read the pairs and store them: the row first, then the object."""
    mined = _mine(context, window, min_pairs)
    kept = {**mined.counts, "holdout_share": context.settings.retrain.holdout_share}
    with Session(context.engine) as session, session.begin():
        lease.check(session.connection())
        body = write(session, mined.pairs, window.bounds, kept, mined.mined_at)
    return put(context.store, body), mined.counts


def _challenge(
    context: RetrainContext,
    lease: Lease,
    window: Window,
    snapshot: Snapshot,
    counts: dict[str, int],
    promote: Promotion,
) -> Outcome:
    """From a snapshot to a challenger that is judged and rolled out."""
    with Session(context.engine, expire_on_commit=False) as session, session.begin():
        lease.check(session.connection())
        champion = registry.ensure_champion(session, context.settings.models.preset, context.base_sha256)
        reason = f"DPO on {len(snapshot.pairs.train)} pairs"
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
    challenge = _Challenge(context, lease, window.bounds, snapshot, champion, champion_dir, version)
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
    reach("adapter trained")
    key, sha256 = upload(context.store, version.version, trained.adapter_dir)
    reach("adapter stored")
    with Session(context.engine) as session, session.begin():
        challenge.lease.check(session.connection())
        row = registry.get(session, version.version)
        row.adapter_key, row.adapter_sha256 = key, sha256
        row.metrics = {**row.metrics, "train": finite(trained.figures)}
    version.adapter_key, version.adapter_sha256 = key, sha256
    context.echo(f"{version.version}: adapter stored at {context.store.uri(key)}")
    return trained.adapter_dir


def _judge(challenge: _Challenge, adapter: Path) -> dict[str, float | None]:
    """Measure the challenger and put it through the gate; it is loaded, refused or failed afterwards.

    Cheap figures come first: a challenger that ranks users' choices worse is never loaded.
    """
    context, version, champion = challenge.context, challenge.version, challenge.champion
    settings = context.settings.retrain
    metrics, figures = _measure_offline(challenge, adapter)
    verdict = gate.decide(metrics, settings, gate.OFFLINE)
    if verdict.passed:
        try:
            beside = _draw_beside(challenge, adapter)
        except (ModelError, InferenceRejected, InferenceCorrupt) as error:
            _record_verdict(challenge, "failed", str(error), figures, (str(error),))
            context.serving.remove(version.number)
            raise ModelError(f"{version.version} failed: {error}; {champion.version} serves on") from error
        if beside is not None:
            metrics |= gate_metrics.of_drawn(beside, settings.gate_confidence)
            figures |= {**gate_metrics.as_json(metrics), "diversity": gate_metrics.diversity_json(beside)}
        verdict = gate.decide(metrics, settings)
    for reason in verdict.reasons:
        context.echo(f"gate: {reason}")
    if not verdict.passed:
        _record_verdict(challenge, "refused", verdict.refusal, figures, verdict.reasons)
        context.serving.remove(version.number)
        raise Refused(f"{version.version} refused by the gate: {verdict.refusal}; {champion.version} serves on")
    _record_verdict(challenge, "loaded", "passed the gate", figures, verdict.reasons)
    version.state = "loaded"
    return {name: metric.value for name, metric in metrics.items() if isinstance(metric, Estimate)}


def _measure_offline(challenge: _Challenge, adapter: Path) -> tuple[dict[str, gate.Metric], dict[str, Any]]:
    """What needs no server: the judges' pairs and the off-policy value, as metrics and for the registry."""
    context, settings = challenge.context, challenge.context.settings.retrain
    trainer, snapshot = context.trainer, challenge.snapshot.pairs
    held = snapshot.select("holdout", "feedback")
    rotation = challenge.window[1].date().isoformat()
    judges = split.select_judges(held, settings.gate_judges_share, settings.gate_min_pairs, rotation)
    judged = trainer.judge(adapter, challenge.champion_dir, [pair for pair in held if pair.user_id in judges])
    metrics: dict[str, gate.Metric] = {**gate_metrics.of_pairs(judged, settings.gate_confidence)}
    with Session(context.engine) as session:
        value = off_policy_log.value_of(context, session, challenge.window, adapter, challenge.champion_dir)
    metrics["off_policy_gain"] = value.gain if isinstance(value, OffPolicyValue) else value
    figures = {
        **gate_metrics.as_json(metrics),
        "off_policy": gate_metrics.off_policy_json(value),
        "judges": len(judges),
    }
    figures["accuracy_future"] = None
    if later := snapshot.select("future", "feedback"):
        figures["accuracy_future"] = trainer.judge(adapter, challenge.champion_dir, later).accuracy
    return metrics, figures


def _draw_beside(challenge: _Challenge, adapter: Path) -> Beside | None:
    """Load the challenger; draw and answer held-out tasks with it and with the champion.

    None when there are no such tasks.
    """
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
    if not tasks:
        return None
    return Beside(
        gate_metrics.draw(context, tasks, version.number),
        gate_metrics.draw(context, tasks, champion.number),
        gate_metrics.answer_grid(context, tasks, version.number),
        gate_metrics.answer_grid(context, tasks, champion.number),
    )


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
        canary.begin(context, version.version, "passed the gate, --promote canary")
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
    named += f" {s.label_smoothing} {s.max_displacement} {s.cross_validate}"
    return hashlib.sha256(named.encode()).hexdigest()[:8]


def _metrics_of(version: ModelVersion) -> dict[str, float | None]:
    return {k: v for k, v in version.metrics.get("gate", {}).items() if v is None or isinstance(v, float)}
