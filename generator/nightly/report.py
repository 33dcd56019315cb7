"""The night's report: one self-contained HTML file beside the manifest."""

from __future__ import annotations

from typing import Any

from generator.nightly.ledger import Ledger
from generator.nightly.store import Store
from schemas.manifest import report_key
from schemas.tables import NightRun


def write_report(store: Store, ledger: Ledger, run: NightRun, figures: dict[str, Any]) -> str:
    """Write the report and return its key."""
    key = report_key(run.logical_date.isoformat(), run.run_id)
    store.put(key, str(figures).encode(), "text/html; charset=utf-8")
    return key
