"""A night drawn by a Ray cluster of two nodes, with its token, on real Postgres, S3 and Kafka.

The two Triton servers are test doubles that speak its protocol.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from consumers.postgres import postgres_connection
from generator.nightly import runs
from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.ray_worker import Assignment, DrawWorker, Place
from generator.nightly.rows import UserRange
from generator.nightly.run import Night, NightContext
from generator.nightly.shards import cut, tasks_per_shard
from generator.serving.client import TritonPigeon
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import InputError, LockHeld
from schemas.manifest import POINTER_KEY, Pointer
from schemas.settings import Settings
from schemas.tables import NightRun, NightTask, Poster
from tests.support.fake_triton import servers
from tests.support.night_world import NIGHT, Announcements, build
from tests.support.ray_nodes import RayNodes, two_nodes

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(600)]

CHECKOUT = Path(__file__).parents[2]
RUN = "night-20260301"
USERS, TARGETS = 24, 4


@pytest.fixture(scope="module")
def tritons() -> Iterator[list[str]]:
    with servers(2, seconds=0.3) as started:
        yield [address for address, _ in started]


@pytest.fixture
def world(settings: Settings, tritons: list[str], tmp_path: Path) -> Settings:
    """Users with tasks, and settings that lead to the two servers."""
    build(settings, tmp_path / "art", users=USERS, targets=TARGETS)
    return with_triton(settings, tritons, tmp_path)


def with_triton(settings: Settings, tritons: list[str], folder: Path) -> Settings:
    triton = settings.triton.model_copy(update={"url": ",".join(tritons), "model_repository": folder / "none"})
    return settings.model_copy(update={"triton": triton})


def local_night(settings: Settings) -> None:
    with TritonPigeon(settings) as model:
        Night(NightContext(settings, lambda: model, Announcements, lambda line: None), NIGHT).run(Scope())


def manifest(settings: Settings) -> list[bytes]:
    store = Store(settings.s3)
    pointer = store.get(POINTER_KEY)
    assert pointer
    bodies = [store.get(key) for key in Pointer.parse(pointer.body).current.keys]
    store.s3.close()
    return [body.body for body in bodies if body]


@pytest.fixture
def unbroken(world: Settings, tmp_path: Path) -> Iterator[list[bytes]]:
    """The manifest of the same night, drawn by `local` into a database and a bucket of its own."""
    url = world.database.url.get_secret_value()
    name, bucket = f"{url.rpartition('/')[2]}_local", f"{world.s3.bucket}-local"
    connection = postgres_connection(world.database, "pigeon-tests")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE pigeon_template")
    client = Store(world.s3).s3
    client.create_bucket(Bucket=bucket)
    data = world.model_dump()
    data["database"]["url"] = f"{url.rpartition('/')[0]}/{name}"
    data["s3"]["bucket"] = bucket
    other = Settings.model_validate(data)
    build(other, tmp_path / "art", users=USERS, targets=TARGETS)
    quick = other.triton.model_copy(update={"max_in_flight": 8})
    local_night(other.model_copy(update={"triton": quick}))
    yield manifest(other)
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    connection.close()
    client.delete_bucket(Bucket=bucket)
    client.close()


class Driver:
    """`pigeon night ARGUMENTS` in a process of its own."""

    def __init__(self, settings: Settings, *arguments: str, **variables: str) -> None:
        own = {
            "PIGEON_STATE_DIR": str(settings.state_dir),
            "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
            "PIGEON_S3__BUCKET": settings.s3.bucket,
            "PIGEON_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
            "PIGEON_KAFKA__GROUP_ID": settings.kafka.group_id,
            "PIGEON_IMAGES__ALLOWED_SCHEMES": json.dumps(settings.images.allowed_schemes),
            "PIGEON_TRITON__URL": settings.triton.url,
            "PIGEON_TRITON__MODEL_REPOSITORY": str(settings.triton.model_repository),
            "PIGEON_TRITON__MAX_IN_FLIGHT": "1",
            "PIGEON_RAY__SHARD_TASKS": "8",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "generator.cli", "night", *arguments],
            env={**os.environ, **own, **variables},
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ended(self, seconds: float = 240) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, out


def finished(settings: Settings) -> int:
    engine = connect(settings.database)
    with Session(engine) as session:
        count = session.scalar(select(func.count()).where(NightTask.run_id == RUN, NightTask.status == "done")) or 0
    engine.dispose()
    return count


def wait_for(condition: Callable[[], bool], driver: Driver, seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert driver.process.poll() is None, driver.ended()
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with two_nodes() as nodes:
        yield nodes


def test_a_night_on_ray_outlives_its_workers_its_cancelling_and_its_driver(
    world: Settings, unbroken: list[bytes], cluster: RayNodes, record_property: Callable[[str, object], None]
) -> None:
    """Fault 10 on a cluster: the manifest is the one that `local` gives, and nothing is there twice."""
    ray = ("--engine", "ray", "--ray-address", cluster.address)
    driver = Driver(world, "run", "--date", "2026-03-01", *ray, PIGEON_RAY__TOKEN=cluster.token)
    wait_for(lambda: finished(world) >= 4 and len(cluster.workers()) == 2, driver)  # one on each node
    workers = cluster.workers()
    record_property("MiB of a worker", max(worker.memory_info().rss for worker in workers) // 2**20)
    assert not any("torch" in mapped.path for worker in workers for mapped in worker.memory_maps())
    before = finished(world)
    workers[0].kill()
    wait_for(lambda: finished(world) >= before + 6, driver)
    engine = connect(world.database)
    runs.cancel(engine, RUN)
    code, said = driver.ended()
    assert (code, "was cancelled" in said) == (8, True), said
    assert "died: " in said

    driver = Driver(world, "resume", "--run", RUN, *ray, PIGEON_RAY__TOKEN=cluster.token)
    before = finished(world)
    assert before < USERS * TARGETS
    wait_for(lambda: finished(world) >= before + 2, driver)
    driver.process.kill()
    driver.ended()
    assert finished(world) < USERS * TARGETS

    code, said = Driver(world, "resume", *ray, PIGEON_RAY__TOKEN=cluster.token).ended()
    assert code == 0, said
    assert manifest(world) == unbroken
    with Session(engine) as session:
        assert session.scalar(select(NightRun.status)) == "published"
        run = session.scalars(select(NightRun)).one()
        kept = select(Poster.user_id, Poster.item_id, Poster.variant)
        assert len(session.execute(kept).all()) == len(session.execute(kept.distinct()).all())
    engine.dispose()
    served = {server["address"]: server for server in run.figures["last_session"]["servers"]}
    assert set(served) == set(world.triton.addresses)
    assert all(server["requests"] for server in served.values())


def test_a_wrong_token_is_named(world: Settings, cluster: RayNodes) -> None:
    arguments = ("run", "--date", "2026-03-01", "--engine", "ray", "--ray-address", cluster.address)
    code, said = Driver(world, *arguments, PIGEON_RAY__TOKEN="w" * 48).ended()
    assert code == 3, said
    assert "InvalidAuthToken" in said
    assert "PIGEON_RAY__TOKEN" in said
    assert finished(world) == 0


# What needs no cluster.


def planned(settings: Settings) -> NightRun:
    """The run, planned and not drawn."""
    with TritonPigeon(settings) as model:

        def stop(*_: object) -> object:
            raise InputError("not drawn")

        context = NightContext(settings, lambda: model, Announcements, lambda line: None, draw_with=stop)
        with pytest.raises(InputError, match="not drawn"):
            Night(context, NIGHT).run(Scope())
    engine = connect(settings.database)
    run = Ledger(engine).get_run(NIGHT)
    engine.dispose()
    assert run
    return run


def test_shards_have_every_pending_task_once_and_no_user_is_in_two(world: Settings) -> None:
    planned(world)
    engine = connect(world.database)
    ledger = Ledger(engine)
    everything = [(t.user_id, t.item_id) for page in ledger.read_pending(RUN) for t in page]
    for tasks in (1, 5, 8, 1000):
        shards = cut(ledger, RUN, tasks)
        found = [
            [(t.user_id, t.item_id) for page in ledger.read_pending(RUN, page=3, users=shard) for t in page]
            for shard in shards
        ]
        assert [task for shard in found for task in shard] == everything
        owners = [user for shard in found for user in {user for user, _ in shard}]
        assert len(owners) == len(set(owners)) == USERS
        assert all(len(shard) < tasks + TARGETS for shard in found)
    assert cut(ledger, "no such run", 5) == []
    engine.dispose()


def test_shards_are_a_few_for_each_worker_and_not_too_small() -> None:
    assert tasks_per_shard(100_000, 10, 512) == 512
    assert tasks_per_shard(4_000, 10, 512) == 100
    assert tasks_per_shard(50, 10, 512) == 16
    assert tasks_per_shard(50, 10, 4) == 4


def test_a_worker_whose_drivers_lease_is_lost_writes_nothing(world: Settings) -> None:
    run = planned(world)
    engine = connect(world.database)
    with lead(engine, "night") as lease:
        ledger = Ledger(engine, lease)
        ledger.mark_running(RUN)
        assignment = Assignment(world, RUN, lease.token, f"{lease.holder}/worker-1", run.settings["served"])
        worker = DrawWorker(assignment)
        assert isinstance(worker.open(), Place)
        first, *others = cut(ledger, RUN, 8)
        report = worker.draw(first)
        assert (report.error, report.tally.finished) == (None, finished(world))
        assert report.tally.finished == 8
        assert worker.draw(first).tally.finished == 8, "what is finished is not drawn again"
        with engine.begin() as connection:
            connection.execute(text("UPDATE leases SET token = token + 1, holder = 'elsewhere'"))
        report = worker.draw(others[0])
        assert isinstance(report.error, LockHeld)
        assert finished(world) == 8
        other = DrawWorker(replace(assignment, served={**assignment.served, "base_weights": "others"}))
        refused = other.open()
        assert "worker on " in str(refused)
    engine.dispose()


def test_a_worker_that_was_stopped_draws_nothing_more(world: Settings) -> None:
    planned(world)
    engine = connect(world.database)
    with lead(engine, "night") as lease:
        Ledger(engine, lease).mark_running(RUN)
        worker = DrawWorker(Assignment(world, RUN, lease.token, "w", {}))
        worker.stop()
        assert worker.draw(UserRange()).error is None
    engine.dispose()
    assert finished(world) == 0
