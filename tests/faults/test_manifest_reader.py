"""Faults 13 and 14 on a real store: readers of missing and damaged sets, publishers that race."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.publish import flip
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import InputError, LockHeld
from schemas.manifest import POINTER_KEY, ManifestRef, Pointer, PosterManifest
from schemas.manifest_shards import stable_hash
from schemas.settings import Settings
from tests.support.night_world import build, night, set_user

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture
def two_nights(settings: Settings, tmp_path: Path) -> Iterator[Store]:
    """Two published nights; u0 was drawn for in both."""
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        set_user(session, "u0", ["item4", "item5", "item6", "item7"])
    engine.dispose()
    night(settings, on=date(2026, 3, 2)).run(Scope())
    store = Store(settings.s3)
    yield store
    store.s3.close()


Open = Callable[..., PosterManifest]


@pytest.fixture
def open_reader(two_nights: Store, tmp_path: Path) -> Open:
    """Opens a reader with an empty cache, or with the one that it is given."""
    caches = itertools.count()

    def opened(**options: Any) -> PosterManifest:
        given = {"refresh_seconds": math.inf, "cache_dir": tmp_path / f"cache{next(caches)}", **options}
        return PosterManifest.open(bucket=two_nights.bucket, **{"client": two_nights.s3, **given})

    return opened


def pointer(store: Store) -> Pointer:
    stored = store.get(POINTER_KEY)
    assert stored
    return Pointer.parse(stored.body)


def shard_of_user(ref: ManifestRef, user_id: str) -> str:
    """Key of the shard that has the user."""
    return ref.shards[stable_hash(user_id) * len(ref.shards) >> 64].key


def test_a_missing_or_damaged_shard_falls_back_to_the_set_before(two_nights: Store, open_reader: Open) -> None:
    """Fault 14: the pointer leads to a shard that is missing, or is not what it says."""
    store, current = two_nights, pointer(two_nights).current
    before = open_reader()
    tonight = before.poster_for("u0", "item8")
    assert tonight
    assert tonight.source == "tonight"
    key = shard_of_user(current, "u0")
    stored = store.get(key)
    assert stored
    alarms: list[tuple[str, str]] = []
    for damage, alarm in ((None, "manifest_missing"), (stored.body[:-100], "manifest_corrupt")):
        store.delete(key)
        if damage:
            store.put(key, damage, "application/octet-stream")
        alarms.clear()
        reader = open_reader(on_alarm=lambda name, detail: alarms.append((name, detail)))
        choice = reader.poster_for("u0", "item8")
        assert choice
        assert choice.source == "last_good"
        assert choice.poster_id != tonight.poster_id
        assert reader.alarms == {alarm: 1}
        assert alarms[0][0] == alarm
        assert key in alarms[0][1]
    # Who had read the set before keeps it: its own refresh asks for the pointer only, which has not changed.
    before.refresh()
    assert before.poster_for("u0", "item8") == tonight
    # It is mended: a reader that had fallen back finds out by itself.
    store.put(key, stored.body, "application/octet-stream")
    assert reader.refresh()
    assert reader.poster_for("u0", "item8") == tonight


def test_nothing_whole_at_all_still_answers(two_nights: Store, open_reader: Open) -> None:
    """Fault 14: the pointer is damaged, or gone."""
    store = two_nights
    live = open_reader()
    was = live.poster_for("u0", "item8")
    store.put(POINTER_KEY, b"{ half a poin", "application/json")
    assert not live.refresh()
    assert live.alarms == {"pointer_unreadable": 1}
    assert live.poster_for("u0", "item8") == was
    fresh = open_reader()
    assert fresh.poster_for("u0", "item8") is None
    assert fresh.alarms == {"pointer_unreadable": 1}
    store.delete(POINTER_KEY)
    assert open_reader().alarms == {"nothing_published": 1}
    live.refresh()
    assert live.poster_for("u0", "item8") == was


def test_a_pointer_to_two_missing_sets_is_an_alarm_and_who_has_read_one_keeps_it(
    two_nights: Store, open_reader: Open
) -> None:
    """Fault 14: neither the newest set nor the one before it is whole."""
    store, now = two_nights, pointer(two_nights)
    live = open_reader()
    was = live.poster_for("u0", "item8")
    assert was
    assert now.previous
    for ref in (now.current, now.previous):
        store.delete(shard_of_user(ref, "u0"))
    stored = store.get(POINTER_KEY)
    assert stored
    store.put(POINTER_KEY, stored.body + b"\n", "application/json")  # another tag: everybody looks again
    fresh = open_reader()
    assert fresh.poster_for("u0", "item8") is None
    assert fresh.alarms == {"manifest_missing": 2}
    live.refresh()
    assert live.poster_for("u0", "item8") == was, "what is mapped needs no bucket"


def test_missing_item_pictures_cost_only_the_last_rung(two_nights: Store, open_reader: Open) -> None:
    """Fault 14: the pointer leads to items that are missing."""
    store = two_nights
    store.delete(pointer(store).current.items_key)
    reader = open_reader()
    choice = reader.poster_for("u0", "item8")
    assert choice
    assert choice.source == "tonight"
    assert reader.poster_for("u0", "item3") is None
    assert reader.alarms == {"items_missing": 1}


def test_an_unreachable_or_wrong_store_is_named_at_the_start_and_survived_later(
    two_nights: Store, open_reader: Open
) -> None:
    """Fault 12: the bucket is not there, at the start and later."""
    store = two_nights
    live = open_reader()
    was = live.poster_for("u0", "item8")
    with pytest.raises(InputError, match="no-such-bucket"):
        PosterManifest.open(bucket="no-such-bucket", client=store.s3)
    live._source._bucket = "no-such-bucket"
    assert not live.refresh()
    assert live.alarms == {"refresh_failed": 1}
    assert live.poster_for("u0", "item8") == was


def test_of_many_publishers_one_wins_and_readers_always_see_a_whole_set(
    settings: Settings, two_nights: Store, open_reader: Open
) -> None:
    """Fault 13: publishers that race, one of them a replaced leader."""
    store, ref = two_nights, pointer(two_nights).current
    engine = connect(settings.database)
    torn: list[str] = []
    done = threading.Event()

    def watch() -> None:
        reader = open_reader()
        while not done.is_set():
            reader.refresh()
            if reader.alarms or reader.current is None or reader.poster_for("u1", "item9") is None:
                torn.append(f"{reader.alarms} {reader.current}")

    def publish(mine: ManifestRef, ledger: Ledger, token: int) -> None:
        flip(store, ledger, mine, token)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with lead(engine, "night") as lease:
        refs = [replace(ref, run_id=f"night-{n}", logical_date=f"2026-04-{n:02}") for n in range(1, 9)]
        threads = [threading.Thread(target=publish, args=(r, Ledger(engine, lease), lease.token)) for r in refs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pointer(store).current == refs[-1]  # the latest night wins, whoever came last
        with engine.begin() as connection:
            connection.execute(text("UPDATE leases SET token = token + 1 WHERE name = 'night'"))
        late = replace(ref, run_id="late", logical_date="2026-05-01")
        with pytest.raises(LockHeld):
            flip(store, Ledger(engine, lease), late, lease.token)
    assert pointer(store).current == refs[-1]
    done.set()
    watcher.join()
    assert torn == []
    engine.dispose()


class Held:
    """An S3 client whose answers can be held back."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self.meta = s3.meta
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = 0
        self.answered = 0

    def get_object(self, **arguments: Any) -> Any:
        self.asked += 1
        assert self.may_answer.wait(30)
        self.answered += 1
        return self._s3.get_object(**arguments)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_caller_waits_for_a_refresh_that_hangs(two_nights: Store, open_reader: Open) -> None:
    """Fault 12 (F32): the store does not answer a refresh."""
    held = Held(two_nights.s3)
    reader = open_reader(client=held, refresh_seconds=0.05)
    was = reader.posters_for("u0", ["item8", "item3"])
    held.may_answer.clear()
    until(lambda: held.asked > held.answered)  # the refresh is under way, and stays so
    answered = held.answered
    for _ in range(300):
        assert reader.posters_for("u0", ["item8", "item3"]) == was
    assert held.answered == answered, "a caller has waited for the store"
    assert not reader.alarms
    held.may_answer.set()
    reader.close()
    asked = held.asked
    time.sleep(0.3)
    assert held.asked == asked


def test_a_new_night_is_found_in_the_background(settings: Settings, two_nights: Store, open_reader: Open) -> None:
    """Fault 13 (F32): a reader finds the next set by itself."""
    reader = open_reader(refresh_seconds=0.05)
    assert reader.poster_for("u0", "item8")
    night(settings, on=date(2026, 3, 3)).run(Scope())  # nothing new: no set
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        set_user(session, "u0", ["item1", "item5", "item6", "item2"])
    engine.dispose()
    night(settings, on=date(2026, 3, 4)).run(Scope())
    until(lambda: reader.current and reader.current.logical_date == "2026-03-04")
    choice = reader.poster_for("u0", "item8")
    assert choice
    assert choice.source == "tonight"
    reader.close()


def test_a_forked_process_refreshes_for_itself(two_nights: Store, open_reader: Open) -> None:
    """Fault 14 (F32): the pointer is damaged, and a forked reader notices."""
    reader = open_reader(refresh_seconds=0.05)
    was = reader.poster_for("u0", "item8")
    back, front = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 warns of what is tested here
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:  # no pytest in here
        code = 1
        try:
            # The pointer goes, and this process is the one to notice.
            same = reader.poster_for("u0", "item8") == was
            seen = threading.active_count() == 2 and reader._refresher._thread is not None
            start = time.monotonic()
            while not reader.alarms and time.monotonic() < start + 10:
                time.sleep(0.01)
            os.write(front, f"{same} {seen} {set(reader.alarms)}".encode())
            code = 0
        finally:
            os._exit(code)
    store, good = two_nights, two_nights.get(POINTER_KEY)
    assert good
    store.put(POINTER_KEY, b"{", "application/json")
    assert os.read(back, 1000) == b"True True {'pointer_unreadable'}"
    assert os.waitpid(child, 0)[1] == 0
    os.close(back)
    os.close(front)
    reader.close()


def test_processes_share_one_download_and_what_nobody_uses_goes(
    two_nights: Store, open_reader: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 13 (F32): readers of one cache while old sets are dropped."""
    held = Held(two_nights.s3)
    first = open_reader(cache_dir=tmp_path / "shared", client=held)
    before = held.asked
    second = open_reader(cache_dir=tmp_path / "shared", client=held)
    assert held.asked == before + 2  # the pointer and the list of what is withdrawn
    assert second.rows() == first.rows()
    folder = next((tmp_path / "shared").iterdir())
    used = {path.name for path in folder.glob("*.arrow")}
    assert len(used) == len(pointer(two_nights).current.shards) + 1
    monkeypatch.setattr("schemas.manifest_cache.KEEP_SECONDS", -1.0)
    (folder / "old.arrow").write_bytes(b"")
    cleaner = first._source.cache
    # Another process maps the files: they stay for it.
    program = (
        "import sys, time; from pathlib import Path; from schemas.manifest_cache import FileCache\n"
        f"held = [FileCache(Path({str(folder)!r})).open(name, None) for name in {sorted(used)!r}]\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    del first, second
    cleaner.clean(set())
    assert {path.name for path in folder.glob("*.arrow")} == used
    other.communicate("")
    cleaner.clean(set())
    assert list(folder.glob("*.arrow")) == []


def test_a_cache_that_cannot_be_written_is_named_at_the_start_and_survived_later(
    two_nights: Store, open_reader: Open, tmp_path: Path
) -> None:
    """Fault 14: the set cannot be kept on this machine."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        open_reader(cache_dir=tmp_path / "file")
    live = open_reader()
    was = live.poster_for("u0", "item8")
    live._source.cache._folder = tmp_path / "file" / "folder"
    assert live._loaded
    live._loaded.etag = ""
    live._loaded.shards.clear()  # so that it has to fetch them again
    assert not live.refresh()
    assert live.alarms == {"refresh_failed": 1}
    assert live.poster_for("u0", "item8") == was
