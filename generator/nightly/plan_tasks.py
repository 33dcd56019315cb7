"""One user's tasks: which items tell of the taste, which targets are drawn, and why others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from generator.nightly.clicked_posters import DrawnPicture
from generator.nightly.drawers import Drawer
from generator.nightly.frozen_prompt import task_seed
from generator.nightly.plan_items import AWAY_IMAGE, PlanItems
from generator.nightly.plan_users import UNCHANGED, UserInput
from generator.nightly.prompt_texts import HistoryTexts, ItemTexts, PromptTexts
from generator.nightly.rows import HistoryCounts, PlannedTask, Skip, UserPlan
from schemas.settings import NightSettings

TOO_LITTLE_HISTORY = "too little history"
TOO_FEW_IMAGES = "too few readable history pictures"
NO_TARGETS = "no target left"

DrawnBefore = Mapping[tuple[str, str, str, str], bool]
"""As `PlanUsers.drawn_before` returns it."""


@dataclass
class UserTasks:
    """What comes of planning one user."""

    user: UserInput
    drawer: Drawer
    drawing: str
    """Fingerprint of what draws."""
    tasks: list[PlannedTask] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)
    unchanged: int = 0
    """Targets whose posters are there and current."""
    eligible: int = 0
    history: HistoryCounts = field(default_factory=HistoryCounts)
    """Pictures that the model is given."""

    def skip(self, reason: str, item_id: str = "") -> None:
        """Leave out a target, or the user."""
        self.skips.append(Skip(self.user.user_id, reason, item_id))

    def add(self, task: PlannedTask, drawn_before: DrawnBefore) -> None:
        """Draw a target, unless it was drawn from the same input."""
        self.eligible += 1
        again = drawn_before.get((task.user_id, task.item_id, task.input_fingerprint, task.weights))
        if again is None:
            self.tasks.append(task)
        elif again:
            kept = (task.input_fingerprint, task.model_version, task.weights)
            self.skips.append(Skip(task.user_id, UNCHANGED, task.item_id, *kept))
        else:
            self.unchanged += 1

    def plan(self) -> UserPlan:
        """What the next plan compares with."""
        user = self.user
        return UserPlan(
            user.user_id,
            user.history_fingerprint,
            user.targets_fingerprint,
            self.drawing,
            tuple(dict.fromkeys(self.looked_at)),
            self.eligible,
            Counter(skip.reason for skip in self.skips if skip.reason != UNCHANGED),
        )


class TaskPlanner:
    """Plans users one by one, from items that are loaded and looked at."""

    def __init__(self, night: NightSettings, items: PlanItems, prompts: PromptTexts) -> None:
        self._night = night
        self._items = items
        self._prompts = prompts

    def load(self, users: Sequence[UserInput], targets: Mapping[str, Sequence[str]]) -> None:
        """Read the items that these users' tasks need and look at each picture once.

        Others are read in place of those that cannot be used.
        """
        waiting = [user for user in users if len(user.history) >= self._night.min_history]
        while waiting:
            needed = {user.user_id: self._needed(user, targets[user.user_id]) for user in waiting}
            wanted = {item_id for of_user in needed.values() for item_id in of_user}
            self._items.load(wanted)
            self._items.look(wanted)
            waiting = [user for user in waiting if needed[user.user_id]]

    def plan(
        self, user: UserInput, targets: Sequence[str], drawer: Drawer, drawing: str, drawn_before: DrawnBefore
    ) -> UserTasks:
        """The user's tasks; `drawing` is the fingerprint of what draws."""
        found = UserTasks(user, drawer, drawing)
        history = self._history(found)
        if history is None:
            return found
        for item_id in targets:
            if found.eligible == self._night.targets_per_user:
                break
            found.looked_at.append(item_id)
            problem = self._items.problem(item_id, target=True)
            if problem is None:
                found.add(self._task(found, item_id, history), drawn_before)
            elif user.recommended:  # popular items that cannot be used are passed over uncounted
                found.skip(problem, item_id)
        if not found.eligible:
            found.skip(NO_TARGETS)
        return found

    def _history(self, found: UserTasks) -> HistoryTexts | None:
        """The pictures that the model is given; None where there are too few, with the reason among the skips."""
        history = found.user.history
        if len(history) < self._night.min_history:
            found.skip(TOO_LITTLE_HISTORY)
            return None
        usable: list[ItemTexts] = []
        for item_id in history:
            if len(usable) == self._night.history_length:
                break
            found.looked_at.append(item_id)
            picture = found.user.drawn.get(item_id)
            problem = self._items.problem(item_id, drawn=picture is not None)
            if problem is None:
                usable.append(self._texts(item_id, picture))
                found.history += HistoryCounts(1, int(picture is not None))
            elif (
                problem == AWAY_IMAGE
            ):  # an older picture in its place would draw all again, tonight and when it is back
                found.skip(AWAY_IMAGE)
                return None
        if len(usable) < self._night.min_history:
            found.skip(TOO_FEW_IMAGES)
            return None
        return HistoryTexts.of(usable[::-1])

    def _task(self, found: UserTasks, item_id: str, history: HistoryTexts) -> PlannedTask:
        texts = self._prompts.task(history, self._texts(item_id))
        user_id, drawer = found.user.user_id, found.drawer
        return PlannedTask(
            user_id=user_id,
            item_id=item_id,
            input_fingerprint=texts.input_fingerprint,
            answers_fingerprint=texts.answers_fingerprint,
            model_version=drawer.version,
            weights=drawer.weights,
            adapter_version=drawer.number,
            seed=task_seed(user_id, item_id, drawer.weights, texts.answers_fingerprint),
            prompt=texts.prompt,
        )

    def _texts(self, item_id: str, picture: DrawnPicture | None = None) -> ItemTexts:
        item = self._items.get(item_id)
        assert item is not None  # noqa: S101 - it has no problem
        return item.drawn_texts(picture) if picture else item.prompt_texts()

    # --- which items ---

    def _needed(self, user: UserInput, targets: Sequence[str]) -> list[str]:
        """Items to look at before it is known which are the first that can be used; those count as usable."""
        history = self._unknown(user.history, self._night.history_length, target=False, drawn=user.drawn)
        return history + self._unknown(targets, self._night.targets_per_user, target=True)

    def _unknown(self, item_ids: Sequence[str], enough: int, *, target: bool, drawn: Container[str] = ()) -> list[str]:
        unknown: list[str] = []
        usable = 0
        for item_id in item_ids:
            if usable == enough:
                break
            if not self._items.is_known(item_id, target=target, drawn=item_id in drawn):
                unknown.append(item_id)
                usable += 1
            else:
                usable += self._items.problem(item_id, target=target, drawn=item_id in drawn) is None
        return unknown
