"""The web server: uvicorn around the application, until it is stopped."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn

from generator.web.app import build_app
from generator.web.context import WebContext
from generator.web.guard import CONSOLE
from generator.web.health import WebHealth
from generator.web.outside import Outside
from generator.web.protocol import WithoutUpgrade
from schemas.errors import InputError, ServerUnavailable
from schemas.manifest_metrics import ReaderMetrics
from schemas.runtime import health
from schemas.runtime.metrics import registry
from schemas.runtime.stop_signals import stop_signals
from schemas.settings import Settings

BACKLOG = 2_048
STOP_SECONDS = 20
"""Seconds that requests under way have when the server is stopped."""


def serve(settings: Settings, outside: Outside, echo: Callable[[str], None], *, link: bool) -> list[int]:
    """Answer until stopped; returns the signals that came.

    `link`: tell an address that signs in, once, whoever opens it.

    Raises:
        InputError: a setting is missing or wrong, or a port is taken.
    """
    context = WebContext.of(settings, outside)
    try:
        _check_bucket(context, echo)
        context.reader.start_quietly(echo)
        listener = _listen(settings.web.host, settings.web.port)
        host, port = listener.getsockname()[:2]
        config = uvicorn.Config(
            build_app(context),
            http=WithoutUpgrade,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # access.py decides which proxies are believed
            timeout_graceful_shutdown=STOP_SECONDS,
            backlog=BACKLOG,
        )
        server = uvicorn.Server(config)
        with (
            listener,
            _reader_metrics(context),
            _own_metrics(settings, context),
            stop_signals(lambda _: _stop(server)) as received,
        ):
            for line in _where(settings, context, host, port, link=link):
                echo(line)
            with _without_signals(server):
                server.run(sockets=[listener])
        return received
    finally:
        context.close()


def _stop(server: uvicorn.Server) -> None:
    server.force_exit = server.should_exit
    server.should_exit = True


@contextlib.contextmanager
def _without_signals(server: uvicorn.Server) -> Iterator[None]:
    """Signals are handled by us, as in every other part."""
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment] # no option of uvicorn leaves them alone
    yield


def _check_bucket(context: WebContext, echo: Callable[[str], None]) -> None:
    try:
        context.store.check()
    except ServerUnavailable as error:
        echo(f"warning: {error}; posters are handed out as soon as it is back")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"web.host {host}, web.port {port}: {error.strerror}") from None
    return listener


@contextlib.contextmanager
def _reader_metrics(context: WebContext) -> Iterator[None]:
    """The reader's figures among ours."""
    figures = ReaderMetrics(context.reader.posters)
    registry().register(figures)
    try:
        yield
    finally:
        registry().unregister(figures)


@contextlib.contextmanager
def _own_metrics(settings: Settings, context: WebContext) -> Iterator[None]:
    web = settings.web
    if web.metrics_port is None:
        yield
        return
    try:
        server = health.serve(WebHealth(context), web.metrics_host, web.metrics_port)
    except OSError as error:
        raise InputError(f"web.metrics_port {web.metrics_port}: {error.strerror}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _where(settings: Settings, context: WebContext, host: str, port: int, *, link: bool) -> Iterator[str]:
    """What a person who starts the server wants to know."""
    name = f"[{host}]" if ":" in host else host
    address = settings.web.public_url or f"http://{name}:{port}"
    yield f"posters and feedback: {address}/v1 (document: {address}/v1/openapi.json)"
    if link:
        yield f"console: {address}{CONSOLE}/login?code={context.access.make_link_code()}"
        yield "  (signs in whoever opens it, once, within ten minutes)"
    else:
        yield f"console: {address}{CONSOLE}"
    if not settings.web.tokens and not link and not settings.web.proxy_user_header:
        yield "warning: web.tokens is empty: nobody can ask or sign in; `pigeon serve --new-token NAME` draws one"
