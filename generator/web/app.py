"""The whole web as one ASGI application."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from generator.web.api import Reads, add_api
from generator.web.console.views import Console
from generator.web.context import WebContext
from generator.web.direct import DirectReads
from generator.web.guard import CONSOLE, Guard
from generator.web.health import WebHealth
from generator.web.problems import WORDS, as_json, status_of, validation_words
from schemas.errors import PigeonError, ServerUnavailable
from schemas.runtime.metrics import registry

log = structlog.get_logger("pigeon.web")

TITLE = "Pigeon"
VERSION = "1"


def build_app(context: WebContext) -> ASGIApp:
    """API, console, health and metrics behind the guard."""
    app = FastAPI(
        title=TITLE,
        version=VERSION,
        summary="Personalized posters for a user's page, and what users did with them.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    health, console = WebHealth(context), Console(context)
    reads = Reads(context)
    add_api(app, context, reads)
    _add_health(app, health)
    console.add(app, health)
    _add_document(app)
    _add_errors(app, console)
    direct = DirectReads(app, reads)
    return Guard(direct, context.settings.web, context.access, console.problem, console.policy)


def _add_health(app: FastAPI, health: WebHealth) -> None:
    @app.get("/live", include_in_schema=False)
    def live() -> Response:
        return PlainTextResponse(health.alive()[1] + "\n")

    @app.get("/ready", include_in_schema=False)
    def ready() -> Response:
        good, words = health.ready()
        # Anybody may ask: which part is away, not where it is.
        public = words if words == "ok" else "away: " + ", ".join(health.problems())
        return PlainTextResponse(public + "\n", 200 if good else 503)

    @app.get("/metrics", include_in_schema=False)
    def show_metrics() -> Response:
        from prometheus_client import generate_latest

        return Response(generate_latest(registry()), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/favicon.ico", include_in_schema=False)
    def no_icon() -> Response:
        return Response(None, 204)

    @app.get("/", include_in_schema=False)
    def root() -> Response:
        return RedirectResponse(CONSOLE, 303)


def _add_document(app: FastAPI) -> None:
    document = app.openapi()
    document.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A token of web.tokens with the role recommend."}
    }
    _drop_null_parameters(document)
    schemas = document["components"].get("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)

    @app.get("/v1/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        return JSONResponse(document)


def _drop_null_parameters(document: dict[str, Any]) -> None:
    """Leave null out of parameters: what a query does not name is left out, it cannot be null."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
                if len(kinds) == 1:
                    del schema["anyOf"]
                    schema.update(kinds[0])


def _add_errors(app: FastAPI, console: Console) -> None:
    def answer(request: Request, status: int, words: str, headers: dict[str, str] | None = None) -> Response:
        request_id = request.state.request_id
        if request.url.path.startswith(CONSOLE):
            return console.problem(status, words, request_id)
        return as_json(status, words, request_id, headers)

    @app.exception_handler(PigeonError)
    async def known(request: Request, error: PigeonError) -> Response:
        words, status = str(error), status_of(error)
        if isinstance(error, ServerUnavailable) and not request.url.path.startswith(CONSOLE):
            # A recommender is told that a server is away; where it is stays in the log.
            log.warning("unavailable", request_id=request.state.request_id, error=words)
            words = "Kafka is away: send the same events again" if request.method == "POST" else words
        return await run_in_threadpool(answer, request, status, words)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors: list[Any] = list(error.errors())
        is_json = all(one.get("type") != "json_invalid" for one in errors)
        return answer(request, 422 if is_json else 400, validation_words(errors))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return await run_in_threadpool(answer, request, 500, WORDS[500])  # the guard logs it

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        words = WORDS.get(error.status_code, str(error.detail))
        return await run_in_threadpool(answer, request, error.status_code, words, dict(error.headers or {}))
