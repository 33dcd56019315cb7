"""Children, identities and ports of the embedded servers, without any server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local import ports
from deploy.local.environment import external_services, write_environment
from deploy.local.process import Child, Command, ProcessId, kill_strays, strays, tail
from deploy.local.state import StateDir
from deploy.local.watchdog import RestartLimit
from schemas.errors import InputError
from schemas.settings import load_settings

PYTHON = Path(sys.executable).resolve()
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def wait_for(log: Path, text: str) -> None:
    for _ in range(500):
        if log.exists() and text in log.read_text():
            return
        signal.sigtimedwait([], 0.02)
    raise AssertionError(f"{text!r} never came")


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}]); {DEAF}"
    child = Child(Command([str(PYTHON), "-c", code], tmp_path, log))
    wait_for(log, "ready\nready")
    assert len(strays(tmp_path, [PYTHON])) == 2
    child.ask_to_stop()
    assert not child.wait(0.2)
    child.kill()
    assert child.exit_code() == -signal.SIGKILL
    kill_strays(tmp_path, [PYTHON])
    assert strays(tmp_path, [PYTHON]) == []


def test_only_our_program_in_our_folder_is_a_stray(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    sleep = Path("/bin/sleep").resolve()
    strangers = [
        subprocess.Popen(["/bin/sleep", "60"], cwd=ours),  # our folder, not our program
        subprocess.Popen([str(PYTHON), "-c", "import time; time.sleep(60)"], cwd=theirs),  # our program, not our folder
    ]
    left = subprocess.Popen([str(PYTHON), "-c", "import time; time.sleep(60)"], cwd=ours)
    try:
        assert kill_strays(ours, [PYTHON]) == 1
        assert left.wait(5) == -signal.SIGKILL
        assert [stranger.poll() for stranger in strangers] == [None, None]
        assert [p.pid for p in strays(ours, [sleep])] == [strangers[0].pid]
    finally:
        for process in (*strangers, left):
            process.kill()
            process.wait()


def test_a_reused_pid_is_a_stranger() -> None:
    process = subprocess.Popen(["/bin/sleep", "60"])
    try:
        identity = ProcessId.of(process.pid)
        assert identity
        assert ProcessId.from_record(identity.to_record()) == identity
        for stranger in (replace(identity, started=identity.started - 1), replace(identity, boot="another")):
            assert not stranger.is_running()
            stranger.signal(signal.SIGKILL)
        assert identity.is_running()
        identity.signal(signal.SIGKILL)
        assert process.wait(5) == -signal.SIGKILL
        assert not identity.is_running()
        identity.signal(signal.SIGKILL)  # nothing happens
    finally:
        process.kill()
        process.wait()


def test_a_zombie_does_not_run() -> None:
    process = subprocess.Popen(["/bin/sleep", "60"])
    identity = ProcessId.of(process.pid)
    assert identity
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.is_running()
    process.wait()


def test_ports_follow_the_folder_and_step_aside(tmp_path: Path) -> None:
    chosen = ports.choose(tmp_path)
    assert ports.choose(tmp_path) == chosen
    assert sorted(chosen) == sorted(ports.NAMES)
    assert len({opened for name, port in chosen.items() for opened in ports.opened_by(name, port)}) == 15
    # SeaweedFS also opens the port + 10000, so that one counts as taken too.
    with socket.socket() as other:
        other.bind(("127.0.0.1", chosen["s3_filer"] + ports.GRPC_OFFSET))
        other.listen()
        assert not ports.all_free(chosen)
        moved = ports.choose(tmp_path)
    assert not set(moved.values()) & set(chosen.values())
    assert all(port + ports.GRPC_OFFSET < 32_768 for port in moved.values())


def test_one_owner_per_state_folder(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    state.make()
    lock = state.lock()
    assert lock
    assert StateDir(tmp_path / "state").lock() is None
    assert StateDir(tmp_path / "state").owner() == ProcessId.of(os.getpid())
    state.save_record({"phase": "ready"})
    assert state.record()["phase"] == "ready"
    lock.close()
    assert state.owner() is None
    assert state.record() == {}  # what a dead owner wrote says nothing


def test_the_settings_file_is_read_back_as_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PIGEON_")]:
        monkeypatch.delenv(name)
    repository = "/home/a b/#1 $x/models"
    write_environment(tmp_path / "env", {"PIGEON_TRITON__MODEL_REPOSITORY": repository, "PIGEON_S3__BUCKET": "posters"})
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600
    read = load_settings(state_dir=tmp_path)
    assert str(read.triton.model_repository) == repository
    assert read.s3.bucket == "posters"
    sourced = subprocess.run(
        ["sh", "-c", '. ./env; printf %s "$PIGEON_TRITON__MODEL_REPOSITORY"'],
        check=True,
        capture_output=True,
        text=True,
    )
    assert sourced.stdout == repository
    with pytest.raises(InputError, match="move the project"):
        write_environment(tmp_path / "env", {"PIGEON_TRITON__MODEL_REPOSITORY": "/it's"})


def test_who_brings_which_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PIGEON_")]:
        monkeypatch.delenv(name)
    ours = {("PIGEON_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1"), ("PIGEON_TRITON__URL", "127.0.0.1:2")}
    assert external_services(ours) == {}
    monkeypatch.setenv("PIGEON_KAFKA__BOOTSTRAP_SERVERS", "kafka.example:9092")
    monkeypatch.setenv("PIGEON_TRITON__URL", "127.0.0.1:2")  # a shell that sourced our own file
    (tmp_path / "pigeon.toml").write_text('[s3]\nendpoint_url = "https://s3.example"\n')
    assert external_services(ours) == {"kafka": "PIGEON_KAFKA__BOOTSTRAP_SERVERS", "s3": "[s3] endpoint_url"}


def test_restarts_are_limited() -> None:
    limit = RestartLimit(count=2, seconds=3600)
    assert [limit.allows() for _ in range(4)] == [True, True, False, False]
    assert RestartLimit(count=1, seconds=0).allows()


def test_tail_of_a_log(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == "(no log)"
    (tmp_path / "log").write_bytes(b"\xff\n" * 9000 + b"one\ntwo\n")
    assert tail(tmp_path / "log", 2) == "    one\n    two"
