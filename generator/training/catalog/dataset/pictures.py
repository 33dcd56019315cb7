"""Pictures of a data set, at the checkpoint's size: fetched once, stored once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from generator.training.catalog.dataset.scratch import Scratch
from schemas.errors import ServerUnavailable
from schemas.fetch import Fetched, Fetcher, HostUnavailable
from schemas.images import ImageProblem, decode

if TYPE_CHECKING:
    from schemas.images import Pixels

PAGE = 64
"""Addresses that are fetched before what came of them is stored."""
THREADS = 8
Progress = Callable[[str, int, int], None]
"""Callback that takes (what is being done, units done, units in all)."""


@dataclass(frozen=True)
class _Seen:
    """What came of an address: a hash and a PNG, or a problem; neither where its host is away."""

    uri: str
    sha256: str | None = None
    png: bytes = b""
    problem: str | None = None
    away: str | None = None


def fetch_pictures(scratch: Scratch, fetcher: Fetcher, size: int, progress: Progress) -> None:
    """Fetch the pictures of all items that windows may need; what is done stays done.

    Raises:
        ServerUnavailable: a host of pictures is away; run it again, it goes on with what is left.
    """
    scratch.db.execute("CREATE TEMP TABLE IF NOT EXISTS queue (number INTEGER PRIMARY KEY, uri TEXT)")
    scratch.db.execute("DELETE FROM queue")
    scratch.db.execute("INSERT INTO queue (uri) SELECT uri FROM wanted ORDER BY uri")
    total = scratch.one("SELECT count(*) FROM queue")
    done, away = 0, {}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="pigeon-pictures") as pool:
        for page in _pages(scratch):
            for seen in pool.map(lambda uri: _look(fetcher, uri, size), page):
                if seen.away:
                    away[seen.uri] = seen.away
                else:
                    _store(scratch, seen)
            scratch.db.commit()
            done += len(page)
            progress("Fetch pictures", done, total)
    if away:
        raise ServerUnavailable(
            f"{len(away)} of {total} pictures could not be asked for ({next(iter(away.values()))}); run it again to go on with them"
        )


def _pages(scratch: Scratch) -> Iterator[list[str]]:
    last = 0
    while rows := scratch.db.execute("SELECT number, uri FROM queue WHERE number > ? LIMIT ?", (last, PAGE)).fetchall():
        last = rows[-1][0]
        yield [uri for _, uri in rows]


def _look(fetcher: Fetcher, uri: str, size: int) -> _Seen:
    try:
        answer = fetcher.fetch(uri)
        assert isinstance(answer, Fetched)  # noqa: S101 -- nothing was given to compare with
        pixels = fitted(decode(answer.body), size)
    except ImageProblem as problem:
        return _Seen(uri, problem=_kind_of(str(problem), uri))
    except HostUnavailable as error:
        return _Seen(uri, away=str(error))
    return _Seen(uri, image_hash(pixels), png_of(pixels))


def _store(scratch: Scratch, seen: _Seen) -> None:
    if seen.sha256 is not None:
        scratch.db.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", (seen.sha256, seen.png))
        scratch.db.execute("UPDATE given SET target_image = ? WHERE target_uri = ?", (seen.sha256, seen.uri))
    scratch.db.execute(
        "UPDATE items SET image = ?, problem = ? WHERE image_uri = ?", (seen.sha256, seen.problem, seen.uri)
    )


def _kind_of(problem: str, uri: str) -> str:
    """A problem without what is particular to one picture, so that equal ones are counted together."""
    return problem.replace(uri, "the file").partition(":")[0][:120]


def fitted(pixels: Pixels, size: int) -> Pixels:
    """RGB (H, W, 3) -> (size, size, 3), as the tokenizer would resize it."""
    if pixels.shape[:2] == (size, size):
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def image_hash(pixels: Pixels) -> str:
    """Hash of a picture's pixels."""
    return hashlib.sha256(f"{pixels.shape} ".encode() + pixels.tobytes()).hexdigest()


def png_of(pixels: Pixels) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
