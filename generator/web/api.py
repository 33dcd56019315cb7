"""Posters for a user and the items of a page, and feedback: the recommender's side over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.responses import Response

from generator.web import metrics
from generator.web.bodies import Accepted, Feedback, FeedbackEvent, Page, Problem, UrlId
from generator.web.context import WebContext
from generator.web.showings import Showing, seal, unseal
from schemas.errors import InputError, ServerUnavailable
from schemas.events import PosterFeedback
from schemas.manifest import PosterChoice, Withdrawn

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request cannot be read."},
    401: {"model": Problem, "description": "No token, or none that is known."},
    403: {"model": Problem, "description": "The token lacks the role."},
    413: {"model": Problem, "description": "Too large: web.max_body_bytes."},
    422: {"model": Problem, "description": "A field is wrong; the words name it."},
    429: {"model": Problem, "description": "Too many requests; Retry-After says how long to wait."},
    503: {"model": Problem, "description": "S3 or Kafka is away; Retry-After says when to come again."},
}
BEARER: dict[str, Any] = {"security": [{"bearer": []}]}


def add_api(app: FastAPI, context: WebContext, reads: Reads) -> None:
    """Add the pages for recommenders."""
    feedback = FeedbackDesk(context)

    @app.get(
        "/v1/users/{user:path}/posters",
        operation_id="posters",
        summary="What to show a user for the items of a page",
        response_model=Page,
        responses={304: {"description": "Nothing has changed: If-None-Match."}, **_without(413)},
        openapi_extra=BEARER,
    )
    async def posters(
        request: Request,
        user: Annotated[UrlId, Path(description="The user's id.")],
        items: Annotated[
            list[Annotated[str, Field(json_schema_extra={"minLength": 1, "pattern": "[^,]"})]],
            Query(
                min_length=1,
                description="Ids of items by commas, in the page's order; given more than once, each is one id, commas and all.",
            ),
        ],
        request_id: Annotated[
            UrlId | None,
            Query(
                alias="request",
                description="The request's or session's id: needed where reader.rotation is not day, and told with feedback.",
            ),
        ] = None,
    ) -> Response:
        if len(request.query_params.getlist("request")) > 1:
            raise InputError("query.request: given more than once")
        return reads.answer(user, items, request_id, request.headers.get("if-none-match"))

    @app.post(
        "/v1/feedback",
        operation_id="feedback",
        summary="What users did with posters that were shown",
        status_code=202,
        response_model=Accepted,
        responses=_without(401, 403),
    )
    async def send_feedback(body: Feedback) -> Response:
        return await feedback.take(body)


def _without(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: what for status, what in _PROBLEMS.items() if status not in statuses}


class Reads:
    """Pages of posters."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self._settings = context.settings.web
        self._set, self._withdrawn = Mark(), Mark()

    def answer(self, user: str, items: list[str], request_id: str | None, none_match: str | None) -> Response:
        """A page, or 304 where the caller has it.

        Raises:
            InputError: no items, too many, or no request where the rotation needs one.
            ServerUnavailable: no manifest was ever read.
        """
        item_ids = self._item_ids(items)
        reader = self._context.reader
        reader.require()
        if reader.rotation != "day" and request_id is None:
            raise InputError(f"query.request: needed, because reader.rotation is {reader.rotation}")
        now = time.time()
        headers = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}
        if reader.rotation == "request":
            headers["Cache-Control"] = "private, no-store"
        else:
            tag = headers["ETag"] = self._tag(user, item_ids, request_id, now)
            if none_match is not None and tag in none_match:
                return Response(None, 304, headers)
        body = self._page(user, item_ids, request_id, now)
        return Response(json.dumps(body).encode(), 200, headers, "application/json")

    def _item_ids(self, items: list[str]) -> list[str]:
        if not all(one.strip(",") for one in items):
            raise InputError("query.items: names no item; give ids by commas")
        given = items if len(items) > 1 else items[0].split(",")
        found = [item for item in dict.fromkeys(given) if item]
        if len(found) > self._settings.max_items:
            raise InputError(f"query.items: {len(found)} items, at most {self._settings.max_items} (web.max_items)")
        return found

    def _tag(self, user: str, item_ids: Sequence[str], request_id: str | None, now: float) -> str:
        """A hash of all that an answer depends on, the spans of tokens and addresses included."""
        posters = self._context.reader.posters
        parts = (
            self._set.of(posters.current),
            self._withdrawn.of(posters.withdrawn),
            user,
            ",".join(item_ids),
            request_id or "",
            str(self._showing_span(now)),
            str(self._context.addresses.span(now)),
        )
        digest = hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return f'W/"{digest}"'

    def _showing_span(self, now: float) -> int:
        return int(now // (self._settings.showing_seconds / 2))

    def _page(self, user: str, item_ids: Sequence[str], request_id: str | None, now: float) -> dict[str, Any]:
        posters = self._context.reader.posters
        chosen = posters.posters_for(user, item_ids, key=request_id)
        handed_out_at = int(self._showing_span(now) * self._settings.showing_seconds / 2)
        rows = []
        for item_id, choice in chosen.items():
            metrics.POSTERS.labels(choice.source).inc()
            rows.append(self._row(user, item_id, choice, request_id, handed_out_at, now))
        missing = [item_id for item_id in item_ids if item_id not in chosen]
        if missing:
            metrics.POSTERS.labels("missing").inc(len(missing))
        current = posters.current
        shown = {"run_id": current.run_id, "logical_date": current.logical_date} if current else None
        return {"user": user, "set": shown, "posters": rows, "missing": missing}

    def _row(
        self, user: str, item_id: str, choice: PosterChoice, request_id: str | None, handed_out_at: int, now: float
    ) -> dict[str, Any]:
        addresses = self._context.addresses
        key = choice.image_key
        showing = None
        if choice.poster_id and choice.propensity:
            sealed = Showing(user, item_id, choice.poster_id, choice.propensity, request_id, handed_out_at)
            showing = seal(self._context.signer, sealed)
        return {
            "item": item_id,
            "source": choice.source,
            "image_url": addresses.of_key(key, now) if key else addresses.of_uri(choice.image_uri, now),
            "poster_id": choice.poster_id,
            "variant": choice.variant,
            "propensity": choice.propensity,
            "model_version": choice.model_version,
            "synthetic": choice.synthetic,
            "safety": choice.safety,
            "showing": showing,
        }


class Mark:
    """A short hash of a value that seldom changes, made once for each."""

    def __init__(self) -> None:
        self._made: tuple[object, str] = (None, "")

    def of(self, value: object) -> str:
        """The hash of a value that is never changed, only replaced."""
        seen, mark = self._made
        if seen is not value:
            text = value.to_json() if isinstance(value, Withdrawn) else repr(value).encode()
            mark = hashlib.sha256(text).hexdigest()
            self._made = value, mark
        return mark


class FeedbackDesk:
    """Feedback to Kafka: what is accepted, Kafka has."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self._settings = context.settings.web

    async def take(self, body: Feedback) -> Response:
        """Send all events and wait for Kafka; 202.

        Raises:
            BadShowing: a token is not ours or has expired; nothing was sent.
            ServerUnavailable: Kafka has not got all of them; sent again, those that it has count once.
        """
        now = time.time()
        events = [self._event(one, now) for one in body.events]
        try:
            await self._send(events)
        except ServerUnavailable:
            metrics.FEEDBACK.labels("unavailable").inc(len(events))
            raise
        metrics.FEEDBACK.labels("accepted").inc(len(events))
        answer = {"accepted": len(events), "event_ids": [str(event.event_id) for event in events]}
        return JSONResponse(answer, 202)

    async def _send(self, events: Sequence[PosterFeedback]) -> None:
        waiting: list[Future[None]] = []
        metrics.WAITING.inc(len(events))
        try:
            for event in events:
                waiting.append(self._context.sender.send(event))  # noqa: PERF401 - those before a refusal are waited for
        finally:
            try:
                await self._wait(waiting)
            finally:
                metrics.WAITING.dec(len(events))

    async def _wait(self, waiting: Sequence[Future[None]]) -> None:
        if not waiting:
            return
        tasks = [asyncio.ensure_future(asyncio.wrap_future(_copy(one))) for one in waiting]
        for task in tasks:  # what a late one ends with was told already, by the time that it took
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, late = await asyncio.wait(tasks, timeout=self._settings.feedback_seconds)
        failures = [error for one in done if (error := one.exception())]
        if failures:
            raise failures[0]
        if late:
            raise ServerUnavailable(
                f"Kafka did not take {len(late)} events within web.feedback_seconds; send them again"
            )

    def _event(self, one: FeedbackEvent, now: float) -> PosterFeedback:
        settings = self._settings
        showing = unseal(self._context.signer, one.showing, now, settings.showing_seconds)
        return PosterFeedback(
            event_id=one.event_id or _event_id(one),
            poster_id=showing.poster_id,
            user_id=showing.user_id,
            item_id=showing.item_id,
            action=one.action,
            position=one.position,
            surface=one.surface,
            propensity=showing.propensity,
            request_id=showing.request_id,
            occurred_at=one.occurred_at or datetime.now(UTC),
        )


def _event_id(one: FeedbackEvent) -> UUID:
    return uuid5(NAMESPACE_URL, f"{one.showing}\x1f{one.action}")


def _copy(future: Future[None]) -> Future[None]:
    """A future that may be cancelled without cancelling the other one.

    Who no longer waits has not taken the event back.
    """
    copied: Future[None] = Future()

    def end(done: Future[None]) -> None:
        if not copied.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is None:
            copied.set_result(None)
        else:
            copied.set_exception(error)

    future.add_done_callback(end)
    return copied
