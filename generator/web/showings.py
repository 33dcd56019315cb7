"""Showing tokens: all that a browser needs to tell what a user did with a poster.

A token names user, item, poster, propensity, the request and the time, signed; feedback takes them from it and from nowhere else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from generator.web.signing import Signer
from schemas.errors import InputError

PURPOSE = "showing"


class BadShowing(InputError):
    """A showing token that is not ours, or has expired."""


@dataclass(frozen=True, slots=True)
class Showing:
    """A poster that was handed out to be shown."""

    user_id: str
    item_id: str
    poster_id: str
    propensity: float
    request_id: str | None
    handed_out_at: int
    """Unix time, seconds: the beginning of the span in which a page's tokens stay the same."""

    @property
    def time(self) -> datetime:
        """`handed_out_at` as a date."""
        return datetime.fromtimestamp(self.handed_out_at, UTC)


def seal(signer: Signer, showing: Showing) -> str:
    """The token of a showing."""
    parts = [
        showing.user_id,
        showing.item_id,
        showing.poster_id,
        showing.propensity,
        showing.request_id,
        showing.handed_out_at,
    ]
    return signer.sign(PURPOSE, json.dumps(parts, separators=(",", ":")).encode())


def unseal(signer: Signer, token: str, now: float, lifetime_seconds: float) -> Showing:
    """The showing of a token.

    Raises:
        BadShowing: it was not signed by us, or it has expired.
    """
    payload = signer.open(PURPOSE, token)
    if payload is None:
        raise BadShowing("showing: not a token of ours; send the `showing` that came with the poster, as it is")
    user_id, item_id, poster_id, propensity, request_id, handed_out_at = json.loads(payload)
    if now > handed_out_at + lifetime_seconds:
        age = (now - handed_out_at) / 3600
        raise BadShowing(
            f"showing: expired, {age:.1f} h old (web.showing_seconds is {lifetime_seconds:g}); ask for posters again"
        )
    return Showing(user_id, item_id, poster_id, propensity, request_id, handed_out_at)
