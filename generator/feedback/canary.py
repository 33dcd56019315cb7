"""A running canary: what it can be expected to show, and its promotion or withdrawal.

Every step is an event of the registry with its numbers. Users are assigned by a hash, as the night does it, and stay in their group
whatever they were really shown: who decides by what was shown compares other users. Clicks count from the first published night
that the canary drew for, up to the moment of the look.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from generator.feedback import registry, rollout
from generator.feedback.canary_clicks import read_users
from generator.feedback.canary_test import Look, days_to_see, look
from generator.feedback.intervals import finite
from generator.feedback.ports import RetrainContext
from generator.storage.lease import lead
from schemas.tables import ModelEvent, ModelVersion

LIFTS = (0.1, 0.2)
"""Relative lifts whose time is foretold."""
FALLBACK_RATE = 0.05
"""Click rate that the test is tuned to where nothing was shown before; it changes how soon a lift is seen, not the error rate."""


@dataclass(frozen=True)
class Plan:
    """What was fixed when the canary began."""

    share: float
    base_rate: float
    """Clicks per showing, before."""
    users_before: int
    showings_per_day: float
    days_for_lift: dict[str, int | None]
    """Days until a relative lift ("10%") is seen in four of five cases; None where that takes more than a year."""

    def words(self) -> str:
        """The plan in one line."""
        days = [
            f"a lift of {lift} would take " + (f"{days} days" if days is not None else "more than a year")
            for lift, days in self.days_for_lift.items()
        ]
        return (
            f"{self.users_before} users with {self.showings_per_day:.0f} showings a day at {self.base_rate:.1%} clicks, "
            f"{self.share:.0%} of them the canary's: {', '.join(days)} to be seen in four of five cases"
        )


def plan(context: RetrainContext, version: str, now: datetime) -> Plan:
    """What the traffic of the days before allows the canary to show."""
    settings = context.settings
    days, share = settings.canary.before_days, settings.retrain.canary_share
    with Session(context.engine) as session:
        users = read_users(
            session, version, (share, share), (now - timedelta(days=days), now), (now, now), settings.clicks
        )
    showings, clicks = float(users.before_showings.sum()), float(users.before_clicks.sum())
    rate = clicks / showings if clicks else FALLBACK_RATE
    known = {
        f"{lift:.0%}": days_to_see(
            lift,
            users,
            days,
            share=share,
            alpha=settings.canary.alpha,
            tau=settings.canary.expected_lift * rate,
        )
        for lift in LIFTS
    }
    per_day = showings / days if days else 0.0
    return Plan(share, rate, int((users.before_showings > 0).sum()), per_day, known)


def begin(context: RetrainContext, version: str, reason: str) -> None:
    """Say how long the canary will take, then let it draw for its share of the users."""
    with Session(context.engine) as session:
        now = session.scalars(select(func.now())).one()
        running = registry.get_current(session, "canary")
    if running is not None and running.version == version:
        rollout.canary(context, version, reason)
        return
    planned = plan(context, version, now)
    context.echo(f"canary {version}: {planned.words()}")
    rollout.canary(context, version, reason, {"plan": asdict(planned)})


def judge(context: RetrainContext, until: datetime) -> None:
    """Look at the running canary once: promote it, withdraw it, or write down what is known.

    Without one nothing is done.

    Raises:
        LockHeld: another process is at it.
        ServerUnavailable, ModelError: it should be promoted and cannot be served; it stays canary, the same command goes on.
    """
    with lead(context.engine, "canary"):
        with Session(context.engine, expire_on_commit=False) as session:
            version = registry.get_current(session, "canary")
            if version is None:
                context.echo("no canary runs")
                return
            event = _start_event(session, version)
            over = _why_over(session, version, event)
        if over:
            rollout.withdraw(context, version.version, over, {"until": until.isoformat()})
            return
        _look(context, version, event, until)


def _look(context: RetrainContext, version: ModelVersion, event: ModelEvent, until: datetime) -> None:
    settings = context.settings.canary
    planned = event.figures.get("plan") or asdict(plan(context, version.version, event.at))
    figures: dict[str, Any] = {"until": until.isoformat()}
    found: Look | None = None
    with Session(context.engine) as session:
        start = session.scalar(_FIRST_NIGHT, {"version": version.version, "since": event.at})
        if start is not None:
            shares = (planned["share"], context.settings.retrain.canary_share)
            before = event.at - timedelta(days=settings.before_days), event.at
            users = read_users(session, version.version, shares, before, (start, until), context.settings.clicks)
            found = look(
                users,
                alpha=settings.alpha,
                tau=settings.expected_lift * planned["base_rate"],
                min_users=settings.min_users,
                min_clicks=settings.min_clicks,
            )
            figures |= {**finite(asdict(found)), "since": start.isoformat()}
    ended = until >= event.at + timedelta(days=settings.max_days)
    _act(context, version, found, _words(found), figures, ended=ended)


def _act(
    context: RetrainContext,
    version: ModelVersion,
    found: Look | None,
    words: str,
    figures: dict[str, Any],
    *,
    ended: bool,
) -> None:
    settings, name = context.settings.canary, version.version
    if found is not None and found.verdict == "better" and settings.promotes:
        rollout.promote(context, name, f"the canary is better: {words}", figures)
    elif found is not None and found.verdict == "worse":
        rollout.withdraw(context, name, f"the canary is worse: {words}", figures)
    elif ended:
        rollout.withdraw(context, name, f"undecided after {settings.max_days:g} days: {words}", figures)
    else:
        _note(context, version, words, figures)


def _note(context: RetrainContext, version: ModelVersion, words: str, figures: dict[str, Any]) -> None:
    """Write the look down, once per moment."""
    with Session(context.engine) as session, session.begin():
        events = registry.list_events(session, version.version)
        if not events or events[-1].figures.get("until") != figures["until"]:
            registry.note(session, registry.get(session, version.version), words, figures)
    context.echo(f"canary {version.version} runs on: {words}")


def _words(found: Look | None) -> str:
    if found is None:
        return "no night that it drew for is published yet"
    sides = (
        f"{found.canary_rate:.2%} of showings clicked by {found.canary_users} users, champion {found.champion_rate:.2%} by "
        f"{found.champion_users}"
    )
    if found.verdict == "too few":
        return f"{sides}: too few to decide"
    low, high = (
        100 * bound / found.champion_rate if found.champion_rate else float("nan") for bound in (found.low, found.high)
    )
    return f"{sides}; adjusted lift {100 * found.lift:+.1f} % [{low:+.1f}, {high:+.1f}] at any time"


_FIRST_NIGHT = text(
    """
SELECT min(r.finished_at) FROM night_runs r
WHERE r.status = 'published' AND r.scope = 'all' AND r.started_at >= :since
  AND EXISTS (SELECT FROM night_tasks t WHERE t.run_id = r.run_id AND t.model_version = :version)
"""
)


def _start_event(session: Session, version: ModelVersion) -> ModelEvent:
    """The event by which the version last became canary."""
    query = select(ModelEvent).where(ModelEvent.version == version.version, ModelEvent.to_state == "canary")
    query = query.where(ModelEvent.from_state.is_distinct_from("canary")).order_by(ModelEvent.event_id.desc())
    return session.scalars(query.limit(1)).one()


def _why_over(session: Session, version: ModelVersion, event: ModelEvent) -> str | None:
    """Why a canary ends whatever its users did, if it does."""
    override = registry.get_override(session, version.version)
    if override is not None and not registry.is_live(session, override):
        return "its override expired"
    promoted = select(ModelEvent.version).where(ModelEvent.to_state == "champion", ModelEvent.event_id > event.event_id)
    promoted = promoted.where(ModelEvent.from_state.is_distinct_from("champion"))  # a note is no promotion
    if (other := session.scalars(promoted.limit(1)).one_or_none()) is not None:
        return f"{other} became champion since, so there is nobody left to compare it with"
    return None
