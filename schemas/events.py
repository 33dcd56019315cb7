"""Kafka events: JSON, one pydantic model per topic, `schema_version` in each event.

Unknown fields are ignored (a newer producer may add some); an unknown `schema_version` is poison, because its meaning is
not known. Text is refused when Postgres cannot hold it (NUL, lone surrogates).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

MAX_ATTRIBUTE_DEPTH = 8


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL characters: Postgres text cannot hold them")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("must not contain lone surrogates: they are not valid UTF-8") from None
    return text


def _storable_json(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for depth in range(1, MAX_ATTRIBUTE_DEPTH + 1):
        below: list[Any] = []
        for node in level:
            if node and depth == MAX_ATTRIBUTE_DEPTH:
                raise ValueError(f"must not nest deeper than {MAX_ATTRIBUTE_DEPTH} levels")
            texts, children = (list(node), node.values()) if isinstance(node, dict) else ([], node)
            for child in children:
                if isinstance(child, str):
                    texts.append(child)
                elif isinstance(child, dict | list):
                    below.append(child)
                elif isinstance(child, float) and not (-1.8e308 < child < 1.8e308):
                    raise ValueError("must not contain NaN or infinity: JSON columns cannot hold them")
            _storable("".join(texts))  # at once: what one of them must not contain, their sum must not
        level = below
    return value


def _unpadded(text: str) -> str:
    if text != text.strip():
        raise ValueError("must not have blanks or line ends around it: it would be another id than the one without")
    return text


StoredId = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_storable)]
"""An id as it may once have been stored."""
Id = Annotated[StoredId, AfterValidator(_unpadded)]
Text = Annotated[str, Field(max_length=20_000), AfterValidator(_storable)]
ShortText = Annotated[str, Field(max_length=1_000), AfterValidator(_storable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable_json)]
# Range of years that timestamptz and Python both have, with room for clock errors to be seen rather than refused.
EventTime = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), le=datetime(2200, 1, 1, tzinfo=UTC))]
UnitInterval = Annotated[float, Field(ge=0, le=1)]


class Event(BaseModel):
    """Base of all events: version 1 of each, unknown fields ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: Literal[1] = 1


class CatalogItem(Event):
    """`catalog.items.v1`, compacted, keyed by item_id.

    A record without a value (a tombstone) deletes the item.

    `attributes.drawn_posters`: false keeps the item's own picture; no poster is drawn for it.
    """

    item_id: Id
    title: ShortText
    description: Text = ""
    genres: list[ShortText] = Field(default_factory=list, max_length=64)
    image_uri: Annotated[str, Field(max_length=2_048), AfterValidator(_storable)] | None = None
    attributes: JsonObject = Field(default_factory=dict)
    occurred_at: EventTime | None = None


class Interaction(Event):
    """`user.interactions.v1`, keyed by user_id."""

    event_id: UUID
    user_id: Id
    item_id: Id
    kind: Annotated[str, Field(min_length=1, max_length=32), AfterValidator(_storable)]
    occurred_at: EventTime
    context: JsonObject = Field(default_factory=dict)


class Recommendations(Event):
    """`user.recommendations.v1`, keyed by user_id: what the recommender will show, best first."""

    user_id: Id
    item_ids: list[Id] = Field(min_length=1, max_length=1_000)
    occurred_at: EventTime


class PosterFeedback(Event):
    """`posters.feedback.v1`, keyed by user_id: what a user did with a poster that was shown.

    Impressions of one poster with the same `request_id` are one showing; without it every impression is one.
    """

    event_id: UUID
    poster_id: Id
    user_id: Id
    item_id: Id
    action: Literal["impression", "click", "dismiss"]
    position: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    surface: ShortText | None = None
    propensity: Annotated[float, Field(gt=0, le=1)] | None = None
    request_id: Id | None = None
    occurred_at: EventTime


class Erasure(Event):
    """`users.erasure.v1`, keyed by user_id: a request to erase this user, whatever id was ever stored."""

    user_id: StoredId
    occurred_at: EventTime


class Objection(Event):
    """`users.objection.v1`, keyed by user_id: a user objects to drawn posters, or no longer does.

    The one that occurred last counts. Nothing is erased: the user sees the items' own pictures until `objects` is false again.
    """

    user_id: Id
    objects: bool
    occurred_at: EventTime
    reason: ShortText | None = None


class PosterPublished(Event):
    """`posters.published.v1`, keyed by user_id; we produce it when a poster can be surfaced."""

    poster_id: StoredId
    user_id: StoredId
    item_id: StoredId
    variant: Annotated[int, Field(ge=0)]
    image_key: ShortText
    manifest_key: ShortText
    propensity: UnitInterval
    model_version: ShortText
    occurred_at: EventTime


CATALOG = "catalog.items.v1"
INTERACTIONS = "user.interactions.v1"
RECOMMENDATIONS = "user.recommendations.v1"
FEEDBACK = "posters.feedback.v1"
ERASURE = "users.erasure.v1"
OBJECTION = "users.objection.v1"
PUBLISHED = "posters.published.v1"

# Topics that we consume, and the model of each one's value.
CONSUMED: dict[str, type[Event]] = {
    CATALOG: CatalogItem,
    INTERACTIONS: Interaction,
    RECOMMENDATIONS: Recommendations,
    FEEDBACK: PosterFeedback,
    ERASURE: Erasure,
    OBJECTION: Objection,
}
# Topics that must exist; compacted ones keep the last value of a key.
TOPICS: dict[str, type[Event]] = {**CONSUMED, PUBLISHED: PosterPublished}
TOPIC_OF: dict[type[Event], str] = {model: topic for topic, model in TOPICS.items()}
COMPACTED = frozenset({CATALOG})
DLQ_SUFFIX = ".dlq"


def key_of(event: Event) -> bytes:
    """Key of an event's record: its item in the catalogue, else its user, whose events stay in order."""
    match event:
        case CatalogItem():
            return event.item_id.encode()
        case Interaction() | Recommendations() | PosterFeedback() | Erasure() | Objection() | PosterPublished():
            return event.user_id.encode()
    raise TypeError(f"{type(event).__name__} is an event of no topic")


def all_topics(prefix: str = "") -> list[str]:
    """Every topic name with its dead-letter topic where we consume it."""
    return [prefix + t for t in TOPICS] + [prefix + t + DLQ_SUFFIX for t in CONSUMED]
