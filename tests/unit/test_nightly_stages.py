"""Stages, retries, ids and seeds, and the decoding of images."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from generator.nightly.frozen_prompt import (
    FrozenImage,
    FrozenPrompt,
    drawing_settings,
    input_fingerprint,
    poster_id,
    share,
    task_seed,
)
from generator.nightly.images import UnreadableImage, decode
from generator.nightly.retry import ModelRetry, Stopped
from generator.nightly.stages import Stage, StagePipeline
from generator.serving.api import InferenceCorrupt, InferenceRejected, InferenceUnavailable
from schemas.errors import ServerUnavailable
from schemas.settings import NightSettings
from tests.support.fake_pigeon import FakePigeon


def nothing() -> None: ...


def test_all_items_go_through_all_stages() -> None:
    seen: list[int] = []
    lock = threading.Lock()

    def keep(item: int) -> list[int]:
        with lock:
            seen.append(item)
        return []

    stages = [Stage("split", lambda n: [n, -n] if n % 2 else [], 2), Stage("keep", keep, 3)]
    StagePipeline(stages, queue_size=1).run(range(100), tick=nothing, tick_seconds=0.01)
    assert sorted(seen) == sorted([n for n in range(100) if n % 2] + [-n for n in range(100) if n % 2])


@pytest.mark.parametrize("where", ["source", "first", "last"])
def test_an_error_anywhere_stops_everything_and_is_raised(where: str) -> None:
    def source() -> Iterator[int]:
        yield from range(50)
        if where == "source":
            raise ValueError("source")
        yield from range(10_000)

    def fail(name: str) -> Any:
        def work(item: int) -> list[int]:
            if where == name and item == 20:
                raise ValueError(name)
            return [item]

        return work

    last = fail("last")
    stages = [Stage("first", fail("first"), 2), Stage("last", lambda item: last(item) and [], 2)]
    with pytest.raises(ValueError, match=where):
        StagePipeline(stages, queue_size=2).run(source(), tick=nothing, tick_seconds=0.01)


def test_a_stopped_pipeline_ends_though_the_source_goes_on() -> None:
    def forever() -> Iterator[int]:
        n = 0
        while True:
            yield (n := n + 1)

    done: list[int] = []

    def work(item: int) -> list[int]:
        done.append(item)
        if item == 5:
            pipeline.stop()
        return []

    pipeline = StagePipeline([Stage("work", work)], queue_size=1)
    pipeline.run(forever(), tick=nothing, tick_seconds=0.01)
    assert 5 in done


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


def prompt(**changes: Any) -> FrozenPrompt:
    image = FrozenImage(item_id="i", title="T", uri="file:///a", sha256="a" * 64)
    return FrozenPrompt(
        **{"history": (image,), "reference": image, "description": "d", "tokenizer_version": "1", **changes}
    )


def test_bytes_count_for_the_fingerprint_and_addresses_do_not() -> None:
    rules = drawing_settings(NightSettings())
    moved = FrozenImage(item_id="i", title="T", uri="s3://elsewhere/b", sha256="a" * 64)
    redrawn = moved.model_copy(update={"sha256": "b" * 64})
    base = input_fingerprint(prompt(), rules)
    assert input_fingerprint(prompt(history=(moved,), reference=moved), rules) == base
    others = [
        input_fingerprint(prompt(reference=redrawn), rules),
        input_fingerprint(prompt(history=(redrawn,)), rules),
        input_fingerprint(prompt(description="e"), rules),
        input_fingerprint(prompt(tokenizer_version="2"), rules),
        input_fingerprint(prompt(), drawing_settings(NightSettings(alphas=(0.1,)))),
    ]
    assert len({base, *others}) == 6
    # Known values: ids must not change between releases, or every poster would be drawn again.
    assert poster_id("u", "i", "nano-1", 0, "f") == "3aee7e19fb8d930176b3fd969ba92aa0"
    assert task_seed("u", "i", "nano-1", "f") == 1551486979955725


@given(st.text(max_size=20), st.text(max_size=20))
def test_seeds_fit_in_json_and_parts_do_not_run_together(a: str, b: str) -> None:
    assert 0 <= task_seed(a, b, "m", "f") < 2**53
    assert 0 <= share(a, b) < 1
    if b:
        assert poster_id(a + b[0], b[1:], "m", 0, "f") != poster_id(a, b, "m", 0, "f")


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
