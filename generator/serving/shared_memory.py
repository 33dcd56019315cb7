"""Pictures between this process and a Triton on this host through memory that both see.

A region is lent to one request at a time. One whose request failed is not lent again, because the server may still write into
it; it is left to the sweep of a later process. So are the regions of a process that was killed: their names bear its pid.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from generator.serving.api import InferenceCorrupt, InferenceError, InferenceRejected, InferenceUnavailable
from generator.serving.channel import is_loopback
from generator.serving.tensors import TRITON_TYPES, one_line
from schemas.errors import InputError
from schemas.settings_triton import TritonSettings

SHARED_FROM_BYTES = 64 * 2**10
"""Size of a tensor, in bytes, from which it is shared; smaller ones cost less by gRPC."""
SMALLEST_BYTES = 2**20
LOST_REGIONS = 16
"""Regions of failed requests after which a server is asked by gRPC alone: nobody gets their memory back until we end."""
PATIENCE_SECONDS = 1.0
"""Seconds in which a server is to say after a failure which regions it knows."""
PREFIX = "pigeon-pictures-"
_FOLDER = Path("/dev/shm")  # noqa: S108 - where the kernel keeps named shared memory
_PIDS = Path("/proc/self/ns/pid")  # containers may share memory and have pids of their own
_numbers = itertools.count(1)


class Region:
    """Memory under a name that the server knows, and how much of it one request uses."""

    def __init__(self, size: int) -> None:
        """Raises: InputError: there is no room for it."""
        self.name = f"{_names()}{os.getpid()}-{next(_numbers)}"
        self.memory = SharedMemory(self.name, create=True, size=size)
        try:
            with (_FOLDER / self.name).open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # else a write to a full /dev/shm ends the process
        except OSError as error:
            self.close()
            raise InputError(
                f"triton.shared_memory: no {size} bytes left in {_FOLDER} ({error.strerror}); give it more "
                "(a container: shm_size) or set PIGEON_TRITON__SHARED_MEMORY=false"
            ) from None
        self.size = size
        self._used = 0
        self._places: dict[str, tuple[int, int]] = {}

    def empty(self) -> None:
        """Make it ready for another request."""
        self._used = 0
        self._places.clear()

    def put(self, tensor: triton.InferInput, value: NDArray[Any]) -> None:
        """Give the server an input here."""
        offset = self._place(tensor.name(), value.nbytes)
        np.ndarray(value.shape, value.dtype, self.memory.buf, offset)[...] = value
        tensor.set_shared_memory(self.name, value.nbytes, offset)

    def expect(self, output: triton.InferRequestedOutput, size: int) -> None:
        """Have the server write an output of at most so many bytes here."""
        output.set_shared_memory(self.name, size, self._place(output.name(), size))

    def _place(self, name: str, size: int) -> int:
        offset = self._used
        self._used += -(-size // 64) * 64
        self._places[name] = offset, size
        return offset

    def read(self, answer: triton.InferResult, name: str) -> NDArray[Any] | None:
        """An output that was expected here, as a copy; None when the answer is without it.

        Raises:
            InferenceCorrupt: it is larger than its place.
        """
        told = answer.get_output(name)
        if told is None:
            return None
        offset, size = self._places[name]
        shape, kind = tuple(told.shape), np.dtype(triton_to_np_dtype(told.datatype))
        if int(np.prod(shape)) * kind.itemsize > size:
            raise InferenceCorrupt(f"{name}: is {kind}{list(shape)}, more than the {size} bytes that were expected")
        return np.ndarray(shape, kind, self.memory.buf, offset).copy()

    def close(self) -> None:
        """Take the name away; the memory goes when the server lets go of it, too."""
        self.memory.close()
        with contextlib.suppress(FileNotFoundError):
            self.memory.unlink()


def needed(inputs: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]) -> int:
    """Bytes of a request's large inputs and outputs; 0 when it has none."""
    large = [value.nbytes for value in inputs.values() if is_large(value)] + list(sizes.values())
    return sum(-(-size // 64) * 64 for size in large)


def is_large(value: NDArray[Any]) -> bool:
    """Whether a tensor is worth sharing."""
    return value.dtype in TRITON_TYPES and value.dtype != np.object_ and value.nbytes >= SHARED_FROM_BYTES


class SharedRegions:
    """The regions of one server on this host; threads may share an instance."""

    def __init__(
        self, settings: TritonSettings, address: str, client: triton.InferenceServerClient, admin: Any
    ) -> None:
        """Raises: InputError: the server is not on this host."""
        if not is_loopback(address):
            raise InputError(
                f"triton.shared_memory: {address} is not this host (localhost, 127.0.0.1 or [::1]), so it does not see its "
                "memory; ask a server of this host by such an address, or set PIGEON_TRITON__SHARED_MEMORY=false"
            )
        self._address = address
        self._client = client
        self._options: dict[str, Any] = {"headers": admin, "client_timeout": settings.network_timeout_seconds}
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._lost: list[Region] = []
        self._swept = False

    @contextlib.contextmanager
    def lend(self, size: int) -> Iterator[Region | None]:
        """A region for one request of `size` bytes; None when the request shares nothing.

        Raises:
            InputError: the server cannot see our memory, or we may not tell it.
            InferenceUnavailable: it was restarted and knows no regions, or cannot be reached; ask again.
        """
        if not size or (len(self._lost) >= LOST_REGIONS and not self._was_restarted()):
            yield None
            return
        region = self._take(size)
        try:
            yield region
        except InferenceError as error:
            if not self._is_known(region):
                self._forget(region)
                raise InferenceUnavailable(
                    f"Triton at {self._address}: was restarted, its shared memory is made again"
                ) from error
            # What was refused as it came is not under way; of anything else that is not known.
            (self._give_back if isinstance(error, InferenceRejected) else self._lose)(region)
            raise
        except BaseException:
            self._lose(region)
            raise
        else:
            self._give_back(region)

    def close(self) -> None:
        """Give all memory back but what a failed request may still write to; no request is under way any more."""
        with self._lock:
            free, self._free = self._free, []
            lost, self._lost = self._lost, []
        for region in free:
            with contextlib.suppress(InferenceServerException):
                self._client.unregister_system_shared_memory(region.name, **self._options)
        for region in (*free, *lost):
            region.close()

    def _take(self, size: int) -> Region:
        with self._lock:
            fitting = [region for region in self._free if region.size >= size]
            if fitting:
                region = min(fitting, key=lambda one: one.size)
                self._free.remove(region)
                return region
        self._sweep()
        region = Region(max(SMALLEST_BYTES, size))
        try:
            self._client.register_system_shared_memory(region.name, region.name, region.size, **self._options)
        except InferenceServerException as error:
            region.close()
            if not self._is_live():  # a wrong key is answered as an outage is
                raise InferenceUnavailable(f"Triton at {self._address}: {one_line(error)}") from error
            raise InputError(
                f"triton.shared_memory: Triton at {self._address} does not take it: {one_line(error)}; it must see this "
                "host's /dev/shm (in a container: ipc: host) and PIGEON_TRITON__ADMIN_KEY must be right, or set "
                "PIGEON_TRITON__SHARED_MEMORY=false"
            ) from error
        return region

    def _give_back(self, region: Region) -> None:
        region.empty()
        with self._lock:
            self._free.append(region)

    def _lose(self, region: Region) -> None:
        with self._lock:
            self._lost.append(region)

    def _forget(self, *regions: Region) -> None:
        """After a restart of the server, which knows none of ours and writes to none."""
        with self._lock:
            gone, self._free, self._lost = [*regions, *self._free, *self._lost], [], []
        for one in gone:
            one.close()

    def _was_restarted(self) -> bool:
        """Whether it knows none of the regions that were lost; then there is room for others."""
        if self._is_known(*self._lost):
            return False
        self._forget()
        return True

    def _is_known(self, *regions: Region) -> bool:
        """Whether the server has one of these regions; also where it does not tell."""
        try:
            return not self._registered(PATIENCE_SECONDS).isdisjoint(region.name for region in regions)
        except InferenceServerException:
            return True

    def _is_live(self) -> bool:
        try:
            return bool(self._client.is_server_live(client_timeout=self._options["client_timeout"]))
        except InferenceServerException:
            return False

    def _registered(self, patience_seconds: float | None = None) -> set[str]:
        options = {**self._options, **({"client_timeout": patience_seconds} if patience_seconds else {})}
        return set(self._client.get_system_shared_memory_status(**options).regions)

    def _sweep(self) -> None:
        """Have the server let go of what dead processes of this host have left; take their names away."""
        with self._lock:
            if self._swept:
                return
            self._swept = True
        with contextlib.suppress(InferenceServerException):
            for name in self._registered():
                if is_abandoned(name):
                    self._client.unregister_system_shared_memory(name, **self._options)
        sweep_names()


def _names() -> str:
    """How the names of the regions of this host's processes, or this container's, begin."""
    return f"{PREFIX}{_PIDS.stat().st_ino}-"


def sweep_names() -> None:
    """Take away the names of regions whose processes are dead."""
    for path in _FOLDER.glob(f"{_names()}*"):
        if is_abandoned(path.name):
            path.unlink(missing_ok=True)


def is_abandoned(name: str) -> bool:
    """Whether a region is of a process of this host that is dead."""
    ours = _names()
    pid = name.removeprefix(ours).partition("-")[0]
    return name.startswith(ours) and pid.isdigit() and not Path(f"/proc/{pid}").exists()
