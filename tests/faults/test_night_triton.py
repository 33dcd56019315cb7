"""Fault 11 on real Triton with the committed nano checkpoint, real Postgres, S3 and Kafka.

Whatever the server does, a night waits it out or fails just the task with its reason, publishes no wrong picture, and ends as
an unbroken night does: its posters are compared byte by byte.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from consumers.postgres import postgres_connection
from generator.nightly.commands import _context
from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.run import Night, TooManyFailures
from generator.serving.client import TritonPigeon
from generator.serving.repository import default_checkpoint
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas import faultpoints
from schemas.errors import ModelError, PartialFailure, ServerUnavailable
from schemas.manifest import POINTER_KEY
from schemas.settings import Settings
from schemas.tables import NightTask, Picture
from tests.support.nano_server import NanoServer, copy_nano_repository
from tests.support.night_world import NIGHT, build, reader

# The first run exports nano, which takes minutes where the cores are busy.
pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(1800)]

RUN = "night-20260301"
OWN: dict[str, dict[str, Any]] = {
    # What nano draws of the tests' plain pictures is no art: every whole picture is kept.
    "night": {"answers": 4, "min_reference_score": -100.0, "blank_stddev": 0.0, "near_duplicate_distance": 0},
    "triton": {"inference_timeout_seconds": 30.0, "network_timeout_seconds": 5.0},
}
"""Small tasks, and deadlines that a busy machine keeps."""


@pytest.fixture(scope="module")
def server(own_triton: Settings) -> NanoServer:
    """The module's own Triton serves nano."""
    assert own_triton.triton.model_repository
    copy_nano_repository(own_triton.triton.model_repository)
    with TritonPigeon(own_triton) as model:
        model.load_repository(default_checkpoint())
    return NanoServer(own_triton)


@pytest.fixture(autouse=True)
def _whole(server: NanoServer) -> Iterator[None]:
    """No handler, and a server that answers, after each test."""
    yield
    faultpoints.handler = None
    server.go_on()


def changed(settings: Settings, **groups: dict[str, Any]) -> Settings:
    parts = {name: getattr(settings, name).model_copy(update=values) for name, values in groups.items()}
    return settings.model_copy(update=parts)


def on_nano(settings: Settings, server: NanoServer) -> Settings:
    """These settings with the module's Triton."""
    return changed(settings.model_copy(update={"triton": server.settings.triton}), **OWN)


Unbroken = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def unbroken(
    shared_settings: Settings, template_database: str, server: NanoServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Unbroken]:
    """The posters of a night without faults, on a database and a bucket of its own."""
    name = "unbroken_on_nano"
    connection = postgres_connection(shared_settings.database, "pigeon-tests")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE pigeon_template")
    bucket = name.replace("_", "-")
    s3 = Store(shared_settings.s3).s3
    s3.create_bucket(Bucket=bucket)
    data = shared_settings.model_dump()
    data["database"]["url"] = f"{template_database}/{name}"
    data["s3"]["bucket"] = bucket
    data["kafka"]["topic_prefix"] = f"{bucket}."
    data["images"]["allowed_schemes"] = ("file",)
    own = on_nano(Settings.model_validate(data), server)
    build(own, tmp_path_factory.mktemp("art"), users=2, targets=1)
    run(own)
    yield shown(own)
    s3.delete_bucket(Bucket=bucket)
    s3.close()
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    connection.close()


@pytest.fixture
def planned(settings: Settings, server: NanoServer, unbroken: Unbroken, tmp_path_factory: Any) -> Settings:
    """Two tasks, and everything that they need."""
    own = on_nano(settings, server)
    build(own, tmp_path_factory.mktemp("art"), users=2, targets=1)
    return own


def run(settings: Settings) -> None:
    """`pigeon night run`."""
    with _context(settings) as context:
        Night(context, NIGHT).run(Scope())


def resume(settings: Settings) -> None:
    """`pigeon night resume`."""
    with _context(settings) as context:
        Night(context, NIGHT).resume()


def finish(settings: Settings, unbroken: Unbroken) -> None:
    """What an operator does after a night with failed tasks, published or not."""
    with _context(settings) as context:
        if shown(settings):
            Night(context, NIGHT).retry_failed()
        else:
            Night(context, NIGHT).resume()
    assert shown(settings) == unbroken


def shown(settings: Settings) -> Unbroken:
    """What readers see: each poster with the hash of its bytes."""
    names = ("user_id", "item_id", "variant", "poster_id", "image_sha256")
    return sorted(tuple(row[name] for name in names) for row in reader(settings).rows().to_pylist())


@contextmanager
def session_of(settings: Settings) -> Iterator[Session]:
    engine = connect(settings.database)
    with Session(engine) as session:
        yield session
    engine.dispose()


def reasons(settings: Settings) -> dict[str, str]:
    """Reasons of the tasks that failed, by user."""
    with session_of(settings) as session:
        tasks = session.scalars(select(NightTask).where(NightTask.status == "failed"))
        return {task.user_id: task.reason or "" for task in tasks}


def sessions(settings: Settings) -> list[dict[str, Any]]:
    """What each process that drew the night did, in their order."""
    engine = connect(settings.database)
    found = Ledger(engine).get_run(NIGHT)
    engine.dispose()
    assert found
    return list(found.figures["sessions"])


def answered(settings: Settings) -> int:
    """How often the personalizer was asked with success, over all sessions."""
    return sum(session["tasks_answered"] for session in sessions(settings))


def nothing_is_visible(settings: Settings) -> bool:
    """Whether no reader can see anything, and no poster is in the bucket."""
    store = Store(settings.s3)
    return store.get(POINTER_KEY) is None and list(store.keys("posters/")) == []


def once_at(point: str, work: Callable[[], object]) -> None:
    """Do it when a thread of the night reaches the point first; all that reach it wait until it is done."""
    lock, waiting = threading.Lock(), [work]

    def handler(reached: str) -> None:
        if reached == point:
            with lock:
                for one in waiting[:1]:
                    waiting.clear()
                    one()

    faultpoints.handler = handler


def _killed(server: NanoServer) -> None:
    server.kill()


def _hung(server: NanoServer) -> None:
    server.stop()
    threading.Timer(7.0, server.go_on).start()  # the length of the fault


def _without_unet(server: NanoServer) -> None:
    server.control.unload("unet")
    threading.Timer(4.0, lambda: server.control.load("unet")).start()


@pytest.mark.parametrize("fault", [_killed, _hung, _without_unet])
def test_an_outage_costs_time_only(
    planned: Settings, server: NanoServer, unbroken: Unbroken, fault: Callable[[NanoServer], None]
) -> None:
    """Fault 11: killed and started again, hung and continued, a model unloaded; no task fails."""
    once_at("claimed picture", lambda: fault(server))
    run(changed(planned, triton={"inference_timeout_seconds": 5.0 if fault is _hung else 30.0}))
    assert shown(planned) == unbroken
    assert sessions(planned)[-1]["model_retries"] > 0, "the night has met it"
    assert answered(planned) == 2, "what was answered is not asked again"
    server.settle()


def test_a_server_that_hangs_for_too_long_ends_the_night_and_resume_goes_on(
    planned: Settings, server: NanoServer, unbroken: Unbroken
) -> None:
    """Fault 11: never a hang."""
    once_at("claimed picture", server.stop)
    impatient = changed(
        planned,
        triton={"inference_timeout_seconds": 4.0, "network_timeout_seconds": 1.0},
        night={"outage_seconds": 2.0},
    )
    with pytest.raises(ServerUnavailable, match=r"has not answered for 2 s.*pigeon night resume"):
        run(impatient)
    assert nothing_is_visible(planned)
    assert reasons(planned) == {}, "no task is to blame"
    server.go_on()
    resume(planned)
    server.settle()
    assert shown(planned) == unbroken


ALTERED = [
    # line that alters the UNet's answer, deadline, attempts, what the tasks' reasons say
    pytest.param("time.sleep(5)", 3.0, 2, "Deadline Exceeded", id="slow"),
    pytest.param("raise RuntimeError('CUDA out of memory')", 30.0, 3, "CUDA out of memory", id="broken"),
    pytest.param("out['predicted'][:] = np.nan", 30.0, 3, "corrupt", id="NaN"),
]


@pytest.mark.parametrize(("line", "deadline", "attempts", "reason"), ALTERED)
def test_a_unet_that_does_not_answer_right_fails_the_tasks_with_the_reason(
    planned: Settings, server: NanoServer, unbroken: Unbroken, line: str, deadline: float, attempts: int, reason: str
) -> None:
    """Fault 11 (F15): slow, broken, NaN, while personalizer and scorer answer; the answers are kept."""
    once = changed(planned, triton={"inference_timeout_seconds": deadline}, night={"max_attempts": attempts})
    with server.wrapped("unet", line), pytest.raises(TooManyFailures, match="nothing was published"):
        run(once)
    found = reasons(planned)
    assert set(found) == {"u0", "u1"}
    assert all(reason in words for words in found.values()), found
    assert nothing_is_visible(planned)
    resume(planned)
    assert shown(planned) == unbroken
    assert answered(planned) == 2, "a picture's failure costs no answer"


def test_a_picture_that_is_nan_in_part_is_never_published(
    planned: Settings, server: NanoServer, unbroken: Unbroken
) -> None:
    """Fault 11: the last network's output, which only the model that calls it could look at."""
    with ExitStack() as altered:
        line = "out['decoded'] = out['decoded'].copy(); out['decoded'][:, :, :20] = np.nan"
        once_at("chosen", lambda: altered.enter_context(server.wrapped("vae_decoder", line)))
        with pytest.raises(PartialFailure):
            run(planned)
    found = reasons(planned)
    assert found
    assert all("corrupt" in words or "not finite" in words for words in found.values()), found
    before = {row[-1] for row in unbroken}
    assert {row[-1] for row in shown(planned)} <= before
    finish(planned, unbroken)


def test_a_model_whose_processes_died_is_mended_or_fails_tasks_with_the_reason(
    planned: Settings, server: NanoServer, unbroken: Unbroken
) -> None:
    """Fault 11: Triton stays green over dead stubs; the watch loads the model again."""
    killed: list[int] = []
    once_at("claimed picture", lambda: killed.append(server.kill_stubs("unet")))
    with suppress(PartialFailure):
        run(planned)
    assert killed == [2]
    assert all("unet" in words or "pictures" in words for words in reasons(planned).values())
    deadline = time.monotonic() + 60
    while not server.control.instances("unet", "1") or _fails(planned):
        assert time.monotonic() < deadline, "the watch has not mended it"
        time.sleep(0.2)
    finish(planned, unbroken)


def _fails(settings: Settings) -> bool:
    """Whether a probe of the server fails."""
    from generator.serving.adapters import probe
    from generator.serving.api import InferenceError

    try:
        probe(settings, 1)
    except InferenceError:
        return True
    return False


def test_a_full_queue_sheds_and_costs_time_or_single_tasks(
    planned: Settings, server: NanoServer, unbroken: Unbroken
) -> None:
    """Fault 11: a server that takes one request and refuses the others."""
    queue = (
        "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\ninstance_group [{ kind: KIND_CPU count: 1 }]"
    )
    with server.configured("pictures", "instance_group [{ kind: KIND_CPU count: 2 }]", queue), suppress(PartialFailure):
        run(changed(planned, triton={"max_in_flight": 6}))
    assert sessions(planned)[-1]["model_retries"] > 0, "some were refused"
    assert all("maximum queue size" in words for words in reasons(planned).values()), reasons(planned)
    finish(planned, unbroken)


@pytest.mark.parametrize(("model", "parameter"), [("unet", "drawing_version"), ("personalizer", "base_weights")])
def test_other_weights_in_the_middle_of_a_night_are_noticed_before_anything_is_kept(
    planned: Settings, server: NanoServer, unbroken: Unbroken, model: str, parameter: str
) -> None:
    """Fault 11: a server that is given another build while a night is drawn (F5)."""
    with TritonPigeon(server.settings) as client:
        mine = getattr(client, parameter)
    with ExitStack() as altered:
        # The picture that is claimed then, and the task that is answered then, are the first that others would make.
        point = "planned" if model == "personalizer" else "claimed picture"

        def swap() -> None:
            altered.enter_context(server.configured(model, mine, "another"))

        once_at(point, swap)
        words = rf"{model} with {parameter} another|Triton serves .*; run `pigeon models load`"
        with pytest.raises(ModelError, match=words):
            run(planned)
        assert nothing_is_visible(planned)
    with session_of(planned) as session:
        drawn = set(session.scalars(select(Picture.art_sha256).where(Picture.status == "drawn")))
    resume(planned)
    assert shown(planned) == unbroken
    with session_of(planned) as session:
        assert drawn <= set(session.scalars(select(Picture.art_sha256))), "what was kept is what the night draws"


def test_a_server_that_lost_all_its_models_is_given_them_before_the_plan(
    planned: Settings, server: NanoServer, unbroken: Unbroken, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 11: restarted, and nobody has loaded anything."""
    server.unload_all()
    run(planned)
    assert "loaded from its repository" in capsys.readouterr().out
    assert shown(planned) == unbroken
