"""Pictures of several tasks in one request, where the served model draws several at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from generator.serving.api import InferenceCorrupt, InferenceRejected, Picture, PictureRequest

GATHER_SECONDS = 0.02
"""Seconds that the first picture of a request waits for others, at most; drawing takes longer."""

Draw = Callable[[Callable[[], list[PictureRequest]]], list[Picture]]
"""Draws what its argument gives, which it calls when the model can be asked; nothing is added to the request after that."""


@dataclass(eq=False)
class _Batch:
    requests: list[PictureRequest] = field(default_factory=list)
    full: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    results: list[Picture | BaseException] = field(default_factory=list)


class PictureBatches:
    """Gathers the pictures that threads ask for at the same time; safe to use from several threads.

    With a `size` of 1 each is asked for by itself, at once.
    """

    def __init__(self, draw: Draw, size: int) -> None:
        self._ask = draw
        self.size = size
        self._open: _Batch | None = None
        self._lock = threading.Lock()

    def draw(self, request: PictureRequest) -> Picture:
        """The picture, drawn among those that others ask for meanwhile.

        Raises:
            InferenceError: the model does not answer for this picture, or for the request that it was in.
            Stopped: the night is being stopped.
        """
        if self.size == 1:
            return self._ask(lambda: [request])[0]
        with self._lock:
            batch, leads = self._open, self._open is None
            if batch is None:
                batch = self._open = _Batch()
            place = len(batch.requests)
            batch.requests.append(request)
            if len(batch.requests) == self.size:
                self._open = None
                batch.full.set()
        if leads:
            batch.full.wait(GATHER_SECONDS)
            self._run(batch)
        else:
            batch.over.wait()
        result = batch.results[place]
        if isinstance(result, BaseException):
            raise result
        return result

    def _run(self, batch: _Batch) -> None:
        try:
            batch.results = [*self._ask(lambda: self._closed(batch))]
        except (InferenceCorrupt, InferenceRejected) as error:
            requests = self._closed(batch)  # one bad picture must not take its neighbours along
            batch.results = [self._alone(one) for one in requests] if len(requests) > 1 else [error]
        except BaseException as error:  # noqa: BLE001 - raised by all who wait
            batch.results = [error] * len(self._closed(batch))
        finally:
            batch.over.set()

    def _alone(self, request: PictureRequest) -> Picture | BaseException:
        try:
            return self._ask(lambda: [request])[0]
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            return error

    def _closed(self, batch: _Batch) -> list[PictureRequest]:
        with self._lock:
            if self._open is batch:
                self._open = None
            return batch.requests
