"""What the night will draw: users with something new, their targets, and each task's frozen input.

Everything is read from one snapshot of the database, so that events arriving meanwhile belong to the next night. A user
with an earlier plan from the same history, recommendations, items, weights and settings is only counted (plan_users.py): no row,
no picture. Memory does not grow with the users.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.nightly.drawers import Drawer, Drawers
from generator.nightly.frozen_prompt import ServedVersions, drawing_settings
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import EVERYBODY, run_id_of
from generator.nightly.plan_clicks import ClickRule
from generator.nightly.plan_items import PlanItems
from generator.nightly.plan_tasks import TaskPlanner, UserTasks
from generator.nightly.plan_users import ERASED, UNCHANGED, Criteria, PlanUsers, UserInput
from generator.nightly.prompt_texts import PromptTexts, plan_fingerprint
from generator.nightly.rows import Chunk, HistoryCounts, Skip
from schemas.images import features_version
from schemas.settings import Settings
from schemas.tables import Erasure

USERS_AT_ONCE = 500
"""Users planned together."""

NO_HISTORY = "user without history"


@dataclass(frozen=True)
class Scope:
    """Users that a run is for: all, these, or `limit` of them that have something new."""

    users: tuple[str, ...] | None = None
    limit: int | None = None

    @property
    def name(self) -> str:
        """Scope of the run (`night_runs.scope`): the night itself, or a trial that never stands in for it."""
        if self.users is None and self.limit is None:
            return EVERYBODY
        key = json.dumps(self.json(), sort_keys=True, ensure_ascii=False)
        return f"trial-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def json(self) -> dict[str, Any]:
        """As frozen in `night_runs.settings`."""
        return {"users": sorted(self.users) if self.users is not None else None, "limit": self.limit}


class Planner:
    """Plans one night inside one session (a snapshot)."""

    def __init__(
        self, session: Session, settings: Settings, images: CatalogImages, served: ServedVersions, logical_date: date
    ) -> None:
        self._session = session
        self._night = settings.night
        self._clicks = ClickRule.of(settings, served.tokenizer, logical_date)
        self._date = logical_date
        self._drawing = drawing_settings(settings.night, served.drawing)
        self._features = features_version(served.tokenizer)
        self._items = PlanItems(session, images)
        self._tasks = TaskPlanner(settings.night, self._items, PromptTexts(self._drawing, self._features))
        self._popular: list[str] | None = None
        self.drawers = Drawers.read(session, settings, served.base_weights)
        self._fingerprints = {drawer: self._fingerprint(drawer) for drawer in self.drawers.all()}

    def chunks(self, scope: Scope) -> Iterator[Chunk]:
        """Tasks, and what is left out; users in the order of their ids.

        With a limit it begins at another user on every date.
        """
        limit = scope.limit if scope.limit is not None else self._night.max_users
        run_id = run_id_of(self._date, scope.name)
        users = PlanUsers(self._session, scope.users, self._clicks)
        changed = self._items.changed(scope.users)
        yield Chunk(changed=changed)
        if scope.users is not None:
            yield self._unknown_users(users.unknown(scope.users))
        room = limit
        for judged in users.judge(self._criteria(list(changed)), limit):
            yield Chunk(counted=judged.counted, forgotten=judged.forgotten)
            for start in range(0, len(judged.users), USERS_AT_ONCE):
                planned = self._planned(users, judged.users[start : start + USERS_AT_ONCE], run_id)
                kept = planned if room is None else _first_with_tasks(planned, room)
                yield self._chunk(kept)
                if len(kept) < len(planned):
                    return
                if room is not None:
                    room -= sum(bool(user.tasks) for user in kept)

    def _criteria(self, changed: Sequence[str]) -> Criteria:
        drawers, canary = self.drawers, self.drawers.canary
        return Criteria(
            logical_date=self._date,
            drawing=self._fingerprints[drawers.champion],
            canary=canary.version if canary else None,
            canary_share=drawers.canary_share,
            canary_drawing=self._fingerprints[canary] if canary else "",
            changed=changed,
        )

    def _fingerprint(self, drawer: Drawer) -> str:
        """Hash of all that a user's tasks depend on but histories, recommendations and items."""
        night = self._night
        lengths = (night.history_length, night.min_history, night.targets_per_user)
        return plan_fingerprint(drawer.weights, self._drawing, self._features, lengths)

    def _unknown_users(self, unknown: Sequence[str]) -> Chunk:
        query = select(Erasure.user_id).where(Erasure.user_id.in_(unknown), Erasure.completed_at.is_(None))
        erased = set(self._session.scalars(query))
        skips = [Skip(user_id, NO_HISTORY) for user_id in unknown if user_id not in erased]
        return Chunk(skips=tuple(skips), counted={ERASED: len(erased)} if erased else {})

    def _planned(self, users: PlanUsers, user_ids: Sequence[str], run_id: str) -> list[UserTasks]:
        self._items.trim()
        page = users.read(user_ids, self._date)
        targets = {user.user_id: self._targets(users, user) for user in page}
        self._tasks.load(page, targets)
        weights = sorted({drawer.weights for drawer in self.drawers.all()})
        before = users.drawn_before(user_ids, weights, run_id, self._date)
        planned = []
        for user in page:
            drawer = self.drawers.drawer_for(user.user_id)
            planned.append(self._tasks.plan(user, targets[user.user_id], drawer, self._fingerprints[drawer], before))
        return planned

    def _targets(self, users: PlanUsers, user: UserInput) -> Sequence[str]:
        if user.recommended:
            return user.recommended
        if self._popular is None:
            self._popular = users.popular()
        seen = set(user.history)
        return [item for item in self._popular if item not in seen]

    def _chunk(self, planned: Sequence[UserTasks]) -> Chunk:
        unchanged = sum(user.unchanged for user in planned)
        return Chunk(
            tasks=tuple(task for user in planned for task in user.tasks),
            skips=tuple(skip for user in planned for skip in user.skips),
            counted={UNCHANGED: unchanged} if unchanged else {},
            users=tuple(user.plan() for user in planned),
            history=sum((user.history for user in planned if user.tasks), HistoryCounts()),
            items=self._items.untold({item_id for user in planned for item_id in user.looked_at}),
        )


def _first_with_tasks(planned: Sequence[UserTasks], room: int) -> Sequence[UserTasks]:
    """Those before the user who would be one too many with tasks."""
    with_tasks = 0
    for place, user in enumerate(planned):
        if user.tasks and with_tasks == room:
            return planned[:place]
        with_tasks += bool(user.tasks)
    return planned
