"""Writing and reading manifests at scale.

Rows are made up and the bucket is a folder; each measurement is a process of its own, so that memory is its own as well. What
the numbers are for: memory and p99 that do not grow with the rows, and callers that no refresh holds up.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from generator.nightly.manifest_writer import ShardSpool, shards_for, write_items
from schemas.manifest import ITEM_SCHEMA, POINTER_KEY, ManifestRef, Pointer, PosterManifest, ShardRef
from tests.benchmarks.table import Figure, Options, say
from tests.support.manifest_rows import pages_of

ITEMS = 60_000
PAGE = 40
CALLS = 20_000


class Folder:
    """An S3 client's `get_object`, of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.meta = type("Meta", (), {"endpoint_url": str(path)})

    def get_object(self, *, Bucket: str, Key: str, IfNoneMatch: str = "") -> dict[str, Any]:
        """The object, or botocore's error."""
        from botocore.exceptions import ClientError
        from botocore.response import StreamingBody

        path = self._path / Key
        if not path.exists():
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        etag = str(path.stat().st_mtime_ns)
        if etag == IfNoneMatch:
            raise ClientError({"Error": {"Code": "304"}}, "GetObject")
        return {"ETag": etag, "Body": StreamingBody(path.open("rb"), path.stat().st_size)}


def write(folder: Path, rows: int, run: str) -> dict[str, float]:
    """Write a set into a folder; rows per second (without the making of the rows) and peak memory in MiB."""
    made = made_cpu = 0.0

    def pages() -> Iterator[pa.Table]:
        nonlocal made, made_cpu
        feed = pages_of(rows)
        while True:
            start, cpu = time.perf_counter(), time.process_time()
            page = next(feed, None)
            made += time.perf_counter() - start
            made_cpu += time.process_time() - cpu
            if page is None:
                return
            yield page

    target = folder / "manifests" / run
    target.mkdir(parents=True)
    start = time.perf_counter()
    cpu = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        spool = ShardSpool(Path(work), shards_for(rows))
        for page in pages():
            spool.add(page)
        shards = []
        for shard in spool.write(run_id=run):
            key = f"manifests/{run}/{shard.index}.arrow"
            shards.append(ShardRef(key, shard.sha256, shard.rows, shard.bytes))
            os.link(shard.path, folder / key)
        seconds = time.perf_counter() - start - made
        worked = time.process_time() - cpu - made_cpu
        items = pa.table({"item_id": [f"item-{n}" for n in range(ITEMS)], "image_uri": ["s3://x"] * ITEMS}, ITEM_SCHEMA)
        written = write_items(iter([items]), Path(work))
        key = f"manifests/{run}/items.arrow"
        os.link(written.path, folder / key)
        item_ref = ShardRef(key, written.sha256, written.rows, written.bytes)
    ref, _ = ManifestRef.of_set(
        run_id=run, logical_date="2026-03-01", model_version="nano-1", shards=tuple(shards), items=item_ref
    )
    (folder / POINTER_KEY).write_bytes(Pointer(ref, None, 1, "").to_json())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rates = {"rows_per_second": ref.posters / seconds, "us_per_row": worked / ref.posters * 1e6}
    return {"rows": ref.posters, **rates, "peak_mib": peak, "shards": len(shards)}


def private_mib() -> float:
    """Resident memory of this process less mapped files, which processes share."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def read(folder: Path, rows: int) -> dict[str, float]:
    """Open a set with a full cache, look up pages; memory that is the process' own, processor time.

    Processor time, not the clock's: on a machine that others use, the hundredth call is one that had to wait for them.
    """
    reader = PosterManifest.open(bucket="b", client=Folder(folder), cache_dir=folder / "cache", refresh_seconds=1e9)
    del reader
    gc.collect()
    users = rows // (PAGE * 2)
    rng = random.Random(1)
    pages = []
    for _ in range(CALLS):
        user = rng.randrange(users)
        pages.append((f"user-{user}", [f"item-{(user * 17 + place * 101) % 50_000}" for place in range(PAGE)]))
    before = private_mib()
    start = time.perf_counter()
    reader = PosterManifest.open(bucket="b", client=Folder(folder), cache_dir=folder / "cache", refresh_seconds=1e9)
    opened = time.perf_counter() - start
    for user, page in pages[:2000]:
        assert len(reader.posters_for(user, page)) == PAGE
    times = []
    for user, page in pages:
        start = time.thread_time()
        reader.posters_for(user, page)
        times.append(time.thread_time() - start)
    times.sort()
    return {
        "open_ms": opened * 1e3,
        "private_mib": private_mib() - before,
        "p50_us": times[len(times) // 2] * 1e6,
        "p99_us": times[int(len(times) * 0.99)] * 1e6,
    }


def refresh(folder: Path, rows: int) -> dict[str, float]:
    """Pace the same calls by the clock: no refreshing thread, polling, taking over a set, and after.

    The new set is not in the cache, so all of it is downloaded. What a busy machine does to the first row it does to all; the
    figures mean something where nothing else runs, or under `chrt -f 1`.
    """
    sets = [(folder / name).read_bytes() for name in ("a.json", "b.json")]
    (folder / POINTER_KEY).write_bytes(sets[0])
    rng = random.Random(2)
    users = rows // (PAGE * 2)

    def calls(reader: PosterManifest, until: Callable[[], bool]) -> list[float]:
        times = []
        while not until():
            user = rng.randrange(users)
            page = [f"item-{(user * 17 + place * 101) % 50_000}" for place in range(PAGE)]
            start = time.perf_counter()
            reader.posters_for(f"user-{user}", page)
            times.append(time.perf_counter() - start)
            time.sleep(0.0005)
        return sorted(times)

    def lasting(seconds: float) -> Callable[[], bool]:
        end = time.perf_counter() + seconds
        return lambda: time.perf_counter() > end

    given = {"bucket": "b", "client": Folder(folder), "cache_dir": folder / "cold"}
    alone = PosterManifest.open(refresh_seconds=1e9, **given)
    reader = PosterManifest.open(refresh_seconds=0.05, **given)
    calls(alone, lasting(2))
    found = {"alone": calls(alone, lasting(3)), "polled": calls(reader, lasting(3))}
    (folder / POINTER_KEY).write_bytes(sets[1])
    wanted = Pointer.parse(sets[1]).current
    found["busy"] = calls(reader, lambda: reader.current == wanted)
    found["after"] = calls(reader, lasting(3))
    reader.close()
    figures: dict[str, float] = {}
    for name, times in found.items():
        for title, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
            figures[f"{name}_{title}_us"] = times[min(int(len(times) * share), len(times) - 1)] * 1e6
        figures[f"{name}_calls"] = len(times)
    return figures


def apart(job: str, folder: Path, rows: int, run: str = "") -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.manifest", job, str(folder), str(rows), run]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def rows(options: Options) -> list[Figure]:
    """Write and read sets of three sizes; the largest over the middle one, and over the smallest."""
    by = 1 if options.full else 10
    sizes = [(f"{count // by:,}", count // by) for count in (50_000, 500_000, 5_000_000)]
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        root = Path(name)
        writes = {title: _written(root, title, count) for title, count in sizes}
        reads = {title: _read(root, title, count) for title, count in sizes}
        _refreshed(root, *sizes[1])
    small, middle, large = (title for title, _ in sizes)
    wrote, grown = writes[middle], writes[large]
    return [
        Figure(
            "manifest",
            f"processor time per row written, {large} rows over {middle}",
            grown["us_per_row"] / wrote["us_per_row"],
            "<= 1.2",
            f"{grown['us_per_row']:.1f} over {wrote['us_per_row']:.1f} us; {grown['shards']:.0f} shards",
        ),
        Figure(
            "manifest",
            f"rows written per second by the clock, {middle} rows over {large}",
            wrote["rows_per_second"] / grown["rows_per_second"],
            "<= 1.2",
            f"{wrote['rows_per_second']:,.0f} over {grown['rows_per_second']:,.0f} rows/s",
        ),
        Figure(
            "manifest",
            f"peak memory of the writer, {large} rows over {middle}",
            grown["peak_mib"] / wrote["peak_mib"],
            "<= 1.2",
            f"{grown['peak_mib']:.0f} over {wrote['peak_mib']:.0f} MiB",
        ),
        Figure(
            "manifest",
            f"p99 of posters_for with {PAGE} items, {large} rows over {small}",
            reads[large]["p99_us"] / reads[small]["p99_us"],
            "<= 2",
            f"{reads[large]['p99_us']:.0f} over {reads[small]['p99_us']:.0f} us of the thread's processor time, {CALLS:,} calls",
        ),
    ]


def _written(root: Path, title: str, count: int) -> dict[str, float]:
    one = apart("write", root / title, count, "run-a")
    say(
        f"  write {title:>9} rows: {one['rows_per_second']:>9,.0f} rows/s, {one['us_per_row']:.1f} us of processor "
        f"per row, peak {one['peak_mib']:>5.0f} MiB, {one['shards']:.0f} shards"
    )
    return one


def _read(root: Path, title: str, count: int) -> dict[str, float]:
    one = apart("read", root / title, count)
    say(
        f"  read  {title:>9} rows: opened in {one['open_ms']:>5.1f} ms, {one['private_mib']:>5.1f} MiB of its own, "
        f"{PAGE} items p50 {one['p50_us']:.0f} us, p99 {one['p99_us']:.0f} us"
    )
    return one


def _refreshed(root: Path, title: str, count: int) -> None:
    """Print what a reader's calls take while a new set comes in."""
    folder = root / title
    (folder / "a.json").write_bytes((folder / POINTER_KEY).read_bytes())
    apart("write", folder, count, "run-b")
    (folder / "b.json").write_bytes((folder / POINTER_KEY).read_bytes())
    one = apart("refresh", folder, count)
    for state in ("alone", "polled", "busy", "after"):
        figures = ", ".join(f"{part} {one[f'{state}_{part}_us']:,.0f}" for part in ("p50", "p90", "p99", "max"))
        say(f"  calls at {title} rows, {state:>6}: {figures} us of {one[f'{state}_calls']:.0f}")


def main() -> None:
    """Do one job of a measurement and print it as JSON."""
    job, folder, count, run = sys.argv[1:]
    jobs: dict[str, Callable[[Path, int], dict[str, float]]] = {
        "write": lambda path, size: write(path, size, run),
        "read": read,
        "refresh": refresh,
    }
    say(json.dumps(jobs[job](Path(folder), int(count))))


if __name__ == "__main__":
    main()
