"""Tells an address of the operator's that a version was promoted or withdrawn.

Whatever goes wrong with that stops nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from generator.feedback.ports import RetrainContext

log = structlog.get_logger("pigeon.webhook")


def tell(
    context: RetrainContext, event: str, version: str, replaced: str | None, reason: str, figures: Mapping[str, Any]
) -> None:
    """POST one JSON object to `canary.webhook_url`, if it is set.

    Redirects are not followed, nothing is tried again.
    """
    settings = context.settings.canary
    if settings.webhook_url is None:
        return
    body = {
        "event": event,
        "version": version,
        "replaced": replaced,
        "reason": reason,
        "figures": dict(figures),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    import urllib3

    try:
        with urllib3.PoolManager(retries=False) as pool:
            answer = pool.request(
                "POST",
                settings.webhook_url.get_secret_value(),
                body=json.dumps(body, ensure_ascii=False, default=str).encode(),
                headers={"Content-Type": "application/json"},
                timeout=urllib3.Timeout(total=settings.webhook_timeout_seconds),
                redirect=False,
            )
    except (urllib3.exceptions.HTTPError, OSError) as error:
        problem = type(error).__name__  # its text may hold the address, which may hold a token
    else:
        if answer.status < 300:
            return
        problem = f"status {answer.status}"
    log.warning("webhook failed", event_name=event, version=version, problem=problem)
    context.echo(f"webhook of {event} {version} failed ({problem}); nothing else depends on it")
