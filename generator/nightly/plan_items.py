"""Items as a plan sees them, and which have changed since earlier plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from generator.nightly.clicked_posters import DrawnPicture
from generator.nightly.frozen_prompt import FrozenImage
from generator.nightly.images import CatalogImages, Probe
from generator.nightly.prompt_texts import ItemTexts, plan_fingerprint
from schemas.tables import Item, PlannedItem, Withdrawal

ITEMS_KEPT = 50_000
"""Items past which those of earlier users are no longer kept in memory; a kilobyte or two each."""

ITEMS_AT_ONCE = 5_000

UNKNOWN_ITEM = "item unknown"
DELETED_ITEM = "item deleted"
OPTED_OUT_ITEM = "item opted out of drawn posters"
WITHDRAWN_ITEM = "item withdrawn"
NO_TEXT = "item without text"
NO_IMAGE = "item without image"
UNREADABLE_IMAGE = "unreadable image"
AWAY_IMAGE = "picture host away"

_OF_USERS = text("SELECT DISTINCT unnest(items) FROM planned_users WHERE user_id = ANY(:users)")


@dataclass(slots=True)
class PlanItem:
    """An item that the catalogue has; `probe` is None until its picture was looked at."""

    item_id: str
    title: str
    description: str
    image_uri: str | None
    year: str | None
    synthetic: bool
    deleted: bool
    opted_out: bool
    """By its attribute `drawn_posters`."""
    withdrawn: bool
    probe: Probe | None = None
    texts: ItemTexts | None = None
    """Once it was used."""

    def problem(self, *, target: bool, drawn: bool = False) -> str | None:
        """Why it cannot be used, if so; a picture that was not looked at counts as readable.

        What may not be drawn for may still tell of a user's taste, in a history; `drawn`: there by a drawn picture, so that its
        own is not needed.
        """
        if target and self.deleted:
            return DELETED_ITEM
        if target and self.opted_out:
            return OPTED_OUT_ITEM
        if target and self.withdrawn:
            return WITHDRAWN_ITEM
        if not self.title:
            return NO_TEXT
        if drawn:
            return None
        if not self.image_uri:
            return NO_IMAGE
        if self.probe is None or self.probe.sha256 is not None:
            return None
        return AWAY_IMAGE if self.probe.away else UNREADABLE_IMAGE

    def prompt_texts(self) -> ItemTexts:
        """Its part of a prompt; only of an item that can be used."""
        if self.texts is None:
            assert self.image_uri and self.probe and self.probe.sha256  # noqa: S101, PT018 - else there is a problem
            image = FrozenImage(item_id=self.item_id, title=self.title, uri=self.image_uri, sha256=self.probe.sha256)
            self.texts = ItemTexts.of(image, self.description, self.year, synthetic=self.synthetic)
        return self.texts

    def drawn_texts(self, picture: DrawnPicture) -> ItemTexts:
        """Its part of a history with a drawn picture."""
        image = FrozenImage(
            item_id=self.item_id,
            title=self.title,
            uri=picture.uri,
            sha256=picture.sha256,
            picture_key=picture.picture_key,
        )
        return ItemTexts.of(image, self.description, self.year, synthetic=self.synthetic)

    def fingerprint(self) -> str:
        """Hash of all that plans depend on, once its picture was looked at."""
        states = (self.synthetic, self.deleted, self.opted_out, self.withdrawn)
        picture = (self.probe.sha256, self.probe.away) if self.probe else None
        return plan_fingerprint(self.title, self.description, self.image_uri, self.year, states, picture)


class PlanItems:
    """The items of one plan, loaded and looked at once each as long as memory allows."""

    def __init__(self, session: Session, images: CatalogImages) -> None:
        self._session = session
        self._images = images
        self._items: dict[str, PlanItem | None] = {}
        self._told: set[str] = set()
        withdrawn = select(Withdrawal.subject).where(Withdrawal.kind == "item", Withdrawal.lifted_at.is_(None))
        self._withdrawn = set(session.scalars(withdrawn))

    def trim(self) -> None:
        """Forget all items when they are too many."""
        if len(self._items) > ITEMS_KEPT:
            self._items.clear()
            self._told.clear()

    def load(self, item_ids: Iterable[str]) -> None:
        """Read these items."""
        for page in _pages(set(item_ids) - self._items.keys()):
            self._items.update(dict.fromkeys(page))
            query = select(
                Item.item_id,
                Item.title,
                Item.description,
                Item.image_uri,
                Item.attributes,
                Item.deleted_at.is_not(None),
            )
            for row in self._session.execute(query.where(Item.item_id.in_(page))):
                self._items[row[0]] = self._item(*row)

    def get(self, item_id: str) -> PlanItem | None:
        """A loaded item; None where the catalogue has none."""
        return self._items[item_id]

    def is_known(self, item_id: str, *, target: bool, drawn: bool = False) -> bool:
        """Whether it is loaded, and its picture was looked at if that matters."""
        if item_id not in self._items:
            return False
        item = self._items[item_id]
        return drawn or item is None or item.probe is not None or item.problem(target=target) is not None

    def problem(self, item_id: str, *, target: bool = False, drawn: bool = False) -> str | None:
        """Why a loaded item cannot be used, if so."""
        item = self._items[item_id]
        return UNKNOWN_ITEM if item is None else item.problem(target=target, drawn=drawn)

    def look(self, item_ids: Iterable[str]) -> None:
        """Look at the pictures of loaded items, those that were not looked at yet."""
        items = [item for item in map(self.get, item_ids) if item is not None and item.image_uri and item.probe is None]
        if items:
            found = self._images.probe_all({item.image_uri for item in items if item.image_uri})
            for item in items:
                item.probe = found[item.image_uri or ""]

    def fingerprints(self, item_ids: Iterable[str]) -> dict[str, str]:
        """What plans depend on, by loaded item; all of them are looked at, so that the next plan can compare."""
        wanted = list(item_ids)
        self.look(wanted)
        found = {item_id: self._items[item_id] for item_id in wanted}
        return {item_id: item.fingerprint() if item else "" for item_id, item in found.items()}

    def untold(self, item_ids: Iterable[str]) -> dict[str, str]:
        """As `fingerprints`, without items that were told of before: many users have the same ones."""
        new = set(item_ids) - self._told
        self._told |= new
        return self.fingerprints(new)

    def changed(self, users: Sequence[str] | None) -> dict[str, str]:
        """Items of earlier plans (of these users' plans) that are others now, with what they are.

        Pictures are asked for when they may have changed, each once, however many users have them.
        """
        changed: dict[str, str] = {}
        for page in self._planned(users):
            self.trim()
            self.load(page)
            now = self.fingerprints(page)
            changed |= {item_id: now[item_id] for item_id, planned in page.items() if now[item_id] != planned}
        return changed

    def _planned(self, users: Sequence[str] | None) -> Iterator[dict[str, str]]:
        """Pages of items that earlier plans looked at, with their fingerprints."""
        query = select(PlannedItem.item_id, PlannedItem.fingerprint)
        if users is not None:
            theirs = self._session.scalars(_OF_USERS, {"users": list(users)}).all()
            for page in _pages(theirs):
                yield _pairs(self._session.execute(query.where(PlannedItem.item_id.in_(page))))
            return
        query = query.order_by(PlannedItem.item_id).limit(ITEMS_AT_ONCE)
        after = ""
        while found := _pairs(self._session.execute(query.where(PlannedItem.item_id > after))):
            yield found
            after = next(reversed(found))

    def _item(
        self,
        item_id: str,
        title: str,
        description: str,
        image_uri: str | None,
        attributes: dict[str, Any],
        deleted: bool,
    ) -> PlanItem:
        year = attributes.get("year")
        return PlanItem(
            item_id=item_id,
            title=title.strip(),
            description=description.strip(),
            image_uri=image_uri,
            year=str(year) if isinstance(year, int | str) and str(year).isdigit() else None,
            synthetic=attributes.get("synthetic") is True,
            deleted=deleted,
            opted_out=attributes.get("drawn_posters") is False,
            withdrawn=item_id in self._withdrawn,
        )


def _pairs(rows: Iterable[Any]) -> dict[str, str]:
    return {row[0]: row[1] for row in rows}


def _pages(item_ids: Iterable[str]) -> Iterator[list[str]]:
    ordered = sorted(item_ids)
    return (ordered[start : start + ITEMS_AT_ONCE] for start in range(0, len(ordered), ITEMS_AT_ONCE))
