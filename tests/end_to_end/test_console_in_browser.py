"""The console in headless Chromium: wide and narrow, light and dark, axe-core, the keyboard alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.datasets.fetch import npm_command
from generator.feedback import registry
from generator.nightly.plan import Scope
from schemas.settings import Settings
from tests.support.night_world import build, night, reader
from tests.support.web_world import OPERATOR, running, web_settings

CHECKOUT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PACKAGES = ("axe-core@4.14.1", "playwright-core@1.65.1")


@pytest.fixture(scope="session")
def browser_packages() -> Path:
    """axe-core and playwright-core, fetched once per checkout."""
    folder = CHECKOUT / ".pigeon" / "browser"
    if not (folder / "node_modules" / "playwright-core").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        npm = npm_command(CHECKOUT / ".pigeon" / "cache", lambda *_: None)
        subprocess.run(
            [*npm, "install", "--no-save", "--prefix", str(folder), *PACKAGES], check=True, capture_output=True
        )
    return folder / "node_modules"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
@pytest.mark.integration
@pytest.mark.timeout(900)
def test_every_page_works_wide_and_narrow_in_light_and_dark_and_with_the_keyboard(
    settings: Settings, engine: Engine, tmp_path: Path, browser_packages: Path
) -> None:
    build(settings, tmp_path / "art", users=4)
    night(settings).run(Scope())
    with Session(engine) as session, session.begin():
        champion = registry.ensure_champion(session, "nano", "ab" * 32).version
    poster = reader(settings).rows().to_pylist()[0]["poster_id"]
    pages = [
        "/console",
        "/console/nights",
        "/console/nights/night-20260301",
        "/console/nights/night-20260301/tasks?status=done",
        "/console/posters",
        f"/console/posters/{poster}",
        "/console/models",
        f"/console/models/{champion}",
        "/console/withdrawals",
        "/console/dead-letters",
        "/console/erasures",
        "/console/settings",
        "/console/audit",
    ]
    with running(web_settings(settings, console_per_second=1_000)) as web:
        ended = subprocess.run(
            [
                shutil.which("node") or npm_command(CHECKOUT / ".pigeon" / "cache", lambda *_: None)[0],
                str(CHECKOUT / "tests" / "support" / "console_browser.js"),
                web.address,
                OPERATOR,
                str(tmp_path),
                *pages,
            ],
            env={**os.environ, "NODE_PATH": str(browser_packages), "CHROMIUM": CHROMIUM or ""},
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert ended.returncode == 0, ended.stderr[-2_000:]
    assert json.loads(ended.stdout) == []
    assert len(list(tmp_path.glob("*.png"))) == 2 * len(pages)
