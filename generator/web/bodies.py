"""What the API takes and gives, as pydantic models: the OpenAPI document is made of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from schemas.events import EventTime, Id, ShortText

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _number(value: Any) -> Any:
    """Refuse what pydantic would take for a number and the document does not."""
    if isinstance(value, str | bool):
        raise ValueError("must be a number, not a text or a truth value")  # noqa: TRY004 - pydantic tells ValueErrors
    return value


def _time(value: Any) -> Any:
    """Refuse seconds since 1970, as a number or a text."""
    if isinstance(value, str) and not value.replace(".", "", 1).lstrip("+-").isdigit():
        return value
    raise ValueError("must be a time with its zone, such as 2026-11-29T20:15:00Z")


def _uuid(value: Any) -> Any:
    """Refuse other spellings: in braces, without hyphens."""
    if isinstance(value, str) and _UUID.fullmatch(value):
        return value
    raise ValueError("must be a UUID with hyphens")


# What validation asks for beyond lengths, for who makes requests from the document.
UrlId = Annotated[Id, Field(json_schema_extra={"pattern": r"^[^\s\u0000](?:[^\u0000]*[^\s\u0000])?$"})]
_Surface = Annotated[ShortText, Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]
_Time = Annotated[
    EventTime, BeforeValidator(_time), Field(json_schema_extra={"pattern": r"^(?:19[7-9][0-9]|2[01][0-9]{2})-"})
]
_Position = Annotated[int, Field(ge=0, le=1_000_000), BeforeValidator(_number)]
_EventId = Annotated[UUID, BeforeValidator(_uuid)]


class ShownPoster(BaseModel):
    """What to show for one item."""

    item: str
    source: Literal["tonight", "last_good", "item", "control"] = Field(
        description="tonight: drawn by the newest night; last_good: by an earlier one, and still right; item: the catalogue's own "
        "picture; control: the same, for a user of the control group."
    )
    image_url: str | None = Field(
        description="Address to open in a browser; null where the item's own picture has none."
    )
    poster_id: str | None
    variant: int | None
    propensity: float | None = Field(description="Probability with which this variant was chosen.")
    model_version: str | None
    synthetic: bool
    safety: str | None
    showing: str | None = Field(
        description="Token that feedback about this poster carries; null where there is nothing to learn from."
    )


class ShownSet(BaseModel):
    """The night that answers."""

    run_id: str
    logical_date: str


class Page(BaseModel):
    """Posters of one user for the items of one page, in their order; unknown items are in `missing`."""

    user: str
    set: ShownSet | None = Field(description="Null while nothing has been published.")
    posters: list[ShownPoster]
    missing: list[str]


class FeedbackEvent(BaseModel):
    """What a user did with one poster."""

    model_config = ConfigDict(extra="forbid")

    showing: Annotated[str, Field(min_length=1, max_length=4_096)] = Field(
        description="The token that came with the poster: user, item, poster and propensity are taken from it."
    )
    action: Literal["impression", "click", "dismiss"]
    event_id: _EventId | None = Field(
        None,
        description="The same event sent again counts once; left out, one event of each action per showing counts.",
    )
    position: _Position | None = Field(None, description="Place on the page, from 0.")
    surface: _Surface | None = Field(None, description="Where it was shown, such as home.")
    occurred_at: _Time | None = Field(None, description="Now, when left out.")


class Feedback(BaseModel):
    """Events of one page, all of them or none are taken."""

    model_config = ConfigDict(extra="forbid")

    events: list[FeedbackEvent] = Field(min_length=1, max_length=200)


class Accepted(BaseModel):
    """Events that Kafka has."""

    accepted: int
    event_ids: list[UUID]


class Problem(BaseModel):
    """Why a request was refused, in words."""

    error: str
    request_id: str
