"""Three alerts fire, and end, with their faults on a Prometheus that scrapes a live stack.

The rules are those of deploy/observability with their windows shortened; promtool tests them whole (`make check-deploy`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest

from schemas.events import INTERACTIONS
from schemas.settings import Settings
from tests.support.consume_world import send_raw
from tests.support.schedule_world import NEVER, free_port, publish

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Debian's package prometheus"),
]

RULES = Path(__file__).parents[2] / "deploy" / "observability" / "alerts.yml"


def shortened(rules: str) -> str:
    """The same rules, which look at 15 seconds and wait for one."""
    return re.sub(r"for: \w+", "for: 1s", re.sub(r"\[\d+[mh]\]", "[15s]", rules))


@contextmanager
def process(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    started = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def pigeon(settings: Settings, *arguments: str, **environment: str) -> ExitStack:
    own = {
        "PIGEON_STATE_DIR": str(settings.state_dir),
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
        "PIGEON_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "PIGEON_KAFKA__GROUP_ID": settings.kafka.group_id,
    }
    stack = ExitStack()
    stack.enter_context(process(sys.executable, "-m", "generator.cli", *arguments, **own, **environment))
    return stack


@contextmanager
def prometheus(folder: Path, ports: dict[str, int]) -> Iterator[Callable[[], set[str]]]:
    """A Prometheus that scrapes these ports each second; gives a function that names the alerts that fire."""
    (folder / "alerts.yml").write_text(shortened(RULES.read_text()))
    scrapes = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in ports.items()]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": scrapes,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]

    def firing() -> set[str]:
        try:
            with urlopen(f"http://127.0.0.1:{port}/api/v1/alerts", timeout=5) as answer:
                alerts = json.load(answer)["data"]["alerts"]
        except OSError:
            return {"Prometheus does not answer"}
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    with process(*command):
        yield firing


def until(condition: Callable[[], bool], firing: Callable[[], set[str]], doing: Callable[[], object] = int) -> None:
    """Wait for it, doing something each half second."""
    ends = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < ends, firing()
        doing()
        time.sleep(0.5)


def test_three_alerts_are_fired_by_their_faults_and_end_with_them(settings: Settings, tmp_path: Path) -> None:
    ports = {"consumers": free_port(), "scheduler": free_port()}
    now = datetime.now(UTC)
    due, alarm = now - timedelta(minutes=30), now - timedelta(minutes=5)
    crons = {f"PIGEON_SCHEDULE__{job}_CRON": NEVER for job in ("CLICKS", "RETRAIN", "CANARY", "UPKEEP", "ERASURE")}
    schedule = {
        "PIGEON_SCHEDULE__NIGHT_CRON": f"{due.minute} {due.hour} * * *",
        "PIGEON_SCHEDULE__ALARM_AT": f"{alarm:%H:%M}",
        "PIGEON_SCHEDULE__MISFIRE_GRACE_SECONDS": "1",
        "PIGEON_SCHEDULE__METRICS_PORT": str(ports["scheduler"]),
    }
    consumer = {
        "PIGEON_CONSUMER__METRICS_PORT": str(ports["consumers"]),
        "PIGEON_CONSUMER__DLQ_MAX_SHARE": "1",  # it goes on whatever the share
    }

    def consume() -> ExitStack:
        return pigeon(settings, "consume", **consumer)

    with ExitStack() as running:
        firing = running.enter_context(prometheus(tmp_path, ports))
        running.enter_context(pigeon(settings, "schedule", **crons, **schedule))
        until(lambda: {"PigeonNightNotPublished", "PigeonNoConsumer"} <= firing(), firing)
        assert "PigeonNoScheduler" not in firing()
        running.enter_context(consume())
        until(lambda: "PigeonNoConsumer" not in firing(), firing)
        until(lambda: "PigeonDeadLettersHigh" in firing(), firing, lambda: send_raw(settings, INTERACTIONS, [b"{"]))
        publish(settings, date.fromordinal(alarm.date().toordinal()))
        until(lambda: not {"PigeonNightNotPublished", "PigeonDeadLettersHigh"} & firing(), firing)
