"""A worker of a night that Ray draws: the night's stages over the shards that it is given.

It writes under the driver's lease token: once another process leads, each of its writes is refused. What it finished is in the
ledger, so a shard that is given again is only what is left of it.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from generator.nightly import runs
from generator.nightly.click_models import policy_of, read_planned
from generator.nightly.frozen_prompt import ServedVersions, check_served
from generator.nightly.generate import Generator
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import Ledger
from generator.nightly.policies import ChoicePolicy
from generator.nightly.rows import UserRange
from generator.nightly.tally import Tally
from generator.safety.open_nsfw import load_check
from generator.serving.client import TritonPigeon
from generator.serving.server import ServedParts
from generator.storage.lease import Lease
from generator.storage.outages import OutageRetry, PatientStore
from generator.storage.postgres import connect
from schemas.errors import InputError, PigeonError
from schemas.settings import Settings


@dataclass(frozen=True)
class Assignment:
    """What a worker draws for."""

    settings: Settings
    """The driver's, as the run was planned."""
    run_id: str
    token: int
    """Token of the driver's lease."""
    holder: str
    """Name of the worker, part of its claims on pictures."""
    served: dict[str, str]
    """Versions of the model that the run was planned for; empty in a run of an earlier release."""


@dataclass(frozen=True)
class Report:
    """What a worker has done since it started, and what stopped it."""

    tally: Tally
    error: PigeonError | None = None


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    host: str
    pid: int


class DrawWorker:
    """The class of Ray's actors; `look` and `stop` are called while `draw` is under way."""

    def __init__(self, assignment: Assignment) -> None:
        settings = assignment.settings
        self._settings = settings.model_copy(update={"state_dir": _state_dir(settings.state_dir)})
        self._run_id = assignment.run_id
        self._served = assignment.served
        self._lock = threading.Lock()
        self._before = Tally()
        self._generator: Generator | None = None
        self._stopping = threading.Event()
        outages = OutageRetry(settings.night.outage_seconds, self._stopping)
        self._engine = connect(settings.database)
        lease = Lease("night", assignment.token, assignment.holder)
        self._ledger = Ledger(self._engine, lease, outages)
        self._store = PatientStore(settings.s3, outages)
        self._images = CatalogImages(self._engine, self._settings)
        self._model = TritonPigeon(self._settings, _parts(assignment.served))

    def open(self) -> Place | PigeonError:
        """Check that this node reaches all servers, and that they serve what the run was planned for."""
        try:
            self._store.check()
            run = self._ledger.outages.call(lambda: runs.get_by_id(self._ledger, self._run_id))
            if run is None:
                return InputError(f"no run {self._run_id}: the workers' database.url leads elsewhere")
            self._ledger.outages.call(lambda: check_served(ServedVersions.of(self._model), run.settings))
        except PigeonError as error:
            return type(error)(f"worker on {socket.gethostname()}: {error}")
        return Place(socket.gethostname(), os.getpid())

    def draw(self, users: UserRange) -> Report:
        """Draw the pending tasks of these users."""
        error = None
        try:
            generator = Generator(
                self._settings,
                self._ledger,
                self._store,
                self._images,
                self._model,
                self._run_id,
                load_check(self._settings.safety),
                self._policy(),
                users,
            )
            with self._lock:
                self._generator = generator
            if self._stopping.is_set():
                generator.stop()
            generator.run(lambda _: None)
        except PigeonError as found:
            error = found
        with self._lock:
            if self._generator is not None:
                self._before += self._generator.tally
                self._generator = None
        return Report(self.look(), error)

    def _policy(self) -> ChoicePolicy:
        run = runs.get_by_id(self._ledger, self._run_id)
        planned = read_planned(self._ledger, run.settings if run else {}, self._model.base_weights)
        return policy_of(self._settings.night, planned)

    def look(self) -> Tally:
        """What is done so far, in all shards."""
        with self._lock:
            return self._before + self._generator.tally if self._generator else self._before

    def stop(self) -> None:
        """Take no further tasks; what is under way is finished."""
        self._stopping.set()
        with self._lock:
            if self._generator is not None:
                self._generator.stop()


def _parts(served: dict[str, str]) -> ServedParts | None:
    if not served:
        return None
    return ServedParts(served["tokenizer"], served["drawing"], served["base_weights"])


def _state_dir(drivers: Path) -> Path:
    """The driver's folder where this node has it; elsewhere one for this node's cache of pictures."""
    return drivers if drivers.is_dir() else Path(tempfile.gettempdir()) / f"pigeon-night-{os.getuid()}"
