"""Well-formed questions for posters, answered before the framework's routing and validation.

Those cost more than the answer. Whatever is not well-formed, or not answered, goes the framework's way, which has the words for it.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from generator.web.api import Reads
from generator.web.guard import USERS
from schemas.errors import PigeonError
from schemas.events import Id

_ID: TypeAdapter[str] = TypeAdapter(Id)
_TAIL = "/posters"


class DirectReads:
    """An ASGI application in front of another one."""

    def __init__(self, app: ASGIApp, reads: Reads) -> None:
        self._app = app
        self._reads = reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a question for posters; all else is the other application's."""
        asked = _asked(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        if asked is not None:
            none_match = next((value for name, value in scope["headers"] if name == b"if-none-match"), b"")
            try:
                answer = self._reads.answer(*asked, none_match.decode("latin-1") or None)
            except PigeonError:
                pass
            else:
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _asked(scope: Scope) -> tuple[str, list[str], str | None] | None:
    """User, items and request; None where the framework has to look."""
    path: str = scope["path"]
    if not (path.startswith(USERS) and path.endswith(_TAIL)):
        return None
    items: list[str] = []
    request: str | None = None
    for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name == "items":
            items.append(value)
        elif name == "request":
            if request is not None:
                return None
            request = value
    try:
        user = _ID.validate_python(path[len(USERS) : -len(_TAIL)])
        return (user, items, request if request is None else _ID.validate_python(request)) if items else None
    except ValidationError:
        return None
