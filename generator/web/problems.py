"""Errors as answers: a status and words, never a stack."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from schemas.errors import InputError, LockHeld, ModelError, PigeonError, Refused, ServerUnavailable

RETRY_SECONDS = 5


class NotFound(PigeonError):
    """There is no such thing: the status 404."""


_STATUS: tuple[tuple[type[PigeonError], int], ...] = (
    (NotFound, 404),
    (InputError, 422),
    (ServerUnavailable, 503),
    (LockHeld, 409),
    (Refused, 409),
    (ModelError, 409),
)
WORDS = {
    400: "the request cannot be read",
    401: "sign in: no token, or none that is known (Authorization: Bearer ...; setting web.tokens)",
    403: "this token may not do that (setting web.tokens, roles)",
    404: "there is no such page",
    405: "this page does not take that method",
    408: "the request's body did not come in time",
    413: "the request is too large (setting web.max_body_bytes)",
    415: "send application/json",
    429: "too many requests; wait a little",
    500: "an unexpected error; the server's log has it under this request's id",
}

Renderer = Callable[[int, str, str], Response]
"""Status, words and the request's id as a page."""


def status_of(error: PigeonError) -> int:
    """The status that an error of ours ends in."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def as_json(status: int, words: str, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """A problem of the API."""
    body = json.dumps({"error": words, "request_id": request_id}).encode()
    return Response(body, status, {**retry(status), **(headers or {})}, "application/json")


def retry(status: int, seconds: float = RETRY_SECONDS) -> dict[str, str]:
    """When to come again, where that helps."""
    return {"Retry-After": str(math.ceil(seconds))} if status in {429, 503} else {}


def validation_words(errors: list[Any]) -> str:
    """What was wrong with a request's fields, the first few, by their names."""
    found = []
    for one in errors[:3]:
        name = ".".join(str(part) for part in one.get("loc", ()))
        found.append(f"{name}: {str(one.get('msg', '')).removeprefix('Value error, ')}")
    more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
    return "; ".join(found) + more
