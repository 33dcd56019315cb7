"""Posters for the console: by user or item, each beside what it was drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, Select, select, tuple_
from sqlalchemy.orm import Session

from generator.nightly.frozen_prompt import FrozenImage, FrozenPrompt
from generator.nightly.rows import CandidateRow
from generator.web.console.sessions import reading
from generator.web.signed_urls import ImageAddresses
from schemas.answers import AnswerSet as Answers
from schemas.answers import StoredAnswer
from schemas.manifest_files import art_key
from schemas.tables import AnswerSet, CurrentPosters, Item, NightTask, Poster, Withdrawal


@dataclass(frozen=True)
class Shown:
    """A picture of a prompt with the address that a browser can open, if any."""

    item_id: str
    title: str
    address: str | None


@dataclass(frozen=True)
class Card:
    """A poster on a page."""

    poster: Poster
    address: str
    title: str
    reference: Shown | None
    history: tuple[Shown, ...]
    is_current: bool
    """Whether the next set shows it: its task is the latest one that was done."""
    withdrawn: str | None
    """The reason, where it is taken back by itself."""


@dataclass(frozen=True)
class Detail:
    """A poster with all that it was chosen from."""

    card: Card
    task: NightTask | None
    answers: tuple[StoredAnswer, ...]
    chooser: str
    candidates: list[CandidateRow]
    others: list[Card]
    """The other variants of its task."""


class Posters:
    """Reads posters."""

    def __init__(self, engine: Engine, addresses: ImageAddresses) -> None:
        self._engine = engine
        self._addresses = addresses

    def of_user(self, user_id: str, after: tuple[str, str] | None, limit: int) -> list[Card]:
        """A user's posters by item, after a place (item, poster)."""
        query = select(Poster).where(Poster.user_id == user_id).order_by(Poster.item_id, Poster.poster_id)
        if after:
            query = query.where(tuple_(Poster.item_id, Poster.poster_id) > after)
        with reading(self._engine) as session:
            return self._cards(session, session.scalars(query.limit(limit)))

    def of_item(self, item_id: str, after: str | None, limit: int) -> list[Card]:
        """An item's posters in the order of their ids, which are hashes: a sample that stays the same."""
        query = select(Poster).where(Poster.item_id == item_id)
        return self._by_id(query, after, limit)

    def sample(self, after: str | None, limit: int) -> list[Card]:
        """Any posters, in the order of their ids."""
        return self._by_id(select(Poster), after, limit)

    def get(self, poster_id: str) -> Detail | None:
        """A poster with its answers and candidates."""
        with reading(self._engine) as session:
            poster = session.get(Poster, poster_id)
            if poster is None:
                return None
            task = session.get(NightTask, (poster.run_id, poster.user_id, poster.item_id))
            siblings = session.scalars(
                select(Poster)
                .where(
                    Poster.user_id == poster.user_id,
                    Poster.item_id == poster.item_id,
                    Poster.input_fingerprint == poster.input_fingerprint,
                    Poster.weights == poster.weights,
                )
                .order_by(Poster.variant)
            )
            cards = self._cards(session, siblings)
            answers = self._answers(session, task)
        own = next(card for card in cards if card.poster.poster_id == poster_id)
        candidates = [CandidateRow.parse(row) for row in task.candidates] if task else []
        others = [card for card in cards if card is not own]
        return Detail(
            own, task, answers.answers if answers else (), answers.chooser if answers else "", candidates, others
        )

    def _by_id(self, query: Select[Poster], after: str | None, limit: int) -> list[Card]:
        if after:
            query = query.where(Poster.poster_id > after)
        with reading(self._engine) as session:
            return self._cards(session, session.scalars(query.order_by(Poster.poster_id).limit(limit)))

    def _answers(self, session: Session, task: NightTask | None) -> Answers | None:
        if task is None:
            return None
        key = (task.user_id, task.item_id, task.answers_fingerprint, task.weights)
        row = session.get(AnswerSet, key)
        return Answers.unpack(row.answers) if row else None

    def _cards(self, session: Session, posters: Iterable[Poster]) -> list[Card]:
        found = list(posters)
        tasks = self._tasks(session, found)
        current = self._current(session, found)
        withdrawn = self._withdrawn(session, found)
        titles = self._titles(session, found)
        cards = []
        for poster in found:
            task = tasks.get((poster.run_id, poster.user_id, poster.item_id))
            prompt = FrozenPrompt.model_validate(task) if task else None
            mark = (poster.user_id, poster.item_id, poster.input_fingerprint, poster.weights)
            cards.append(
                Card(
                    poster,
                    self._addresses.of_key(poster.image_key),
                    titles.get(poster.item_id, poster.item_id),
                    self._shown(prompt.reference) if prompt else None,
                    tuple(self._shown(image) for image in prompt.history) if prompt else (),
                    mark in current,
                    withdrawn.get(poster.poster_id),
                )
            )
        return cards

    def _shown(self, image: FrozenImage) -> Shown:
        if image.picture_key:
            return Shown(image.item_id, image.title, self._addresses.of_key(art_key(image.sha256)))
        return Shown(image.item_id, image.title, self._addresses.of_uri(image.uri))

    def _tasks(self, session: Session, posters: Sequence[Poster]) -> dict[tuple[str, str, str], dict[str, object]]:
        keys = [(one.run_id, one.user_id, one.item_id) for one in posters]
        own = tuple_(NightTask.run_id, NightTask.user_id, NightTask.item_id)
        prompt = NightTask.prompt.op("-")("snapshot")
        rows = session.execute(
            select(NightTask.run_id, NightTask.user_id, NightTask.item_id, prompt).where(own.in_(keys))
        )
        return {(run, user, item): value for run, user, item, value in rows}

    def _current(self, session: Session, posters: Sequence[Poster]) -> set[tuple[str, str, str, str]]:
        c = CurrentPosters
        rows = session.execute(
            select(c.user_id, c.item_id, c.input_fingerprint, c.weights).where(
                tuple_(c.user_id, c.item_id).in_([(one.user_id, one.item_id) for one in posters])
            )
        )
        return {(user, item, fingerprint, weights) for user, item, fingerprint, weights in rows}

    def _withdrawn(self, session: Session, posters: Sequence[Poster]) -> dict[str, str]:
        rows = session.execute(
            select(Withdrawal.subject, Withdrawal.reason).where(
                Withdrawal.kind == "poster",
                Withdrawal.subject.in_([one.poster_id for one in posters]),
                Withdrawal.lifted_at.is_(None),
            )
        )
        return {str(subject): str(reason) for subject, reason in rows}

    def _titles(self, session: Session, posters: Sequence[Poster]) -> dict[str, str]:
        rows = session.execute(
            select(Item.item_id, Item.title).where(Item.item_id.in_({one.item_id for one in posters}))
        )
        return {str(item_id): str(title) for item_id, title in rows}
