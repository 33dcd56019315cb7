"""A run drawn by workers of a Ray cluster: the driver, which gives them shards of its tasks.

The driver plans, holds the lease, publishes and announces, as any night does. A worker that dies is replaced, its claims on
pictures are released, and its shard is given out again; the ledger knows which of its tasks are finished. A driver that dies
takes its workers with it; the next leader's token refuses what one of them may still write.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from generator.nightly import runs
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import Ledger
from generator.nightly.picture_rows import release_claims
from generator.nightly.policies import ChoicePolicy
from generator.nightly.ray_cluster import connected
from generator.nightly.ray_worker import Assignment, DrawWorker
from generator.nightly.rows import UserRange
from generator.nightly.shards import cut, tasks_per_shard
from generator.nightly.tally import Tally
from generator.safety.judge import SafetyCheck
from generator.serving.api import ServedPigeon
from generator.storage.objects import Store
from schemas.errors import PigeonError, ServerUnavailable
from schemas.settings import Settings

log = logging.getLogger("pigeon.night")

WAIT_SECONDS = 0.5
SHARD_DEATHS = 3
"""Workers that may die of one shard before the night stops."""


@dataclass(eq=False)
class _Shard:
    users: UserRange
    deaths: int = 0


@dataclass(eq=False)
class _Worker:
    handle: Any
    holder: str
    opening: Any
    """Ray's reference to what `open` will return; None once it has."""
    shard: _Shard | None = None
    drawing: Any = None
    """Ray's reference to the report on the shard."""
    looking: Any = None
    tally: Tally = field(default_factory=Tally)


class RayDrawing:
    """Draws the pending tasks of one run on the cluster that the settings name (see `drawing.Drawing`)."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        store: Store,
        images: CatalogImages,
        model: ServedPigeon,
        run_id: str,
        safety: SafetyCheck | None = None,
        policy: ChoicePolicy | None = None,
    ) -> None:
        # Store, images, model, safety check and policy are each worker's own.
        self._settings = settings.model_copy(update={"state_dir": settings.state_dir.absolute()})
        self._ledger = ledger
        self._run_id = run_id
        self._stopping = threading.Event()
        self._told_to_stop = False
        self._shards: deque[_Shard] = deque()
        self._workers: list[_Worker] = []
        self._gone = Tally()
        self._error: PigeonError | None = None
        self._started = 0
        self._died_opening = 0
        self._nobody_since = time.monotonic()
        self._served: dict[str, str] = {}
        self._ray: Any = None

    @property
    def tally(self) -> Tally:
        """What is done so far; of a worker that died, what it had said."""
        return sum((worker.tally for worker in self._workers), self._gone)

    def stop(self) -> None:
        """Take no further tasks; may be called by signal handlers."""
        self._stopping.set()

    def run(self, tick: Callable[[Tally], None]) -> Tally:
        """Draw all pending tasks; returns early, without an error, after `stop`.

        Raises:
            ServerUnavailable: Ray, Triton, Postgres or S3 is away for too long, or workers keep dying; finished tasks are kept.
            LockHeld: another process has taken the night over.
            InputError: Ray is not installed, or a node's setting is wrong.
        """
        run = runs.get_by_id(self._ledger, self._run_id)
        self._served = dict(run.settings.get("served", {})) if run else {}
        with connected(self._settings.ray) as ray:
            self._ray = ray
            wanted = self._plan_work()
            self._nobody_since = time.monotonic()
            while self._has_work():
                self._employ(wanted)
                self._wait()
                self._give_out()
                self._look()
                tick(self.tally)
        if self._error is not None:
            raise self._error
        return self.tally

    def _plan_work(self) -> int:
        """Cut the shards; returns how many workers draw them."""
        settings = self._settings.ray
        cpus = self._ray.cluster_resources().get("CPU", 0)
        workers = settings.workers or max(1, int(cpus / settings.cpus_per_worker))
        pending = runs.count_pending(self._ledger, self._run_id)
        tasks = tasks_per_shard(pending, workers, settings.shard_tasks)
        self._shards.extend(_Shard(users) for users in cut(self._ledger, self._run_id, tasks))
        return min(workers, len(self._shards))

    def _has_work(self) -> bool:
        if self._stopping.is_set() and not self._told_to_stop:
            self._told_to_stop = True
            self._shards.clear()
            for worker in self._workers:
                worker.handle.stop.remote()
        return bool(self._shards) or any(worker.shard for worker in self._workers)

    # --- workers ---

    def _employ(self, wanted: int) -> None:
        """Start workers in place of those that died, as far as there are shards for them."""
        open_shards = len(self._shards) + sum(worker.shard is not None for worker in self._workers)
        while len(self._workers) < min(wanted, open_shards):
            self._workers.append(self._start())

    def _start(self) -> _Worker:
        self._started += 1
        lease = self._ledger.lease
        holder = f"{lease.holder}/worker-{self._started}"
        actor = self._ray.remote(DrawWorker).options(
            num_cpus=self._settings.ray.cpus_per_worker, max_concurrency=3, max_restarts=0
        )
        handle = actor.remote(Assignment(self._settings, self._run_id, lease.token, holder, self._served))
        return _Worker(handle, holder, handle.open.remote())

    def _wait(self) -> None:
        waiting = {ref: worker for worker in self._workers if (ref := worker.opening or worker.drawing) is not None}
        if not waiting:
            time.sleep(WAIT_SECONDS)
            return
        done, _ = self._ray.wait(list(waiting), timeout=WAIT_SECONDS)
        for ref in done:
            self._take_in(waiting[ref], ref)
        self._check_for_somebody()

    def _check_for_somebody(self) -> None:
        """Stop waiting for a cluster that starts no worker."""
        if any(worker.opening is None for worker in self._workers):
            self._nobody_since = time.monotonic()
            return
        seconds = self._settings.ray.start_timeout_seconds
        if time.monotonic() - self._nobody_since > seconds:
            free = self._ray.available_resources().get("CPU", 0)
            raise ServerUnavailable(
                f"Ray started no worker within {seconds:.0f} s: {free:g} CPUs are free, each worker needs "
                f"{self._settings.ray.cpus_per_worker:g} (settings ray.cpus_per_worker, ray.start_timeout_seconds)"
            )

    def _take_in(self, worker: _Worker, ref: Any) -> None:
        """What a worker returned: it is open, has drawn its shard, met an error, or is dead."""
        try:
            found = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            self._bury(worker, error)
            return
        if worker.opening is not None:
            worker.opening = None
            if isinstance(found, PigeonError):
                self._fail(found)
            return
        worker.tally, worker.shard, worker.drawing = found.tally, None, None
        if found.error is not None:
            self._fail(found.error)

    def _bury(self, worker: _Worker, error: Exception) -> None:
        """A worker is dead: release its claims, and give its shard out again."""
        self._workers.remove(worker)
        self._ray.kill(worker.handle)  # one that is only cut off must not go on
        self._gone += worker.tally
        release_claims(self._ledger, worker.holder)
        reason = str(error).strip().splitlines()[-1].strip()
        log.warning("night: %s died: %s", worker.holder, reason)
        shard = worker.shard
        if shard is None:
            self._died_opening += worker.opening is not None
            if self._died_opening >= SHARD_DEATHS:
                self._fail(ServerUnavailable(f"Ray: workers die before they draw: {reason}"))
            return
        shard.deaths += 1
        if shard.deaths >= SHARD_DEATHS:
            self._fail(
                ServerUnavailable(
                    f"Ray: {shard.deaths} workers died of the tasks from user {shard.users.first!r} on: {reason}; "
                    "`pigeon night resume` continues"
                )
            )
        if not self._told_to_stop:
            self._shards.appendleft(shard)

    def _fail(self, error: PigeonError) -> None:
        """The first error of a worker ends the night; what the others have under way is finished."""
        self._error = self._error or error
        self.stop()

    # --- shards ---

    def _give_out(self) -> None:
        for worker in self._workers:
            if self._shards and worker.opening is None and worker.shard is None and not self._stopping.is_set():
                worker.shard = self._shards.popleft()
                worker.drawing = worker.handle.draw.remote(worker.shard.users)

    def _look(self) -> None:
        """Ask each worker how far it is, without waiting for the answer."""
        for worker in self._workers:
            if worker.looking is None and worker.drawing is not None:
                worker.looking = worker.handle.look.remote()
        asked = {worker.looking: worker for worker in self._workers if worker.looking is not None}
        if not asked:
            return
        done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        for ref in done:
            worker, asked[ref].looking = asked[ref], None
            try:
                found = self._ray.get(ref)
            except self._ray.exceptions.RayActorError:
                continue  # it is buried by what it draws
            if worker.drawing is not None:
                worker.tally = found
