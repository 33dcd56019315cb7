"""The embedded servers: they work, they are mended, and nothing of them stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from botocore.exceptions import ClientError
from kafka import KafkaConsumer, KafkaProducer
from tritonclient.utils import InferenceServerException

from consumers.postgres import postgres_connection
from deploy.local import ports
from deploy.local.process import ProcessId, strays
from deploy.local.stack import Stack, parse_services
from deploy.local.supervisor import build_servers
from schemas.connections import kafka_options, s3_client, s3_options
from schemas.errors import InputError, ServerUnavailable
from schemas.events import INTERACTIONS
from schemas.settings import Settings, load_settings

pytestmark = pytest.mark.integration

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's
# A model of the least size: y = 2x, in two processes.
MODEL_CONFIG = """
name: "double"
backend: "python"
max_batch_size: 8
input [{name: "x" data_type: TYPE_FP32 dims: [2]}]
output [{name: "y" data_type: TYPE_FP32 dims: [2]}]
instance_group [{kind: KIND_CPU count: 2}]
"""
MODEL_CODE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)]) for x in inputs]
"""


def add_model(models: Path) -> None:
    (models / "double" / "1").mkdir(parents=True)
    (models / "double" / "config.pbtxt").write_text(MODEL_CONFIG)
    (models / "double" / "1" / "model.py").write_text(MODEL_CODE)


def double(url: str) -> list[float]:
    client = triton_grpc.InferenceServerClient(url)
    try:
        tensor = triton_grpc.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[1.5, -3.0]], np.float32))
        return client.infer("double", [tensor]).as_numpy("y")[0].tolist()
    finally:
        client.close()


def processes_of(stack: Stack) -> list[ProcessId]:
    """Every process of the stack's servers, by what they run and where; not by what the stack says."""
    known = stack.state.identity()
    assert known
    return [
        process
        for server in build_servers(stack.state, *known).values()
        if server.folder.exists()
        for process in strays(server.folder, server.executables)
    ]


def listening_on(pids: set[int]) -> set[str]:
    """The local addresses (hex, as in /proc/net) that the processes listen on."""
    inodes = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(handle.readlink()))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                found.add(words[1].partition(":")[0])
    return found


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)


def record_of(stack: Stack, name: str) -> ProcessId:
    return ProcessId.from_record(stack.state.record()["servers"][name]["process"])


@pytest.fixture
def new_stack(own_environment: None, tmp_path: Path) -> Iterator[Callable[[str], Stack]]:
    """Makes further stacks, each in a state folder of its own; whatever runs is stopped after the test."""
    made = []

    def make(name: str = "state") -> Stack:
        made.append(Stack(tmp_path / name))
        return made[-1]

    yield make
    for stack in made:
        stack.down(purge=True)


def query(settings: Settings, sql: str) -> list[tuple[object, ...]]:
    connection = postgres_connection(settings.database, "pigeon-tests")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def test_every_server_does_its_work(settings: Settings, stack: Stack) -> None:
    assert query(settings, "SHOW server_version")[0][0] == "18.6"
    assert query(settings, "SELECT count(*) FROM user_histories") == [(0,)]

    s3 = s3_client(**s3_options(settings.s3))
    s3.put_object(Bucket=settings.s3.bucket, Key="a/b", Body=b"poster", IfNoneMatch="*")
    assert s3.get_object(Bucket=settings.s3.bucket, Key="a/b")["Body"].read() == b"poster"
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=settings.s3.bucket, Key="a/b", Body=b"other", IfNoneMatch="*")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.put_object(Bucket="pigoen", Key="a", Body=b"")
    s3.close()

    topic = settings.kafka.topic_prefix + INTERACTIONS
    producer = KafkaProducer(**kafka_options(settings.kafka))
    producer.send(topic, key=b"u1", value=b"{}").get(20)
    producer.close()
    consumer = KafkaConsumer(
        topic,
        **kafka_options(settings.kafka),
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
    )
    assert len(consumer.partitions_for_topic(topic)) == 4
    assert next(consumer).value == b"{}"
    consumer.close()

    client = triton_grpc.InferenceServerClient(settings.triton.url)
    assert client.is_server_ready()
    client.close()

    assert [server.state for server in stack.status()] == ["ready"] * 4
    assert stack.state.env_file.stat().st_mode & 0o777 == 0o600
    # 127.0.0.1 in IPv4, and as an IPv4 address in IPv6
    local = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening_on({process.pid for process in processes_of(stack)}) <= local


def test_model_control_needs_the_key(settings: Settings, new_stack: Callable[[str], Stack]) -> None:
    client = triton_grpc.InferenceServerClient(settings.triton.url)
    with pytest.raises(InferenceServerException, match="restricted"):
        client.load_model("anything", files={"file:1/model.py": b"import os"}, config="{}")
    with pytest.raises(InferenceServerException, match="restricted"):
        client.get_model_repository_index()
    assert settings.triton.admin_key
    key = {"triton-grpc-protocol-admin-key": settings.triton.admin_key.get_secret_value()}
    assert not client.get_model_repository_index(headers=key).models
    client.close()
    secrets = new_stack("other").state
    assert secrets.identity() is None  # each state folder makes its own key


def test_two_stacks_and_up_and_down_twice(stack: Stack, new_stack: Callable[[str], Stack]) -> None:
    second = new_stack("second")
    add_model(second.state.models)
    (second.state.models / "broken" / "1").mkdir(parents=True)
    (second.state.models / "broken" / "config.pbtxt").write_text(MODEL_CONFIG.replace("double", "broken"))
    (second.state.models / "broken" / "1" / "model.py").write_text("raise ValueError('no weights here')")
    lines: list[str] = []
    second.up(tied=True, say=lines.append)
    assert [server.state for server in second.status()] == ["ready"] * 4
    assert [server.state for server in stack.status()] == ["ready"] * 4
    settings = load_settings(state_dir=second.state.path)
    assert double(settings.triton.url) == [3.0, -6.0]
    assert any("1 models, 1 failed" in line for line in lines)
    assert any("model broken does not load" in line and "no weights here" in line for line in lines)

    before = {server.name: server.pid for server in second.status()}
    second.up(tied=True)
    assert {server.name: server.pid for server in second.status()} == before
    with pytest.raises(InputError, match="no such server: mysql"):
        parse_services("mysql,s3")

    assert second.down()
    assert processes_of(second) == []
    assert not list(SHARED_MEMORY.glob(f"pigeon_{second.state.key}_*"))
    known = second.state.identity()
    assert known
    assert ports.all_free(known[0])
    assert not second.down()
    assert [server.state for server in second.status()] == ["stopped"] * 4
    assert [server.state for server in stack.status()] == ["ready"] * 4


def test_a_killed_supervisor_takes_its_servers_along_and_up_repairs(new_stack: Callable[[str], Stack]) -> None:
    stack = new_stack("state")
    add_model(stack.state.models)
    stack.up()
    settings = load_settings(state_dir=stack.state.path)
    query(settings, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert [server.state for server in stack.status()] == ["ready"] * 4
    supervisor = stack.state.owner()
    assert supervisor
    servers = [record_of(stack, name) for name in ("postgres", "s3", "kafka", "triton")]
    supervisor.signal(signal.SIGKILL)
    wait_until(lambda: not any(server.is_running() for server in servers), 20)
    assert [server.state for server in stack.status()] == ["stopped"] * 4

    # What such a death can leave: a pid file whose number now belongs to somebody else.
    pid_file = next(
        s for s in build_servers(stack.state, *stack.state.identity()).values() if s.name == "postgres"
    ).data
    (pid_file / "postmaster.pid").write_text(f"{os.getpid()}\n{pid_file}\n1\n1\n\n\n\n\n")
    stack.up(tied=True)
    assert query(settings, "SELECT answer FROM kept") == [(42,)]
    assert double(settings.triton.url) == [3.0, -6.0]


def test_servers_that_die_or_hang_are_mended(new_stack: Callable[[str], Stack]) -> None:
    stack = new_stack("state")
    add_model(stack.state.models)
    stack.up(tied=True)
    settings = load_settings(state_dir=stack.state.path)

    triton = next(s for s in build_servers(stack.state, *stack.state.identity()).values() if s.name == "triton")
    stubs = strays(triton.folder, triton.executables[-1:])
    assert len(stubs) == 2
    stubs[0].signal(signal.SIGKILL)
    log = stack.state.logs / "supervisor.log"
    wait_until(lambda: "double had a dead stub: loaded again" in log.read_text())
    for _ in range(4):  # both processes get their turn
        assert double(settings.triton.url) == [3.0, -6.0]

    for name in ("s3", "postgres", "kafka", "triton"):
        old = record_of(stack, name)
        old.signal(signal.SIGKILL)
        wait_until(lambda old=old, name=name: record_of(stack, name) != old)
    wait_until(lambda: [server.state for server in stack.status()] == ["ready"] * 4)
    assert query(settings, "SELECT 1") == [(1,)]
    wait_until(lambda: log.read_text().count("restarted in") == 4)
    producer = KafkaProducer(**kafka_options(settings.kafka))
    producer.send(INTERACTIONS, b"{}").get(30)
    producer.close()
    assert double(settings.triton.url) == [3.0, -6.0]

    # One that does not react to being asked is killed.
    record_of(stack, "s3").signal(signal.SIGSTOP)
    stack.down()
    assert processes_of(stack) == []
    assert "s3        did not stop when asked: killed" in log.read_text()


@pytest.mark.parametrize(
    ("number", "servers", "code"), [(signal.SIGINT, "kafka,postgres", 130), (signal.SIGTERM, "postgres", 143)]
)
def test_ctrl_c_leaves_nothing_behind(new_stack: Callable[[str], Stack], number: int, servers: str, code: int) -> None:
    stack = new_stack("state")
    command = subprocess.Popen(
        [sys.executable, "-m", "generator.cli", "up", "--only", servers],
        env={**os.environ, "PIGEON_STATE_DIR": str(stack.state.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout
    with command.stdout as output:
        for line in output:
            if line.startswith("settings"):
                break
        assert len(processes_of(stack)) > 3
        command.send_signal(number)
        assert "stopped" in output.read()
    assert command.wait(30) == code
    assert processes_of(stack) == []


def test_an_interrupted_start_leaves_nothing_behind(new_stack: Callable[[str], Stack]) -> None:
    stack = new_stack("state")
    command = subprocess.Popen(
        [sys.executable, "-m", "generator.cli", "up", "--detach"],
        env={**os.environ, "PIGEON_STATE_DIR": str(stack.state.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A test run in the background of a shell ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - nothing but exec follows
    )
    wait_until(lambda: bool(stack.state.record().get("servers")))
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    assert processes_of(stack) == []
    assert stack.state.owner() is None


def test_a_tied_stack_ends_with_its_caller(new_stack: Callable[[str], Stack]) -> None:
    stack = new_stack("state")
    code = f"""
import os, signal
from pathlib import Path
from deploy.local.stack import Stack, parse_services
Stack(Path({str(stack.state.path)!r})).up(services=("postgres",), tied=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    wait_until(lambda: stack.state.owner() is None, 20)
    assert processes_of(stack) == []


def test_given_addresses_are_not_started(new_stack: Callable[[str], Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEON_DATABASE__URL", "postgresql+psycopg2://me@db.example/pigeon")
    stack = new_stack("state")
    lines: list[str] = []
    stack.up(services=("postgres", "s3"), tied=True, say=lines.append)
    assert "postgres  external, by PIGEON_DATABASE__URL: not started" in lines
    assert [(s.name, s.state) for s in stack.status()][:2] == [("postgres", "external"), ("s3", "ready")]
    assert "DATABASE" not in stack.state.env_file.read_text()
    with pytest.raises(InputError, match="a stack without kafka runs"):
        stack.up(services=("kafka",))


def test_up_repairs_a_stack_that_gave_a_server_up(new_stack: Callable[[str], Stack]) -> None:
    stack = new_stack("state")
    stack.up(services=("postgres",), tied=True)
    log = stack.state.logs / "supervisor.log"
    for restarts in range(1, 4):
        server = record_of(stack, "postgres")
        assert server.is_running(), "who reads the line of a restart finds the new process in the record"
        server.signal(signal.SIGKILL)
        wait_until(lambda restarts=restarts: log.read_text().count("restarted in") == restarts)
    record_of(stack, "postgres").signal(signal.SIGKILL)
    wait_until(lambda: "given up after 3 restarts" in log.read_text())
    assert stack.status()[0].state == "dead"
    lines: list[str] = []
    stack.up(services=("postgres",), tied=True, say=lines.append)
    assert lines[0].startswith("repaired: the running stack had lost a server")
    assert stack.status()[0].state == "ready"


def test_taken_ports_are_replaced(new_stack: Callable[[str], Stack]) -> None:
    stack = new_stack("state")
    stack.up(services=("postgres",), tied=True)
    stack.down()
    first = stack.state.identity()
    assert first
    lines: list[str] = []
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do; old connections may linger
        stranger.bind(("127.0.0.1", first[0]["postgres"]))
        stranger.listen()
        stack.up(services=("postgres",), tied=True, say=lines.append)
    second = stack.state.identity()
    assert second
    assert second[0]["postgres"] != first[0]["postgres"]
    assert second[1] == first[1]
    assert any("taken by others" in line for line in lines)
    assert str(second[0]["postgres"]) in stack.state.env_file.read_text()


def test_a_server_that_cannot_start_says_why(new_stack: Callable[[str], Stack]) -> None:
    stack = new_stack("state")
    stack.up(services=("postgres", "triton"), tied=True)
    postgres = build_servers(stack.state, *stack.state.identity())["postgres"]
    stack.down()
    (postgres.data / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerUnavailable) as failure:
        stack.up(services=("postgres", "triton"), tied=True)
    assert "postgres ended with exit code 1 while starting" in str(failure.value)
    assert str(postgres.log) in str(failure.value)
    assert "initialized by PostgreSQL version 9" in str(failure.value)
    assert processes_of(stack) == []


def test_status_for_machines(pigeon: Callable[..., subprocess.CompletedProcess[str]], stack: Stack) -> None:
    done = pigeon("status", "--json")
    assert done.returncode == 0, done.stderr
    servers = json.loads(done.stdout)
    assert [server["name"] for server in servers] == ["postgres", "s3", "kafka", "triton"]
    assert {server["state"] for server in servers} == {"ready"}
    assert servers[0]["pid"] == stack.state.record()["servers"]["postgres"]["process"]["pid"]


def test_databases_of_tests_are_apart(settings: Settings, shared_settings: Settings) -> None:
    name = uuid.uuid4().hex
    query(settings, f"CREATE TABLE t_{name} ()")
    assert query(shared_settings, f"SELECT to_regclass('t_{name}')") == [(None,)]
