"""A Ray cluster for a night: one that runs already, or one of its own on this machine; extra `ray`.

Whoever can connect to a cluster runs code on its nodes, so there is a token: the setting `ray.token`, or Ray's own variables.
A cluster of the night's own draws one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import Any

from schemas.errors import InputError, ServerUnavailable
from schemas.settings_ray import RaySettings

OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's shared memory on this machine; workers exchange a few KiB."""
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def require_ray() -> None:
    """Refuse early, and without importing it.

    Raises:
        InputError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs ray: pip install 'pigeon-posters[ray]'")


@contextlib.contextmanager
def connected(settings: RaySettings) -> Iterator[Any]:
    """The module `ray`, connected; our workers end with the block, and so does a cluster of our own.

    Raises:
        InputError: Ray is not installed, or says that the cluster refuses our token.
        ServerUnavailable: no cluster answers at `ray.address`, or none that takes our token.
    """
    require_ray()
    _set_token(settings)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of ours reports home
    import ray

    with _own_signals():
        _connect(ray, settings)
    try:
        yield ray
    finally:
        ray.shutdown()


def _set_token(settings: RaySettings) -> None:
    """Ray reads its token from the environment, when it is imported."""
    if settings.token is not None:
        os.environ["RAY_AUTH_TOKEN"] = settings.token.get_secret_value()
    elif settings.address is None and not any(name in os.environ for name in TOKEN_VARIABLES):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if any(name in os.environ for name in TOKEN_VARIABLES):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _connect(ray: Any, settings: RaySettings) -> None:
    options: dict[str, Any] = {"address": settings.address or "local", "logging_level": "warning"}
    if settings.address is None:
        cpus = settings.workers and math.ceil(settings.workers * settings.cpus_per_worker)
        options |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    where = f"Ray at {settings.address}" if settings.address else "Ray on this machine"
    try:
        ray.init(**options)
    except ray.exceptions.AuthenticationError as error:
        raise InputError(
            f"{where} refuses our token: {_first_line(error)}; set PIGEON_RAY__TOKEN to RAY_AUTH_TOKEN of its nodes"
        ) from error
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        # Ray says only in its log that a token was refused, so both are named.
        raise ServerUnavailable(
            f"{where}: {_first_line(error)}; is it running, is this machine one of its nodes, and are PIGEON_RAY__ADDRESS and "
            "PIGEON_RAY__TOKEN (RAY_AUTH_TOKEN of its nodes) right?"
        ) from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handlers of signals: Ray puts its own in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
