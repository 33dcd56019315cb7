"""The trace that a process belongs to, by W3C Trace Context.

The scheduler begins a trace for each command that it starts and gives it on in the environment's TRACEPARENT; log lines, requests
to Triton and the events of `posters.published.v1` bear it. Whoever starts `pigeon` within a trace of their own sets the variable.
"""

from __future__ import annotations

import os
import re
import secrets

TRACEPARENT = "TRACEPARENT"
"""Name of the environment variable."""
HEADER = "traceparent"
"""Name of the header of requests and of Kafka records."""
_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")


def new_traceparent() -> str:
    """The value for a trace that begins here."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_id() -> str | None:
    """The trace of this process, 32 hex digits; None without one, or where it has another form."""
    match = _FORM.fullmatch(os.environ.get(TRACEPARENT, ""))
    return match[1] if match else None


def headers() -> dict[str, str]:
    """What carries the trace of this process further; empty without one."""
    return {HEADER: os.environ[TRACEPARENT]} if trace_id() else {}
