"""What every request passes: limits, who asks, what they may; and headers on every answer."""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from generator.web import metrics
from generator.web.access import Access, Caller
from generator.web.limits import Limit
from generator.web.problems import WORDS, Renderer, as_json, retry
from schemas.settings_web import Role, WebSettings

log = structlog.get_logger("pigeon.web")

FEEDBACK = "/v1/feedback"
USERS = "/v1/users/"
CONSOLE = "/console"
OPEN = frozenset({"/live", "/ready", f"{CONSOLE}/login", f"{CONSOLE}/style.css", "/favicon.ico", "/"})
"""Pages without a token. Feedback brings showing tokens."""
BODY_SECONDS = 20.0
_PAGES = {"/v1/users": "posters", FEEDBACK: "feedback", CONSOLE: "console", "/metrics": "metrics"}
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
API_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, settings: WebSettings, access: Access, render: Renderer, policy: str) -> None:
        """`render` makes the console's problems, `policy` is its Content-Security-Policy."""
        self._app = app
        self._settings = settings
        self._access = access
        self._render = render
        self._policies = {True: policy.encode(), False: API_POLICY.encode()}
        self._secure = (settings.public_url or "").startswith("https://")
        self._reads = Limit(settings.reads_per_second)
        self._feedback = Limit(settings.feedback_per_second)
        self._console = Limit(settings.console_per_second)
        self._always = [(name.encode(), value.encode()) for name, value in _ALWAYS.items()]
        if self._secure:
            self._always.append((b"strict-transport-security", b"max-age=31536000"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        path: str = scope["path"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status, started = 500, False

        async def answer(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(path, headers, request_id)]
            await send(message)

        refused = await self._admit(scope, path, headers, state)
        try:
            if refused is None and scope["method"] in {"POST", "PUT", "PATCH"}:
                receive, refused = await self._with_body(receive, headers, path, request_id)
            if refused is not None:
                metrics.REFUSED.labels(str(refused.status_code)).inc()
                await refused(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer in words
            # As text: what shows the values of variables, as a console's log does, would show tokens.
            stack = traceback.format_exc()
            log.error("request failed", request_id=request_id, path=path, error=str(error), stack=stack)  # noqa: TRY400 - as text
            if not started:
                await self._problem(500, path, request_id)(scope, receive, answer)
        finally:
            page = next((name for prefix, name in _PAGES.items() if path.startswith(prefix)), "other")
            metrics.REQUEST_SECONDS.labels(page, f"{status // 100}xx").observe(time.perf_counter() - start)

    async def _admit(
        self, scope: Scope, path: str, headers: Mapping[str, str], state: dict[str, object]
    ) -> Response | None:
        """Note who asks; an answer when they may not."""
        peer = scope["client"][0] if scope.get("client") else ""
        address = state["address"] = self._access.client_address(headers, peer)
        if path == FEEDBACK:
            if scope["method"] == "OPTIONS":
                return self._preflight(headers)
            return self._limited(self._feedback, address, path, str(state["request_id"]))
        caller = state["caller"] = self._access.caller(headers, _cookies(headers), peer)
        limit = self._reads if path.startswith(USERS) else self._console
        limited = self._limited(limit, caller.name if caller else address, path, str(state["request_id"]))
        if limited or path in OPEN:
            return limited
        if caller is None and path.startswith(CONSOLE) and scope["method"] == "GET":
            return Response(None, 303, {"Location": f"{CONSOLE}/login"})
        return self._judge(caller, _role(path, scope["method"]), path, str(state["request_id"]))

    def _judge(self, caller: Caller | None, role: Role | None, path: str, request_id: str) -> Response | None:
        if caller is None:
            return self._problem(401, path, request_id, {"WWW-Authenticate": 'Bearer realm="pigeon"'})
        if role is not None and not caller.may(role):
            return self._problem(403, path, request_id)
        return None

    def _limited(self, limit: Limit, client: str, path: str, request_id: str) -> Response | None:
        seconds = limit.wait_seconds(client)
        return self._problem(429, path, request_id, retry(429, seconds)) if seconds else None

    def _problem(self, status: int, path: str, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
        words = WORDS[status]
        if path.startswith(CONSOLE):
            page = self._render(status, words, request_id)
            page.headers.update(headers or {})
            return page
        return as_json(status, words, request_id, headers)

    async def _with_body(
        self, receive: Receive, headers: Mapping[str, str], path: str, request_id: str
    ) -> tuple[Receive, Response | None]:
        """Read the whole body, up to the limit, so that no page waits for a slow sender."""
        limit = self._settings.max_body_bytes
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            return receive, self._problem(413, path, request_id, {"Connection": "close"})
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > limit:
                        return receive, self._problem(413, path, request_id, {"Connection": "close"})
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break
        except TimeoutError:
            return receive, self._problem(408, path, request_id, {"Connection": "close"})
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            first, whole = whole, None
            return first if first is not None else await receive()

        return replay, None

    def _headers(self, path: str, headers: Mapping[str, str], request_id: str) -> list[tuple[bytes, bytes]]:
        found = [*self._always, (b"x-request-id", request_id.encode())]
        found.append((b"content-security-policy", self._policies[path.startswith(CONSOLE)]))
        if path == FEEDBACK:
            origin = headers.get("origin", "")
            found += [(b"cache-control", b"no-store"), (b"vary", b"origin")]
            found += [(b"cross-origin-resource-policy", b"cross-origin")]
            if origin in self._settings.cors_origins:
                found.append((b"access-control-allow-origin", origin.encode("latin-1")))
                found.append((b"access-control-expose-headers", b"retry-after, x-request-id"))
        elif not path.startswith(USERS):
            found.append((b"cache-control", b"no-store"))
        return found

    def _preflight(self, headers: Mapping[str, str]) -> Response:
        if headers.get("origin", "") not in self._settings.cors_origins:
            return Response(None, 204, {"Allow": "POST, OPTIONS"})
        return Response(
            None,
            204,
            {
                "Allow": "POST, OPTIONS",
                "Access-Control-Allow-Methods": "POST",
                "Access-Control-Allow-Headers": "content-type",
                "Access-Control-Max-Age": "3600",
            },
        )


def _role(path: str, method: str) -> Role | None:
    """The role that a page needs; None where any will do."""
    if path.startswith(USERS):
        return "recommend"
    if path.startswith(CONSOLE):
        return "read" if method in {"GET", "HEAD"} or path == f"{CONSOLE}/logout" else "operate"
    return "read" if path == "/metrics" else None


def _cookies(headers: Mapping[str, str]) -> dict[str, str]:
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in cookies.items()}
