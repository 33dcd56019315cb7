"""A real web server for the tests: on a port of its own, in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import uvicorn
from pydantic import SecretStr

from generator.cli import consumers_for_the_web
from generator.web.app import build_app
from generator.web.context import WebContext
from generator.web.outside import EventSender
from generator.web.protocol import WithoutUpgrade
from schemas.settings import Settings
from schemas.settings_web import ApiToken, WebSettings

KEY, OLD_KEY = "k" * 40, "o" * 40
SHOP, READER, OPERATOR = "shop-" * 8, "read-" * 8, "operate-" * 8
ORIGIN = "https://shop.example.com"


def web_settings(settings: Settings, **changes: Any) -> Settings:
    """The settings with three tokens, one of each role, and changes."""
    tokens = tuple(
        ApiToken(name=name, token=SecretStr(token), roles=(role,))
        for name, token, role in (("shop", SHOP, "recommend"), ("bob", READER, "read"), ("ann", OPERATOR, "operate"))
    )
    values: dict[str, Any] = {"signing_key": KEY, "tokens": tokens, "cors_origins": (ORIGIN,), "port": 0}
    return settings.model_copy(update={"web": WebSettings.model_validate({**values, **changes})})


@dataclass(frozen=True)
class Web:
    """A running server, and clients that are signed in to it."""

    context: WebContext
    address: str

    def client(self, token: str | None = None, **options: Any) -> httpx2.Client:
        """A client with a token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.Client(base_url=self.address, headers=headers, timeout=30, **options)

    def get(self, path: str, token: str | None = SHOP, **headers: str) -> httpx2.Response:
        """One answer."""
        with self.client(token) as client:
            return client.get(path, headers=headers)

    def post(self, path: str, token: str | None = OPERATOR, **options: Any) -> httpx2.Response:
        """One answer to a form or a body."""
        with self.client(token) as client:
            return client.post(path, **options)


@contextlib.contextmanager
def running(settings: Settings, *, sender: EventSender | None = None) -> Iterator[Web]:
    """The server until the block ends; `sender`: instead of the one to Kafka."""
    outside = consumers_for_the_web()
    if sender is not None:
        double = sender
        outside = replace(outside, open_sender=lambda _settings, _in_flight: double)
    context = WebContext.of(settings, outside)
    warnings: list[str] = []
    context.reader.start_quietly(warnings.append)
    config = uvicorn.Config(
        build_app(context), port=0, http=WithoutUpgrade, ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Web(context, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(20)
        context.close()


def page(web: Web, user: str, items: Sequence[str], request: str | None = None) -> dict[str, Any]:
    """A page of posters."""
    query = f"items={','.join(items)}" + (f"&request={request}" if request else "")
    answer = web.get(f"/v1/users/{user}/posters?{query}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
