"""Faults 13 and 14 on a real store: readers meet half-written, missing and damaged sets, and two publishers race."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

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
from schemas.settings import Settings
from tests.support.night_world import build, night, set_user

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture
def two_nights(settings: Settings, tmp_path: Path) -> Iterator[Store]:
    """Two published nights; u0 was drawn for in both. Readers of the test have a cache of their own."""
    global cache
    cache = tmp_path / "cache"
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


def open_reader(store: Store) -> PosterManifest:
    return PosterManifest.open(bucket=store.bucket, client=store.s3, refresh_seconds=3600)


def pointer(store: Store) -> Pointer:
    stored = store.get(POINTER_KEY)
    assert stored
    return Pointer.parse(stored.body)


def test_a_missing_or_damaged_set_falls_back_to_the_one_before(two_nights: Store) -> None:
    store, current = two_nights, pointer(two_nights).current
    before = open_reader(store)
    tonight = before.poster_for("u0", "item8")
    assert tonight
    assert tonight.source == "tonight"
    stored = store.get(current.manifest_key)
    assert stored
    heard: list[tuple[str, str]] = []
    for damage, alarm in ((None, "manifest_missing"), (stored.body[:-100], "manifest_corrupt")):
        store.delete(current.manifest_key)
        if damage:
            store.put(current.manifest_key, damage, "application/octet-stream")
        heard.clear()
        reader = PosterManifest.open(
            bucket=store.bucket, client=store.s3, on_alarm=lambda name, detail: heard.append((name, detail))
        )
        choice = reader.poster_for("u0", "item8")
        assert choice
        assert choice.source == "last_good"
        assert choice.poster_id != tonight.poster_id
        assert reader.alarms == {alarm: 1}
        assert heard[0][0] == alarm
        assert current.manifest_key in heard[0][1]
    # Who had read the set before keeps it: its own refresh asks for the pointer only, which has not changed.
    before.refresh()
    assert before.poster_for("u0", "item8") == tonight
    # It is mended: a reader that had fallen back finds out by itself.
    store.put(current.manifest_key, stored.body, "application/octet-stream")
    assert reader.refresh()
    assert reader.poster_for("u0", "item8") == tonight


def test_nothing_whole_at_all_still_answers(two_nights: Store) -> None:
    store = two_nights
    live = open_reader(store)
    was = live.poster_for("u0", "item8")
    store.put(POINTER_KEY, b"{ half a poin", "application/json")
    assert not live.refresh()
    assert live.alarms == {"pointer_unreadable": 1}
    assert live.poster_for("u0", "item8") == was
    fresh = open_reader(store)
    assert fresh.poster_for("u0", "item8") is None
    assert fresh.alarms == {"pointer_unreadable": 1}
    store.delete(POINTER_KEY)
    assert open_reader(store).alarms == {"nothing_published": 1}
    live.refresh()
    assert live.poster_for("u0", "item8") == was


def test_missing_item_pictures_cost_only_the_last_rung(two_nights: Store) -> None:
    store = two_nights
    store.delete(pointer(store).current.items_key)
    reader = open_reader(store)
    choice = reader.poster_for("u0", "item8")
    assert choice
    assert choice.source == "tonight"
    assert reader.poster_for("u0", "item3") is None
    assert reader.alarms == {"items_missing": 1}


def test_an_unreachable_or_wrong_store_is_named_at_the_start_and_survived_later(two_nights: Store) -> None:
    store = two_nights
    live = open_reader(store)
    was = live.poster_for("u0", "item8")
    with pytest.raises(InputError, match="no-such-bucket"):
        PosterManifest.open(bucket="no-such-bucket", client=store.s3)
    live._bucket = "no-such-bucket"
    assert not live.refresh()
    assert live.alarms == {"refresh_failed": 1}
    assert live.poster_for("u0", "item8") == was


def test_of_many_publishers_one_wins_and_readers_always_see_a_whole_set(settings: Settings, two_nights: Store) -> None:
    store, ref = two_nights, pointer(two_nights).current
    engine = connect(settings.database)
    torn: list[str] = []
    done = threading.Event()

    def watch() -> None:
        reader = open_reader(store)
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
