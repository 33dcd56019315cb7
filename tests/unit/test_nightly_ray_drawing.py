"""The driver of a night on Ray, with a double of Ray: workers that die, refuse or never start.

What a real cluster does is in tests/integration/test_night_ray.py.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from generator.nightly import ray_cluster, ray_drawing
from generator.nightly.ray_drawing import RayDrawing
from generator.nightly.ray_worker import Assignment, Place, Report
from generator.nightly.rows import UserRange
from generator.nightly.tally import Tally
from generator.serving.api import ServerState
from generator.storage.lease import Lease
from schemas.errors import InputError, LockHeld, PigeonError, ServerUnavailable
from schemas.settings import Settings
from schemas.settings_ray import RaySettings

CHECKOUT = Path(__file__).parents[2]


class RayActorError(Exception):
    """Test double of Ray's."""


@dataclass(eq=False)
class Ref:
    """A double of a reference: its value is there at once, unless it is not ready."""

    value: Any
    ready: bool = True


@dataclass
class FakeRay:
    """A double of the module `ray` with actors that do what `deeds` says, one after the other."""

    deeds: list[Any] = field(default_factory=list)
    """Results of each `draw`, in order: an exception that is what Ray raises, a Report, or None = five tasks are done."""
    opens: list[Any] = field(default_factory=list)
    """Results of each `open`; beyond the end it works."""
    drawn: list[UserRange] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)
    stopped: int = 0
    cpus: float = 2
    exceptions = SimpleNamespace(RayActorError=RayActorError)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cpus}

    available_resources = cluster_resources

    def remote(self, cls: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._actor))

    def _actor(self, assignment: Assignment) -> Any:
        self.holders.append(assignment.holder)
        done = [0]

        def draw(users: UserRange) -> Ref:
            self.drawn.append(users)
            deed = self.deeds.pop(0) if self.deeds else None
            if deed is None:
                done[0] += 5
                deed = Report(Tally(done=done[0]))
            return Ref(deed)

        def stop() -> Ref:
            self.stopped += 1
            return Ref(None)

        opened = self.opens.pop(0) if self.opens else Place("here", 1)
        return SimpleNamespace(
            open=_method(lambda: opened if isinstance(opened, Ref) else Ref(opened)),
            draw=_method(draw),
            look=_method(lambda: Ref(Tally(done=done[0]))),
            stop=_method(stop),
        )

    def kill(self, handle: Any) -> None: ...

    def wait(self, refs: list[Ref], num_returns: int = 1, timeout: float = 0) -> tuple[list[Ref], list[Ref]]:
        done = [ref for ref in refs if ref.ready][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.value, Exception) and not isinstance(ref.value, PigeonError):
            raise ref.value
        return ref.value


def _method(work: Callable[..., Any]) -> Any:
    return SimpleNamespace(remote=work)


class Bench:
    """A drawing of three shards on the double."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ray: FakeRay, **changes: Any) -> None:
        self.ray = ray
        self.released: list[str] = []

        @contextlib.contextmanager
        def connected(_: RaySettings) -> Iterator[FakeRay]:
            yield ray

        run = SimpleNamespace(settings={})
        shards = [UserRange("a", "b"), UserRange("b", "c"), UserRange("c")]
        monkeypatch.setattr(ray_drawing, "connected", connected)
        monkeypatch.setattr(ray_drawing, "cut", lambda *_: list(shards))
        monkeypatch.setattr(ray_drawing, "release_claims", lambda _, holder: self.released.append(holder))
        monkeypatch.setattr(ray_drawing.runs, "get_by_id", lambda *_: run)
        monkeypatch.setattr(ray_drawing.runs, "count_pending", lambda *_: 15)
        ledger: Any = SimpleNamespace(lease=Lease("night", 7, "host:1"))
        unused: Any = None
        settings = Settings(ray=RaySettings(**changes))
        self.drawing = RayDrawing(settings, ledger, unused, unused, unused, "night-20260301")

    def run(self, tick: Callable[[Tally], None] = lambda _: None) -> Tally:
        return self.drawing.run(tick)


def test_every_shard_is_drawn_once_by_as_many_workers_as_there_are_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, FakeRay())
    assert bench.run().done == 15
    assert [users.first for users in bench.ray.drawn] == ["a", "b", "c"]
    assert bench.ray.holders == ["host:1/worker-1", "host:1/worker-2"]
    assert bench.released == []
    many = Bench(monkeypatch, FakeRay(cpus=64))
    many.run()
    assert len(many.ray.holders) == 3, "no worker without a shard"
    one = Bench(monkeypatch, FakeRay(), workers=1)
    assert one.run().done == 15
    assert len(one.ray.holders) == 1


def test_a_dead_workers_shard_is_given_out_again_and_its_claims_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, FakeRay(deeds=[RayActorError("the node is gone")]))
    assert bench.run().done == 15
    assert sorted(users.first for users in bench.ray.drawn) == ["a", "a", "b", "c"]
    assert bench.released == ["host:1/worker-1"]
    assert bench.ray.holders[2] == "host:1/worker-3"


def test_a_shard_that_kills_its_workers_stops_the_night(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, FakeRay(deeds=[RayActorError("out of memory")] * 3), workers=1)
    with pytest.raises(ServerUnavailable, match="3 workers died of the tasks from user 'a' on: out of memory"):
        bench.run()
    assert len(bench.released) == 3


def test_workers_that_die_before_they_draw_stop_the_night(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, FakeRay(opens=[RayActorError("No module named 'generator'")] * 9))
    with pytest.raises(ServerUnavailable, match="workers die before they draw: No module named 'generator'"):
        bench.run()


def test_the_first_error_of_a_worker_ends_the_night_and_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Report(Tally(done=2), LockHeld("the night lease went to elsewhere"))
    bench = Bench(monkeypatch, FakeRay(deeds=[lost]))
    with pytest.raises(LockHeld, match="went to elsewhere"):
        bench.run()
    assert bench.ray.stopped == 2
    assert bench.drawing.tally.done == 2
    refusing = Bench(monkeypatch, FakeRay(opens=[InputError("worker on there: no such bucket")]))
    with pytest.raises(InputError, match="worker on there"):
        refusing.run()


def test_after_stop_no_further_shard_is_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, FakeRay(), workers=1)
    assert bench.run(lambda tally: bench.drawing.stop() if tally.done >= 5 else None).done < 15
    assert bench.ray.stopped == 1


def test_a_cluster_that_starts_no_worker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_drawing, "WAIT_SECONDS", 0.0)
    never = Ref(None, ready=False)
    bench = Bench(monkeypatch, FakeRay(opens=[never, never], cpus=0), start_timeout_seconds=0.05)
    with pytest.raises(
        ServerUnavailable, match="Ray started no worker within 0 s: 0 CPUs are free, each worker needs 1"
    ):
        bench.run()


def test_tallies_of_processes_add_up() -> None:
    one = Tally(done=1, failed=2, model_seconds=0.5, servers={"a:1": ServerState("a:1", 3, 0, "")})
    two = Tally(done=4, servers={"a:1": ServerState("a:1", 1, 2, "away"), "b:1": ServerState("b:1", 5, 0, "")})
    both = one + two
    assert (both.done, both.failed, both.model_seconds) == (5, 2, 0.5)
    assert both.servers == {"a:1": ServerState("a:1", 4, 2, "away"), "b:1": ServerState("b:1", 5, 0, "")}
    assert both.away() == ", 1 of 2 Triton servers not used"
    assert one.away() == ""


def test_a_token_is_drawn_for_a_cluster_of_the_nights_own_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ray_cluster.TOKEN_VARIABLES, "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    environment = ray_cluster.os.environ
    ray_cluster._set_token(RaySettings(address="head:6379"))
    assert "RAY_AUTH_TOKEN" not in environment
    assert "RAY_AUTH_MODE" not in environment
    ray_cluster._set_token(RaySettings())
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert environment["RAY_AUTH_MODE"] == "token"
    drawn = environment["RAY_AUTH_TOKEN"]
    ray_cluster._set_token(RaySettings())
    assert environment["RAY_AUTH_TOKEN"] == drawn
    ray_cluster._set_token(RaySettings(address="head:6379", token="s" * 40))
    assert environment["RAY_AUTH_TOKEN"] == "s" * 40


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'pigeon-posters\[ray\]'"):
        ray_cluster.require_ray()


def test_the_driver_imports_neither_ray_nor_torch_before_it_draws() -> None:
    code = (
        "import sys, generator.cli, generator.nightly.ray_drawing; generator.cli.build_app(); "
        "print([name for name in ('ray', 'torch') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True, capture_output=True, text=True)
    assert ended.stdout == "[]\n"
