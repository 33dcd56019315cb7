"""What the night will draw: users with something new, their targets, and each task's frozen input.

Everything is read from one snapshot of the database, so that events arriving meanwhile belong to the next night.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from generator.nightly.frozen_prompt import (
    FrozenImage,
    FrozenPrompt,
    ServedVersions,
    answers_fingerprint,
    drawing_settings,
    input_fingerprint,
    share,
    task_seed,
)
from generator.nightly.images import CatalogImages, Probe
from generator.nightly.ledger import EVERYBODY, run_id_of
from generator.nightly.rows import Chunk, PlannedTask, Skip
from schemas.hashing import weights_of
from schemas.settings import Settings
from schemas.tables import Erasure, Item, ModelVersion, NightRun, NightTask, Recommendation, UserHistory

USERS_AT_ONCE = 200

_POPULAR = text(
    "SELECT entry ->> 'item_id' FROM user_histories, jsonb_array_elements(entries) AS entry "
    "GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1000"
)

ERASED = "user is to be forgotten"
NO_HISTORY = "user without history"
TOO_LITTLE_HISTORY = "too little history"
TOO_FEW_IMAGES = "too few readable history pictures"
NO_TARGETS = "no target left"
UNKNOWN_ITEM = "item unknown"
DELETED_ITEM = "item deleted"
NO_TEXT = "item without text"
NO_IMAGE = "item without image"
UNREADABLE_IMAGE = "unreadable image"
UNCHANGED = "unchanged"


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


@dataclass(frozen=True)
class Drawer:
    """A model version that draws, the number of its adapter in Triton, and what its weights are known by."""

    version: str
    number: int
    weights: str


@dataclass(frozen=True)
class Drawers:
    """The champion, and the canary for a stable share of the users."""

    champion: Drawer
    canary: Drawer | None
    canary_share: float

    def drawer_for(self, user_id: str) -> Drawer:
        """The version that draws for a user: the same on every night while the canary and its share stay."""
        if self.canary and share(user_id, f"canary {self.canary.version}") < self.canary_share:
            return self.canary
        return self.champion

    @classmethod
    def read(cls, session: Session, settings: Settings, base_weights: str) -> Drawers:
        """Read the registry; before it has versions, the checkpoint as shipped draws.

        `base_weights`: as the model server states them.
        """
        rows = session.execute(
            select(ModelVersion.state, ModelVersion.version, ModelVersion.number, ModelVersion.adapter_sha256).where(
                ModelVersion.state.in_(("champion", "canary"))
            )
        )
        found = {
            state: Drawer(version, number, weights_of(base_weights, adapter))
            for state, version, number, adapter in rows
        }
        champion = found.get("champion", Drawer(f"{settings.models.preset}-1", 1, weights_of(base_weights, None)))
        return cls(champion, found.get("canary"), settings.retrain.canary_share)


@dataclass(frozen=True)
class _User:
    user_id: str
    history: list[str]
    """Item ids, newest first, each once."""
    targets: list[str]
    recommended: bool
    """The recommender asked for the targets; popular items that cannot be used are passed over uncounted."""


class Planner:
    """Plans one night inside one session (a snapshot)."""

    def __init__(
        self, session: Session, settings: Settings, images: CatalogImages, served: ServedVersions, logical_date: date
    ) -> None:
        self._session = session
        self._night = settings.night
        self._images = images
        self._tokenizer_version = served.tokenizer
        self._date = logical_date
        self._drawing_settings = drawing_settings(settings.night, served.drawing)
        self._items: dict[str, Item | None] = {}
        self._probes: dict[str, Probe] = {}
        self._run_id = ""
        self.drawers = Drawers.read(session, settings, served.base_weights)

    def chunks(self, scope: Scope) -> Iterator[Chunk]:
        """Tasks and skips, users in the order of their ids.

        With a limit it begins at another user on every date.
        """
        limit = scope.limit if scope.limit is not None else self._night.max_users
        self._run_id = run_id_of(self._date, scope.name)
        popular = self._popular()
        erased = set(self._session.scalars(select(Erasure.user_id).where(Erasure.completed_at.is_(None))))
        drawn_for = 0
        if scope.users is not None:
            yield self._unknown_users(scope.users, erased)
        for rows in self._users(scope.users, limit):
            tasks: list[PlannedTask] = []
            skips = [Skip(row.user_id, ERASED) for row in rows if row.user_id in erased]
            users = [self._user(row, popular) for row in rows if row.user_id not in erased]
            skips += [user for user in users if isinstance(user, Skip)]
            known = [user for user in users if isinstance(user, _User)]
            self._probe_images(known)
            drawn_before = self._drawn_before([user.user_id for user in known])
            for user in known:
                planned = self._plan_user(user, drawn_before)
                skips += planned.skips
                if planned.tasks and limit is not None and drawn_for >= limit:
                    yield Chunk(tuple(tasks), tuple(skips))
                    return
                drawn_for += bool(planned.tasks)
                tasks += planned.tasks
            yield Chunk(tuple(tasks), tuple(skips))

    def _users(self, only: Sequence[str] | None, limit: int | None) -> Iterator[Sequence[Any]]:
        query = (
            select(UserHistory.user_id, UserHistory.entries, Recommendation.item_ids)
            .outerjoin(Recommendation, Recommendation.user_id == UserHistory.user_id)
            .order_by(UserHistory.user_id)
            .limit(USERS_AT_ONCE)
        )
        if only is not None:
            query = query.where(UserHistory.user_id.in_(only))
        first = self._first_user(only, limit) if limit is not None else None
        if first is None:
            yield from self._pages(query)
            return
        yield from self._pages(query.where(UserHistory.user_id >= first))
        yield from self._pages(query.where(UserHistory.user_id < first))

    def _pages(self, query: Any) -> Iterator[Sequence[Any]]:
        after = ""
        while rows := self._session.execute(query.where(UserHistory.user_id > after)).all():
            yield rows
            after = rows[-1].user_id

    def _first_user(self, only: Sequence[str] | None, limit: int) -> str | None:
        """The user that a limited run begins with: `limit` further on every day, so that all have their turn."""
        users = select(UserHistory.user_id)
        if only is not None:
            users = users.where(UserHistory.user_id.in_(only))
        count = self._session.scalar(select(func.count()).select_from(users.subquery())) or 0
        place = self._date.toordinal() * limit % max(1, count)
        return self._session.scalar(users.order_by(UserHistory.user_id).offset(place).limit(1))

    def _unknown_users(self, wanted: Sequence[str], erased: set[str]) -> Chunk:
        found = set(self._session.scalars(select(UserHistory.user_id).where(UserHistory.user_id.in_(wanted))))
        unknown = sorted(set(wanted) - found)
        return Chunk(skips=tuple(Skip(user_id, ERASED if user_id in erased else NO_HISTORY) for user_id in unknown))

    def _user(self, row: Any, popular: list[str]) -> _User | Skip:
        history = list(dict.fromkeys(str(entry["item_id"]) for entry in row.entries))
        if len(history) < self._night.min_history:
            return Skip(row.user_id, TOO_LITTLE_HISTORY)
        seen = set(history)
        if row.item_ids:
            return _User(row.user_id, history, list(dict.fromkeys(row.item_ids)), recommended=True)
        return _User(row.user_id, history, [item for item in popular if item not in seen], recommended=False)

    def _popular(self) -> list[str]:
        """Items by how many histories hold them: targets for users without recommendations."""
        return list(self._session.scalars(_POPULAR))

    def _probe_images(self, users: Sequence[_User]) -> None:
        """Fetch each image that these users' tasks need once, and others in place of unreadable ones."""
        self._load_items({item for user in users for item in (*user.history, *user.targets)})
        while True:
            wanted: set[str] = set()
            for user in users:
                wanted.update(self._unseen(user.history, self._night.history_length))
                wanted.update(self._unseen(user.targets, self._night.targets_per_user, target=True))
            if not wanted:
                return
            self._probes.update(self._images.probe_all(wanted))

    def _unseen(self, item_ids: Sequence[str], enough: int, *, target: bool = False) -> Iterator[str]:
        """Addresses to probe before it is known which items are the first `enough` that can be used."""
        usable = 0
        for item_id in item_ids:
            if usable == enough:
                return
            problem = self._problem(item_id, target=target)
            usable += problem is None
            item = self._items[item_id]
            if problem is None and item is not None and item.image_uri and item.image_uri not in self._probes:
                yield item.image_uri

    def _load_items(self, item_ids: set[str]) -> None:
        missing = sorted(item_ids - self._items.keys())
        for start in range(0, len(missing), 5000):
            page = missing[start : start + 5000]
            self._items.update(dict.fromkeys(page))
            self._items.update(
                {item.item_id: item for item in self._session.scalars(select(Item).where(Item.item_id.in_(page)))}
            )

    def _problem(self, item_id: str, *, target: bool = False) -> str | None:
        """Why the item cannot be used, if so; images not probed yet count as readable.

        A deleted item may still be in a history.
        """
        item = self._items[item_id]
        if item is None:
            return UNKNOWN_ITEM
        if target and item.deleted_at is not None:
            return DELETED_ITEM
        if not item.title.strip():
            return NO_TEXT
        if not item.image_uri:
            return NO_IMAGE
        probe = self._probes.get(item.image_uri)
        return UNREADABLE_IMAGE if probe is not None and probe.sha256 is None else None

    def _drawn_before(self, user_ids: Sequence[str]) -> set[tuple[str, str, str, str]]:
        """(user, item, fingerprint, weights) of what published runs drew or refused, up to this date.

        Drawing it again would give the same.
        """
        rows = self._session.execute(
            select(NightTask.user_id, NightTask.item_id, NightTask.input_fingerprint, NightTask.weights)
            .join(NightRun, NightRun.run_id == NightTask.run_id)
            .where(
                NightTask.user_id.in_(user_ids),
                NightTask.status.in_(("done", "refused")),
                NightRun.status == "published",
                NightRun.logical_date <= self._date,
                NightRun.run_id != self._run_id,
            )
        )
        return {(user, item, fingerprint, weights) for user, item, fingerprint, weights in rows}

    def _plan_user(self, user: _User, drawn_before: set[tuple[str, str, str, str]]) -> Chunk:
        usable = [item for item in user.history if self._problem(item) is None][: self._night.history_length]
        if len(usable) < self._night.min_history:
            return Chunk(skips=(Skip(user.user_id, TOO_FEW_IMAGES),))
        history = tuple(self._image(item) for item in reversed(usable))
        tasks, skips = [], []
        eligible = 0
        for item_id in user.targets:
            if eligible == self._night.targets_per_user:
                break
            problem = self._problem(item_id, target=True)
            if problem:
                if user.recommended:
                    skips.append(Skip(user.user_id, problem, item_id))
                continue
            eligible += 1
            task = self._task(user.user_id, item_id, history)
            if (task.user_id, item_id, task.input_fingerprint, task.weights) in drawn_before:
                skips.append(
                    Skip(task.user_id, UNCHANGED, item_id, task.input_fingerprint, task.model_version, task.weights)
                )
            else:
                tasks.append(task)
        if not eligible:
            skips.append(Skip(user.user_id, NO_TARGETS))
        return Chunk(tuple(tasks), tuple(skips))

    def _task(self, user_id: str, item_id: str, history: tuple[FrozenImage, ...]) -> PlannedTask:
        prompt = self._prompt(item_id, history)
        answers = answers_fingerprint(prompt, self._drawing_settings)
        drawer = self.drawers.drawer_for(user_id)
        return PlannedTask(
            user_id=user_id,
            item_id=item_id,
            input_fingerprint=input_fingerprint(prompt, self._drawing_settings),
            answers_fingerprint=answers,
            model_version=drawer.version,
            weights=drawer.weights,
            adapter_version=drawer.number,
            seed=task_seed(user_id, item_id, drawer.weights, answers),
            prompt=prompt.model_dump(mode="json"),
        )

    def _image(self, item_id: str) -> FrozenImage:
        item = self._items[item_id]
        assert item is not None and item.image_uri is not None  # noqa: S101, PT018 - `_problem` checks it
        sha256 = self._probes[item.image_uri].sha256
        assert sha256 is not None  # noqa: S101
        return FrozenImage(item_id=item_id, title=item.title.strip(), uri=item.image_uri, sha256=sha256)

    def _prompt(self, item_id: str, history: tuple[FrozenImage, ...]) -> FrozenPrompt:
        item = self._items[item_id]
        assert item is not None  # noqa: S101
        year = item.attributes.get("year")
        return FrozenPrompt(
            history=history,
            reference=self._image(item_id),
            description=item.description.strip(),
            year=str(year) if isinstance(year, int | str) and str(year).isdigit() else None,
            synthetic=item.attributes.get("synthetic") is True,
            tokenizer_version=self._tokenizer_version,
        )
