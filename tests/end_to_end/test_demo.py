"""The whole loop as a user runs it.

`pigeon demo` at its smallest, with the committed model, on servers of its own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import create_engine, text

from deploy.local.stack import Stack
from schemas.settings import load_settings

CHECKOUT = Path(__file__).parents[2]
NIGHT = "1998-04-23"
EVENING = "1998-04-25"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def state_dir(own_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder of its own; only the downloads and the drawn art are shared with the checkout's."""
    folder = tmp_path_factory.mktemp("demo") / ".pigeon"
    folder.mkdir()
    cache = CHECKOUT / ".pigeon" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (folder / "cache").symlink_to(cache)
    yield folder
    Stack(folder).down(purge=True)


@pytest.fixture(scope="module")
def environment(state_dir: Path) -> dict[str, str]:
    """Minimums that three users can meet; every threshold of the gate stays as shipped."""
    return {
        **os.environ,
        "PIGEON_STATE_DIR": str(state_dir),
        "PIGEON_RETRAIN__MIN_PAIRS": "2",
        "PIGEON_RETRAIN__GATE_MIN_PAIRS": "1",
        "PIGEON_RETRAIN__HOLDOUT_SHARE": "0.4",
        "PIGEON_RETRAIN__GATE_TASKS": "2",
        "PIGEON_NIGHT__TARGETS_PER_USER": "2",
    }


@pytest.fixture(scope="module")
def run(environment: dict[str, str]) -> Run:
    """Run a command to its end."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "generator.cli", *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            cwd=CHECKOUT,
        )

    return command


def rows(state_dir: Path, query: str) -> list[tuple[object, ...]]:
    """Ask the demo's own database."""
    engine = create_engine(load_settings(state_dir=state_dir).database.url.get_secret_value())
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return found


def _ends(address: str) -> bool:
    """Whether nothing answers there any more, within half a minute."""
    for _ in range(300):
        try:
            httpx2.get(f"{address}/live")
        except httpx2.TransportError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.integration
@pytest.mark.timeout(1500)
def test_demo_from_clicks_to_page_and_back(state_dir: Path, environment: dict[str, str], run: Run) -> None:
    page = state_dir / "page.html"
    demo = run("demo", "--keep", "--users", "4", "--page", str(page))
    assert demo.returncode == 0, demo.stdout + demo.stderr

    # Every click is stored once, and every user's history is made of them.
    assert rows(state_dir, "SELECT count(*), count(DISTINCT event_id) FROM interactions") == [(55370, 55370)]
    assert rows(state_dir, "SELECT count(*) FROM user_histories") == [(942,)]

    # The night drew what it planned, and posters differ from each other.
    runs = "SELECT run_id FROM night_runs WHERE logical_date = '{}'"
    ((run_id,),) = rows(state_dir, runs.format(NIGHT))
    tasks = "SELECT count(*) FROM night_tasks WHERE run_id = '{}' AND status = 'done'"
    ((done,),) = rows(state_dir, tasks.format(run_id))
    assert isinstance(done, int)
    assert done >= 6
    drawn = "SELECT count(*), count(DISTINCT image_sha256) FROM posters WHERE run_id = '{}'"
    ((posters, images),) = rows(state_dir, drawn.format(run_id))
    assert posters == images

    # Feedback came back through Kafka, and the retrain ended in a version with reasons or in a stated refusal.
    ((impressions,),) = rows(state_dir, "SELECT count(*) FROM poster_feedback WHERE action = 'impression'")
    assert isinstance(impressions, int)
    assert impressions > 0
    champions = rows(state_dir, "SELECT version FROM model_versions WHERE state = 'champion'")
    assert len(champions) <= 1

    # The page is self-contained: no address but data URIs and links in its text.
    html = page.read_text()
    assert len(re.findall(r'src="data:image/webp;base64,', html)) >= 20
    assert not re.search(r'(src|href)="(?!data:)', html)

    # The same night again draws nothing and writes nothing.
    before = rows(state_dir, "SELECT poster_id, image_sha256, created_at FROM posters ORDER BY poster_id")
    named = "SELECT jsonb_array_elements_text(settings -> 'scope' -> 'users') FROM night_runs WHERE run_id = '{}'"
    chosen = ",".join(str(user) for (user,) in rows(state_dir, named.format(run_id)))
    again = run("night", "run", "--date", NIGHT, "--users", chosen, "--publish")
    assert again.returncode == 0, again.stderr
    assert "nothing drawn" in again.stdout
    assert rows(state_dir, "SELECT poster_id, image_sha256, created_at FROM posters ORDER BY poster_id") == before

    # kill -9 in the middle of another night, then resume: it completes, and nothing is drawn twice.
    users = ",".join(str(user) for (user,) in rows(state_dir, "SELECT user_id FROM user_histories ORDER BY 1 LIMIT 3"))
    night = subprocess.Popen(
        [sys.executable, "-m", "generator.cli", "night", "run", "--date", EVENING, "--users", users],
        env=environment,
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    finished = "SELECT count(*) FROM night_tasks t JOIN night_runs r USING (run_id) WHERE r.logical_date = '{}' AND t.status <> 'pending'"
    while night.poll() is None and rows(state_dir, finished.format(EVENING)) == [(0,)]:
        time.sleep(0.2)
    assert night.poll() is None, "the night ended before it could be killed"
    night.send_signal(signal.SIGKILL)
    night.wait()
    ((killed,),) = rows(state_dir, runs.format(EVENING))
    first = rows(state_dir, "SELECT poster_id, created_at FROM posters p JOIN night_runs USING (run_id) ORDER BY 1")
    resumed = run("night", "resume", "--run", str(killed))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    left = "SELECT count(*) FROM night_tasks t JOIN night_runs r USING (run_id) WHERE r.logical_date = '{}' AND t.status = 'pending'"
    assert rows(state_dir, left.format(EVENING)) == [(0,)]
    after = rows(state_dir, "SELECT poster_id, created_at FROM posters p JOIN night_runs USING (run_id) ORDER BY 1")
    assert set(first) <= set(after)

    # The console's address was told, and somebody who follows it sees the latest posters.
    console = re.search(r"^console: (http://[^/]+)(/console/login\?code=(\S+))$", demo.stdout, re.MULTILINE)
    assert console, demo.stdout
    with httpx2.Client(base_url=console[1], follow_redirects=True) as browser:
        assert "Sign in" in browser.get(console[2]).text
        assert "Funnel" in browser.post("/console/login", data={"token": console[3]}).text
        assert browser.get("/console/posters").text.count('class="card"') >= 6

    down = run("down")
    assert down.returncode == 0
    assert _ends(console[1]), "the console ends with the servers"
    assert run("status").returncode == 3
