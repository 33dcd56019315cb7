"""Structured logs on stderr: readable or JSON, one level for us, warnings only from libraries.

Every line of a process has the ids that `identify` was given, and the id of the trace that the process belongs to.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import structlog

from schemas.runtime.trace import trace_id
from schemas.settings import Settings

_ids: dict[str, Any] = {}


def configure(settings: Settings) -> None:
    """Set up structlog, once per process.

    Secrets of the settings are never logged: settings are not.
    """
    level = getattr(logging, settings.log_level.upper())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_ids,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.getLogger("kafka").setLevel(logging.DEBUG if level == logging.DEBUG else logging.CRITICAL)
    if trace := trace_id():
        identify(trace_id=trace)


def identify(**ids: Any) -> None:
    """Put these ids on every later line of this process, in all of its threads."""
    _ids.update(ids)


def teller(settings: Settings, logger: str, echo: Callable[[str], None]) -> Callable[[str], None]:
    """What tells an operator a line: `echo` for people, a log line where log_format is json."""
    if settings.log_format != "json":
        return echo
    log = structlog.get_logger(logger)
    return lambda line: log.info(line)  # noqa: PLW0108 - the logger is bound at its first use


def _add_ids(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**_ids, **event}
