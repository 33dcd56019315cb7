"""Fault 9 on real Postgres: schedulers in processes of their own race for one moment.

Their clock is the machine's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.settings import Settings
from tests.support.schedule_world import moments, until

pytestmark = [pytest.mark.integration, pytest.mark.faults]


def test_of_three_processes_one_runs_the_moment_and_the_next_takes_it_over_from_the_dead(
    settings: Settings, tmp_path: Path
) -> None:
    """Fault 9: each leader is killed while its night runs."""
    file = tmp_path / "nights"
    file.touch()
    own = {
        "PIGEON_STATE_DIR": str(settings.state_dir),
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
    }

    def start(how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.schedule_world", str(file), "2", how]
        return subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL)

    def lines() -> list[list[str]]:
        return [line.split() for line in file.read_text().splitlines()]

    racing = {process.pid: process for process in [start("hold") for _ in range(3)]}
    try:
        for number in range(1, 4):
            until(lambda number=number: len(lines()) == number, lines())  # type: ignore[misc]
            leader = racing.pop(int(lines()[-1][0]))
            leader.kill()
            leader.wait()
        last = start("end")
        racing[last.pid] = last
        until(lambda: [state for state, _ in moments(settings).values()] == ["done"], lines())
    finally:
        for process in racing.values():
            process.kill()
            process.wait()
    found = lines()
    assert len({pid for pid, _ in found}) == len(found) == 4, "nobody ran it beside its leader"
    assert len({day for _, day in found}) == 1
    assert [attempts for _, attempts in moments(settings).values()] == [4]
