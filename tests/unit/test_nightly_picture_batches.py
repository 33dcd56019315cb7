"""Pictures that threads ask for at the same time are one request, and none spoils another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from generator.nightly import picture_batches
from generator.nightly.picture_batches import PictureBatches
from generator.serving import repository
from generator.serving.api import InferenceRejected, InferenceUnavailable, Picture, PictureRequest
from generator.serving.backends import pictures as backend

REQUESTS = [PictureRequest((number,), number) for number in range(8)]


class Drawer:
    """Test double of the model: a picture's pixels are its seed. Waits for its `turn`."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.turn = threading.Event()
        self.turn.set()
        self.fault: Callable[[list[PictureRequest]], None] = lambda requests: None

    def draw(self, taken: Callable[[], list[PictureRequest]]) -> list[Picture]:
        assert self.turn.wait(60)
        requests = list(taken())
        self.asked.append([request.seed for request in requests])
        self.fault(requests)
        return [Picture(np.full((8, 8, 3), one.seed, np.uint8), np.zeros(2, np.float32)) for one in requests]


def drawn(batches: PictureBatches) -> list[int | str]:
    """What eight threads get: the seeds that their pictures show, or the errors' texts."""

    def draw(request: PictureRequest) -> int | str:
        try:
            return int(batches.draw(request).image[0, 0, 0])
        except InferenceRejected as error:
            return str(error)

    with ThreadPoolExecutor(len(REQUESTS)) as threads:
        return list(threads.map(draw, REQUESTS))


def test_requests_hold_as_many_pictures_as_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_batches, "GATHER_SECONDS", 30.0)  # all threads have come by then
    drawer = Drawer()
    assert drawn(PictureBatches(drawer.draw, 4)) == list(range(8))
    assert [len(asked) for asked in drawer.asked] == [4, 4]
    assert sorted(seed for asked in drawer.asked for seed in asked) == list(range(8))


def test_where_each_is_drawn_alone_nothing_is_gathered() -> None:
    drawer = Drawer()
    assert drawn(PictureBatches(drawer.draw, 1)) == list(range(8))
    assert [len(asked) for asked in drawer.asked] == [1] * 8


def test_a_request_takes_in_pictures_while_it_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_batches, "GATHER_SECONDS", 0.0)
    drawer = Drawer()
    drawer.turn.clear()
    batches = PictureBatches(drawer.draw, 8)
    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(batches.draw, request) for request in REQUESTS]
        while (open_batch := batches._open) is not None and len(open_batch.requests) < 8:
            threading.Event().wait(0.01)
        drawer.turn.set()
        assert [int(one.result(60).image[0, 0, 0]) for one in running] == list(range(8))
    assert [len(asked) for asked in drawer.asked] == [8]


def test_one_bad_picture_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_batches, "GATHER_SECONDS", 30.0)
    drawer = Drawer()

    def refuse(requests: list[PictureRequest]) -> None:
        if any(request.seed == 3 for request in requests):
            raise InferenceRejected("a code is outside the codebook")

    drawer.fault = refuse
    assert drawn(PictureBatches(drawer.draw, 8)) == [0, 1, 2, "a code is outside the codebook", 4, 5, 6, 7]
    assert [len(asked) for asked in drawer.asked] == [8] + [1] * 8


def test_an_outage_is_everybodys() -> None:
    drawer = Drawer()

    def away(requests: list[PictureRequest]) -> None:
        raise InferenceUnavailable("it is away")

    drawer.fault = away
    batches = PictureBatches(drawer.draw, 4)
    for request in REQUESTS[:2]:
        with pytest.raises(InferenceUnavailable, match="it is away"):
            batches.draw(request)
    assert batches._open is None


def test_backend_and_client_call_the_parameter_alike() -> None:
    assert repository.BATCH_PARAMETER == backend.BATCH_PARAMETER
