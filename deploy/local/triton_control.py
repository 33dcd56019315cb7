"""Model control of the embedded Triton: a few HTTP requests, each on a connection of its own.

Plain HTTP because the supervisor forks (gRPC's threads forbid that) and because an idle kept-alive connection would hold
Triton's shutdown. The product itself talks gRPC.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

from deploy.local.server import LOCALHOST
from schemas.errors import ModelError, ServerUnavailable

# Requests that need the key; `load` takes files and runs them.
RESTRICTED = "model-repository,model-config,shared-memory,statistics,trace,logging"
KEY_HEADER = "admin-key"


@dataclass(frozen=True)
class ModelState:
    """One version of a model as the server sees it.

    `state` is READY, LOADING, UNLOADING, UNAVAILABLE or empty (never loaded).
    """

    name: str
    version: str
    state: str
    reason: str


class TritonControl:
    """Needs the admin key."""

    def __init__(self, http_port: int, admin_key: str) -> None:
        self._port = http_port
        self._key = admin_key

    def is_live(self) -> bool:
        """Whether the server answers; its `ready` would also mean that no model has ever failed to load."""
        try:
            return self._request("GET", "/v2/health/live", seconds=2.0)[0] == 200
        except ServerUnavailable:
            return False

    def index(self) -> list[ModelState]:
        """Every model that the server found in its repository.

        Raises:
            ServerUnavailable: no answer.
        """
        models = self._checked("POST", "/v2/repository/index", seconds=5.0)
        return [ModelState(m["name"], m.get("version", ""), m.get("state", ""), m.get("reason", "")) for m in models]

    def instances(self, model: str, version: str) -> list[str]:
        """The names of the model's instances.

        Raises:
            ServerUnavailable: no answer.
            ModelError: no such model is loaded.
        """
        config = self._checked("GET", f"/v2/models/{model}/versions/{version}/config", seconds=5.0)
        if config.get("backend") != "python":
            return []
        return [f"{group['name']}_{i}" for group in config["instance_group"] for i in range(group["count"])]

    def load(self, model: str, seconds: float = 120.0) -> None:
        """Load a model, or load it again when its files have changed.

        Raises:
            ServerUnavailable: no answer.
            ModelError: it does not load; the message says why.
        """
        self._checked("POST", f"/v2/repository/models/{model}/load", seconds)

    def unload(self, model: str) -> None:
        """Begin to unload a model; it ends when its last request has.

        Raises:
            ServerUnavailable: no answer.
        """
        self._checked("POST", f"/v2/repository/models/{model}/unload", seconds=10.0)

    def load_all(self) -> tuple[list[str], dict[str, str]]:
        """Load every model in the repository; returns the names loaded and the reason of each that was not.

        Raises:
            ServerUnavailable: no answer.
        """
        names = sorted({model.name for model in self.index()})
        failed = self._load(names)
        # An ensemble needs its parts first; whatever they are called, they are there the second time.
        failed = self._load(list(failed))
        return [name for name in names if name not in failed], failed

    def _load(self, names: list[str]) -> dict[str, str]:
        failed = {}
        for name in names:
            try:
                self.load(name)
            except ModelError as error:
                failed[name] = str(error)
        return failed

    def _checked(self, method: str, path: str, seconds: float) -> Any:
        status, body = self._request(method, path, seconds)
        if status == 200:
            return json.loads(body) if body else None
        try:
            reason = json.loads(body)["error"]
        except (ValueError, KeyError):
            reason = f"HTTP {status}"
        raise ModelError(" ".join(str(reason).split())[:500])

    def _request(self, method: str, path: str, seconds: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(LOCALHOST, self._port, timeout=seconds)
        try:
            connection.request(method, path, headers={KEY_HEADER: self._key, "Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnavailable(f"triton at {LOCALHOST}:{self._port} does not answer: {error}") from None
        finally:
            connection.close()
