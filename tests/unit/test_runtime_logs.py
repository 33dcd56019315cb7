"""Log lines with the ids of their process, and the trace that goes from one process to the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from generator.nightly import schedule
from generator.nightly.announce import KafkaAnnouncer
from generator.serving.server import TritonServer
from schemas.events import PosterPublished
from schemas.runtime import trace
from schemas.settings_kafka import KafkaSettings

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
TELL = """
import threading
from schemas.runtime import logs
from schemas.settings import load_settings
import structlog
settings = load_settings()
logs.configure(settings)
logs.identify(run_id="night-20260301")
thread = threading.Thread(target=structlog.get_logger("pigeon.x").warning, args=("away",), kwargs={"server": "s3"})
thread.start()
thread.join()
logs.teller(settings, "pigeon.night", print)("2 posters drawn")
"""


def told(tmp_path: Path, **environment: str) -> tuple[list[str], list[str]]:
    """Lines on stdout and stderr of a process that logs."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PIGEON_")}
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        cwd=tmp_path,
        env={**plain, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_every_json_line_has_the_ids_and_the_trace_in_every_thread(tmp_path: Path) -> None:
    out, err = told(tmp_path, PIGEON_LOG_FORMAT="json", TRACEPARENT=PARENT)
    lines = [json.loads(line) for line in err]
    assert out == []
    assert [line["event"] for line in lines] == ["away", "2 posters drawn"]
    assert {line["run_id"] for line in lines} == {"night-20260301"}
    assert {line["trace_id"] for line in lines} == {TRACE}
    assert lines[0]["server"] == "s3"


def test_people_are_told_on_stdout_and_a_foreign_trace_is_left_alone(tmp_path: Path) -> None:
    out, err = told(tmp_path, TRACEPARENT="not a trace")
    assert out == ["2 posters drawn"]
    assert "trace_id" not in "".join(err)


@pytest.mark.parametrize(
    "value", ["", "garbage", f"00-{'0' * 32}-b7ad6b7169203331-01", f"ff-{TRACE}-b7ad6b7169203331-01"]
)
def test_a_trace_of_another_form_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(trace.TRACEPARENT, value)
    assert trace.trace_id() is None
    assert trace.headers() == {}


def test_the_scheduler_gives_each_command_a_trace_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "$TRACEPARENT" >> {tmp_path}/seen\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert [schedule.run_pigeon(["night", "run"], lambda _: None) for _ in range(2)] == [0, 0]
    seen = (tmp_path / "seen").read_text().split()
    assert len(set(seen)) == 2
    for value in seen:
        monkeypatch.setenv(trace.TRACEPARENT, value)
        assert trace.headers() == {"traceparent": value}


class Recorder:
    """Test double of a gRPC client and of a Kafka producer: keeps what it is given."""

    def __init__(self) -> None:
        self.headers: list[object] = []

    def infer(self, *_: object, headers: object, **__: object) -> Recorder:
        self.headers.append(headers)
        return self

    def as_numpy(self, _: str) -> np.ndarray:
        return np.zeros(1)

    def send(self, *_: object, headers: object, **__: object) -> Recorder:
        self.headers.append(headers)
        return self

    def flush(self, timeout: float) -> None:
        assert timeout

    def get(self, timeout: float) -> None:
        assert timeout


def test_the_trace_goes_on_to_triton_and_into_announced_events(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Recorder()
    server = object.__new__(TritonServer)
    server.client, server._shared = seen, None
    announcer = object.__new__(KafkaAnnouncer)
    announcer._settings, announcer._producer, announcer._error = KafkaSettings(), seen, OSError
    event = PosterPublished(
        poster_id="p", user_id="u", item_id="i", variant=0, image_key="k", manifest_key="m", propensity=1, model_version="v",
        occurred_at=datetime(2026, 3, 1, tzinfo=UTC),
    )  # fmt: skip
    for value in (PARENT, ""):
        monkeypatch.setenv(trace.TRACEPARENT, value)
        server.infer("unet", {"x": np.zeros(1, np.float64)}, ["y"], timeout_seconds=1)
        announcer.send([event])
    assert seen.headers == [{"traceparent": PARENT}, [("traceparent", PARENT.encode())], {}, []]
