"""Requests made by schemathesis of our OpenAPI document, good and hostile ones, to a running server.

Not collected by `make test`: `make faults` runs it, with schemathesis from an environment of its own (SCHEMATHESIS names its command).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from generator.nightly.plan import Scope
from schemas.settings import Settings
from tests.support.consume_world import SEED
from tests.support.night_world import build, night
from tests.support.web_world import SHOP, page, running, web_settings

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(900)]
REQUESTS = os.environ.get("HOSTILE_REQUESTS", "100")
"""Number of requests of each operation and phase."""
UNLIMITED = {"reads_per_second": 10_000, "feedback_per_second": 10_000, "console_per_second": 10_000}


def test_every_answer_is_what_the_document_promises(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    with running(web_settings(settings, **UNLIMITED)) as web:
        shown = page(web, "u1", ["item8", "item9", "item10", "item11"], "r1")["posters"]
        showing = next(one["showing"] for one in shown if one["showing"])
        command = [os.environ["SCHEMATHESIS"], "run", f"{web.address}/v1/openapi.json"]
        command += ["--max-examples", REQUESTS, "--seed", str(SEED), "--checks", "all", "--continue-on-failure"]
        command += ["--header", f"Authorization: Bearer {SHOP}", "--no-color"]
        environment = {
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.support.hostile_requests",
            "PIGEON_TEST_SHOWING": showing,
        }
        done = subprocess.run(
            command, env=environment, text=True, capture_output=True, check=False, cwd=Path(__file__).parents[2]
        )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
