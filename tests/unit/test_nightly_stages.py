"""Stages, retries, ids and seeds, and the decoding of images."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from generator.nightly.frozen_prompt import ServedVersions, check_served, poster_id, share, task_seed
from generator.nightly.images import UnreadableImage, decode
from generator.nightly.retry import ModelRetry, Stopped
from generator.nightly.stages import Sent, Stage, StagePipeline
from generator.serving.api import InferenceCorrupt, InferenceRejected, InferenceUnavailable
from schemas.errors import InputError, ServerUnavailable
from schemas.hashing import weights_of
from tests.support.fake_pigeon import FakePigeon


def test_all_items_go_through_all_stages() -> None:
    seen: list[int] = []
    lock = threading.Lock()

    def keep(item: int) -> list[Sent]:
        with lock:
            seen.append(item)
        return []

    stages = [Stage("split", lambda n: [("keep", n), ("keep", -n)] if n % 2 else [], 2), Stage("keep", keep, 3)]
    StagePipeline(stages, limit=1).run(range(100), tick_seconds=0.01)
    assert sorted(seen) == sorted([n for n in range(100) if n % 2] + [-n for n in range(100) if n % 2])


def test_an_item_may_come_back_to_a_stage_until_nothing_comes_of_it() -> None:
    done: list[int] = []

    def halve(item: int) -> list[Sent]:
        if item > 1:
            return [("halve", item // 2)]
        done.append(item)
        return []

    stages = [Stage("start", lambda n: [("halve", n)]), Stage("halve", halve, 2)]
    StagePipeline(stages, limit=4).run([1, 2, 3, 1000], tick_seconds=0.01)
    assert done == [1, 1, 1, 1]


def test_parked_items_are_waited_for_and_sent_on_by_a_tick() -> None:
    parked: list[int] = []
    done: list[int] = []

    def park(item: int) -> list[Sent]:
        parked.append(item)
        return []

    def tick() -> list[Sent]:
        return [("finish", parked.pop(0))] if parked else []

    stages = [Stage("park", park), Stage("finish", lambda n: done.append(n) or [])]
    StagePipeline(stages, limit=3, parked=lambda: len(parked)).run(range(10), tick=tick, tick_seconds=0.005)
    assert sorted(done) == list(range(10))


def test_the_source_is_asked_for_no_more_than_the_limit() -> None:
    taken = 0
    finished = 0
    most = 0
    lock = threading.Lock()

    def source() -> Iterator[int]:
        nonlocal taken, most
        for number in range(60):
            with lock:
                taken += 1
                most = max(most, taken - finished)
            yield number

    def work(item: int) -> list[Sent]:
        nonlocal finished
        time.sleep(0.001)
        with lock:
            finished += 1
        return []

    stages = [Stage("take", lambda n: [("work", n)]), Stage("work", work)]
    StagePipeline(stages, limit=5).run(source(), tick_seconds=0.01)
    assert finished == 60
    assert most <= 5 + 2  # what one thread has in hand between two looks


@pytest.mark.parametrize("where", ["source", "first", "last", "tick"])
def test_an_error_anywhere_stops_everything_and_is_raised(where: str) -> None:
    def source() -> Iterator[int]:
        yield from range(50)
        if where == "source":
            raise ValueError("source")
        yield from range(10_000 if where != "tick" else 10**9)

    def fail(name: str, onward: str | None) -> Any:
        def work(item: int) -> list[Sent]:
            if where == name and item == 20:
                raise ValueError(name)
            return [(onward, item)] if onward else []

        return work

    def tick() -> list[Sent]:
        if where == "tick":
            raise ValueError("tick")
        return []

    stages = [Stage("first", fail("first", "last"), 2), Stage("last", fail("last", None), 2)]
    with pytest.raises(ValueError, match=where):
        StagePipeline(stages, limit=4).run(source(), tick=tick, tick_seconds=0.01)


def test_a_stopped_pipeline_ends_though_the_source_goes_on() -> None:
    def forever() -> Iterator[int]:
        n = 0
        while True:
            yield (n := n + 1)

    done: list[int] = []

    def work(item: int) -> list[Sent]:
        done.append(item)
        if item == 5:
            pipeline.stop()
        return []

    pipeline = StagePipeline([Stage("work", work)], limit=1, parked=lambda: 1 if 5 in done else 0)
    pipeline.run(forever(), tick_seconds=0.01)
    assert 5 in done, "and what is parked is dropped"


def test_a_stage_that_keeps_finishes_what_reaches_it() -> None:
    kept: list[int] = []

    def draw(item: int) -> list[Sent]:
        pipeline.stop()
        return [("keep", item), ("drop", item)]

    stages = [
        Stage("draw", draw),
        Stage("keep", lambda n: kept.append(n) or [], keeps=True),
        Stage("drop", kept.append),
    ]
    pipeline = StagePipeline(stages, limit=1)
    pipeline.run(range(9), tick_seconds=0.01)
    assert kept == [0]


def retry(model: FakePigeon, **changes: Any) -> ModelRetry:
    return ModelRetry(model, **{"max_attempts": 3, "outage_seconds": 0.3, "stopping": threading.Event(), **changes})


@pytest.mark.parametrize(("error", "calls"), [(InferenceUnavailable, 3), (InferenceCorrupt, 3), (InferenceRejected, 1)])
def test_a_calls_own_trouble_has_a_limit(error: type[Exception], calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.retry.FIRST_WAIT_SECONDS", 0.001)
    made, counted = [], []

    def work() -> None:
        made.append(1)
        raise error("no")

    with pytest.raises(error, match="no"):
        retry(FakePigeon()).call(work, attempted=lambda: counted.append(1))
    assert len(made) == len(counted) == calls


def test_an_outage_costs_no_attempts_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.retry.FIRST_WAIT_SECONDS", 0.001)
    counted: list[int] = []

    def away() -> None:
        raise InferenceUnavailable("refused")

    with pytest.raises(ServerUnavailable, match=r"triton\.url"):
        retry(FakePigeon(alive=away)).call(away, attempted=lambda: counted.append(1))
    assert counted == []
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Stopped):
        retry(FakePigeon(alive=away), outage_seconds=60, stopping=stopping).call(away)


def test_ids_and_seeds_are_known_values() -> None:
    """They must not change between releases, or every poster would be drawn again."""
    assert poster_id("u", "i", "w", 0, "f", "p") == "36eaca72c8ac8ddc0515d78ee75f31d9"
    assert task_seed("u", "i", "w", "a") == 2703224711405937


@given(st.text(max_size=20), st.text(max_size=20))
def test_seeds_fit_in_json_and_parts_do_not_run_together(a: str, b: str) -> None:
    assert 0 <= task_seed(a, b, "m", "f") < 2**53
    assert 0 <= share(a, b) < 1
    if b:
        assert poster_id(a + b[0], b[1:], "m", 0, "f", "p") != poster_id(a, b, "m", 0, "f", "p")


def test_a_night_is_drawn_by_the_checkpoint_that_it_was_planned_for() -> None:
    planned = {"served": {"tokenizer": "t", "drawing": "d", "base_weights": "b"}}
    check_served(ServedVersions("t", "d", "b"), planned)
    check_served(ServedVersions("t", "d", "b"), {})  # planned by a release that did not say
    with pytest.raises(InputError, match=r"drawing, base_weights differ.*plan another --date"):
        check_served(ServedVersions("t", "d2", "b2"), planned)


def test_weights_are_known_by_base_and_adapter_and_not_by_a_name() -> None:
    hashes = {weights_of("a", None), weights_of("b", None), weights_of("a", "x"), weights_of("b", "x")}
    assert len(hashes) == 4
    assert weights_of("a", None) == weights_of("a", "")


def test_pictures_of_every_mode_become_rgb_and_others_are_refused() -> None:
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK"):
        out = io.BytesIO()
        Image.new(mode, (20, 10)).save(out, "TIFF")
        assert decode(out.getvalue()).shape == (10, 20, 3)
    clear = io.BytesIO()
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(clear, "PNG")
    assert decode(clear.getvalue()).min() == 255  # transparent is white, not black
    small = io.BytesIO()
    Image.new("RGB", (4, 100)).save(small, "PNG")
    for data in (b"", b"GIF89a", clear.getvalue()[:40], small.getvalue()):
        with pytest.raises(UnreadableImage):
            decode(data)


def test_a_bomb_is_refused_by_its_header() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(UnreadableImage, match=r"out of range|exceeds limit|could be decompression bomb"):
        decode(bomb + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
