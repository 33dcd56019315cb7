"""Hooks of schemathesis: what no document can tell it.

A showing token is signed, so that a request that should be taken gets one from its environment.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Put a token of ours into feedback that the document allows."""
    meta = case.meta
    if case.path == "/v1/feedback" and meta is not None and meta.generation.mode.is_positive:
        for event in case.body["events"]:
            event["showing"] = os.environ["PIGEON_TEST_SHOWING"]
