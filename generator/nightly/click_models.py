"""The click model that a night chooses by, and the policy that comes of it.

A run names its click model (`night_runs.settings`), so that a resumed one chooses as it began. Where the model is gone, damaged
or made for another checkpoint, the night goes on with the model's own preference and says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import defer

from generator.nightly.ledger import Ledger, waits_out
from generator.nightly.policies import ChoicePolicy, ModelPolicy, PaperPolicy
from generator.nightly.reward_policy import RewardPolicy
from schemas.click_model import ClickModel
from schemas.settings import NightSettings
from schemas.tables import ClickModel as ClickModelRow
from schemas.tables import ScheduleMoment

log = logging.getLogger("pigeon.night")


@dataclass(frozen=True)
class LoadedClickModel:
    """A click model with the number that the ledger and the log know it by."""

    number: int
    model_id: str
    model: ClickModel


@waits_out
def read_status(ledger: Ledger, run_settings: dict[str, Any]) -> dict[str, Any]:
    """What a run chooses by, what is active, and how the latest fit and its job ended, each or None."""
    with ledger.reading() as session:
        known = {
            row.model_id: row for row in session.scalars(select(ClickModelRow).options(defer(ClickModelRow.artifact)))
        }
        fitted = max(known.values(), key=lambda row: row.number, default=None)
        job = session.scalars(
            select(ScheduleMoment).where(ScheduleMoment.job == "clicks").order_by(ScheduleMoment.due_at.desc()).limit(1)
        ).one_or_none()
    of_run = known.get(run_settings.get("click_model", ""))
    return {
        "of_run": of_run.number if of_run else None,
        "active": next((row.number for row in known.values() if row.state == "active"), None),
        "last_fit": {"number": fitted.number, "state": fitted.state, "reason": fitted.reason} if fitted else None,
        "last_job": {"moment": job.moment, "status": job.status, "error": job.error} if job else None,
    }


def status_words(found: dict[str, Any]) -> list[str]:
    """The same as lines of text; none where there has never been a fit."""
    lines = []
    if found["last_fit"]:
        fit = found["last_fit"]
        of_run = f"click model {found['of_run']}" if found["of_run"] else "the model's own preference"
        active = f"click model {found['active']}" if found["active"] else "none"
        lines.append(f"{of_run}; active now: {active}; last fit: {fit['number']} {fit['state']}, {fit['reason']}")
    if found["last_job"]:
        job = found["last_job"]
        lines.append(f"fit of {job['moment']}: {job['status']}" + (f", {job['error']}" if job["error"] else ""))
    return lines


@waits_out
def read_active(ledger: Ledger, base_weights: str) -> LoadedClickModel | None:
    """The active click model; None, with a warning where there is one, when it cannot be used."""
    with ledger.reading() as session:
        row = session.scalars(select(ClickModelRow).where(ClickModelRow.state == "active")).one_or_none()
    return _loaded(row, base_weights) if row else None


@waits_out
def read_planned(ledger: Ledger, run_settings: dict[str, Any], base_weights: str) -> LoadedClickModel | None:
    """The click model that a run was planned with, whatever is active by now."""
    model_id = run_settings.get("click_model")
    if model_id is None:
        return None
    with ledger.reading() as session:
        row = session.get(ClickModelRow, model_id)
    if row is None:
        log.warning("night: click model %s is gone; the model's own preference chooses", model_id)
        return None
    return _loaded(row, base_weights)


def _loaded(row: ClickModelRow, base_weights: str) -> LoadedClickModel | None:
    try:
        model = ClickModel.unpack(row.artifact)
    except ValueError as error:
        log.warning("night: click model %d: %s; the model's own preference chooses", row.number, error)
        return None
    if model.model_id != row.model_id or model.base_weights != base_weights:
        log.warning(
            "night: click model %d %s; the model's own preference chooses: `pigeon loop fit` makes another one",
            row.number,
            "is damaged" if model.model_id != row.model_id else "was made for another checkpoint",
        )
        return None
    return LoadedClickModel(row.number, row.model_id, model)


def choose_policy(ledger: Ledger, settings: NightSettings, base_weights: str) -> tuple[NightSettings, str | None]:
    """The settings with the policy that a plan is made for, and the id of its click model.

    `auto` is `reward` where a click model is active, else `model`.
    """
    if settings.policy not in {"auto", "reward"}:
        return settings, None
    active = read_active(ledger, base_weights)
    if active is None and settings.policy == "reward":
        log.warning("night: night.policy is reward, but no click model is active; the model's own preference chooses")
    policy = "reward" if active else "model"
    return settings.model_copy(update={"policy": policy}), active.model_id if active else None


def policy_of(settings: NightSettings, loaded: LoadedClickModel | None = None) -> ChoicePolicy:
    """The policy that `night.policy` names; without a click model the model's own preference."""
    if settings.policy == "paper":
        return PaperPolicy(settings.reference_weight)
    if settings.policy in {"auto", "reward"} and loaded is not None:
        return RewardPolicy(loaded.model, loaded.number, ModelPolicy())
    return ModelPolicy()
