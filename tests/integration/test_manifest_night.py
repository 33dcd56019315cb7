"""What a night's manifest has, and taking it back, on real Postgres and S3; the model is a double."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from generator.nightly import manifest_writer, withdraw
from generator.nightly.manifest_images import ImagesMissing
from generator.nightly.plan import Scope
from generator.serving.api import DrawRequest, InferenceUnavailable
from generator.storage.objects import Store
from generator.upkeep.erase import erase_users
from generator.upkeep.retention import upkeep
from schemas.errors import InputError, PartialFailure, Refused
from schemas.manifest import POINTER_KEY, WITHDRAWN_KEY, ManifestRef, Pointer, PosterManifest, Withdrawn
from schemas.manifest_files import ITEM_SCHEMA_V1, POSTER_SCHEMA_V1, items_key, manifest_key, to_parquet
from schemas.settings import Settings
from schemas.tables import CurrentPosters, Erasure, NightRun, Poster, UserObjection, Withdrawal
from tests.support.fake_pigeon import FakePigeon
from tests.support.manifest_rows import ROW
from tests.support.night_world import Announcements, build, night, set_user

pytestmark = pytest.mark.integration
TOMORROW = date(2026, 3, 2)
WHY: dict[str, Any] = {"reason": "a complaint", "actor": "ann"}


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    made = Store(settings.s3)
    yield made
    made.s3.close()


@pytest.fixture
def read(settings: Settings, store: Store) -> Callable[[], PosterManifest]:
    """Opens a reader."""
    cache = settings.state_dir / "cache" / "manifest"
    return lambda: PosterManifest.open(bucket=store.bucket, client=store.s3, refresh_seconds=math.inf, cache_dir=cache)


Read = Callable[[], PosterManifest]


def shown(reader: PosterManifest) -> set[tuple[str, str]]:
    return {(row["user_id"], row["item_id"]) for row in reader.rows().to_pylist()}


def pointer(store: Store) -> Pointer:
    stored = store.get(POINTER_KEY)
    assert stored
    return Pointer.parse(stored.body)


def click_on(engine: Engine, user: str, item: str) -> None:
    """The user's history changes, so that the next night draws for this one again."""
    with Session(engine) as session, session.begin():
        set_user(session, user, ["item4", "item5", "item6", item])


def withdrawn_list(store: Store) -> Withdrawn:
    stored = store.get(WITHDRAWN_KEY)
    return Withdrawn.parse(stored.body) if stored else Withdrawn()


def test_sets_are_sharded_by_user_in_pages_of_any_size(
    settings: Settings, store: Store, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_writer, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr("generator.nightly.manifest_rows.PAGE_PAIRS", 3)
    monkeypatch.setattr("generator.nightly.manifest_rows.PAGE_ITEMS", 5)
    build(settings, tmp_path / "art", users=4, targets=2)
    night(settings).run(Scope())
    ref = pointer(store).current
    assert len(ref.shards) == 4
    assert sum(shard.rows for shard in ref.shards) == ref.posters == 16
    reader = read()
    assert shown(reader) == {(f"u{n}", f"item{8 + (n + step) % 4}") for n in range(4) for step in range(2)}
    for number in range(4):
        page = reader.posters_for(f"u{number}", [f"item{n}" for n in range(12)])
        assert list(page) == [f"item{n}" for n in range(12)]
        assert [choice.source for choice in page.values()].count("tonight") == 2
    stored = store.get(ref.manifest_key)
    assert stored
    assert ManifestRef.parse_set(ref.manifest_key, stored.body) == ref


def test_a_key_that_is_not_in_the_bucket_is_an_error_that_names_it(
    settings: Settings, store: Store, read: Read, tmp_path: Path
) -> None:
    """FLAWS F8: nothing leads readers to a missing picture."""
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    victim = read().rows().to_pylist()[0]["image_key"]
    stored = store.get(victim)
    assert stored
    store.delete(victim)
    build(settings, tmp_path / "art", users=3, targets=1)
    with pytest.raises(ImagesMissing, match=victim):
        night(settings, on=TOMORROW).run(Scope())
    assert pointer(store).current.logical_date == "2026-03-01"
    store.put(victim, stored.body, "image/webp")
    night(settings, on=TOMORROW).resume()
    assert pointer(store).current.logical_date == "2026-03-02"


def test_what_a_dead_earlier_run_intended_is_tonights_when_tonight_finished_it(
    settings: Settings, engine: Engine, read: Read, tmp_path: Path
) -> None:
    """FLAWS F27."""
    build(settings, tmp_path / "art", users=1, targets=1)

    def away(request: DrawRequest, attempt: int) -> None:
        raise InferenceUnavailable("gone")

    night(settings).run(Scope())
    with Session(engine) as session, session.begin():  # as if that night had died after "intended"
        session.execute(text("DELETE FROM current_posters"))
        session.execute(text("UPDATE night_tasks SET status = 'failed'"))
        session.execute(text("UPDATE night_runs SET status = 'failed'"))
        session.execute(text("UPDATE planned_users SET run_id = 'night-20260301'"))
    night(settings, on=TOMORROW).run(Scope())
    choice = read().poster_for("u0", "item8")
    assert choice
    assert choice.source == "tonight"
    with Session(engine) as session:
        assert set(session.scalars(select(Poster.run_id))) == {"night-20260302"}, (
            "the run that finished the task has them"
        )
        assert set(session.scalars(select(CurrentPosters.run_id))) == {"night-20260302"}
    click_on(engine, "u0", "item1")
    with pytest.raises(PartialFailure):
        night(settings, FakePigeon(away), on=date(2026, 3, 3)).run(Scope())
    assert shown(read()) == {("u0", "item8")}


def test_a_night_of_the_past_changes_nothing_that_is_current(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings, on=TOMORROW).run(Scope())
    click_on(engine, "u0", "item1")
    night(settings).run(Scope())
    with Session(engine) as session:
        assert set(session.scalars(select(CurrentPosters.run_id))) == {"night-20260302"}


def test_posters_that_an_unchanged_user_had_before_are_current_again(
    settings: Settings, engine: Engine, read: Read, tmp_path: Path
) -> None:
    """A user whose history is again what it was gets the posters of then, without a drawing."""
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    first = {row["poster_id"] for row in read().rows().to_pylist() if row["user_id"] == "u0"}
    click_on(engine, "u0", "item1")
    night(settings, on=TOMORROW).run(Scope())
    second = {row["poster_id"] for row in read().rows().to_pylist() if row["user_id"] == "u0"}
    assert not first & second
    with Session(engine) as session, session.begin():
        set_user(session, "u0", [f"item{n}" for n in range(4)])
        set_user(session, "u1", ["item4", "item5", "item6", "item0"])
    night(settings, on=date(2026, 3, 3)).run(Scope())
    assert {row["poster_id"] for row in read().rows().to_pylist() if row["user_id"] == "u0"} == first
    choice = read().poster_for("u0", "item8")
    assert choice
    assert choice.source == "last_good"


@pytest.mark.parametrize(
    ("kind", "subject", "hidden"),
    [
        ("user", "u0", {("u0", "item8"), ("u0", "item9")}),
        ("item", "item9", {("u0", "item9"), ("u1", "item9")}),
        ("poster", None, set()),
    ],
)
def test_what_is_taken_back_is_seen_by_readers_and_kept_by_later_nights(
    settings: Settings,
    engine: Engine,
    store: Store,
    read: Read,
    tmp_path: Path,
    kind: Any,
    subject: str | None,
    hidden: set[tuple[str, str]],
) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    night(settings).run(Scope())
    live = read()
    every, before = shown(live), live.rows()
    poster = live.variants_for("u1", "item9")[0]["poster_id"]
    subject = subject or poster
    assert "withdrawn; readers leave it out at their next refresh" in withdraw.withdraw(settings, kind, subject, **WHY)
    live.refresh()
    gone = shown(live)
    assert gone == every - hidden
    if kind == "poster":
        assert [row["poster_id"] for row in live.variants_for("u1", "item9")] != [poster]
        assert len(live.variants_for("u1", "item9")) == 1
    assert "was withdrawn already, by ann" in withdraw.withdraw(settings, kind, subject, **WHY)
    # A later night has it neither in its set nor in its announcements, with or without the list.
    click_on(engine, "u0", "item1")
    click_on(engine, "u1", "item2")
    told = Announcements()
    night(settings, announcements=told, on=TOMORROW).run(Scope())
    ref = pointer(store).current
    assert ref.logical_date == "2026-03-02"
    store.delete(WITHDRAWN_KEY)
    late = read()
    assert shown(late) == gone
    assert poster not in late.rows()["poster_id"].to_pylist() or kind != "poster"
    assert not {(event.user_id, event.item_id) for event in told.events} & hidden
    # Lifted, it is back with the next night.
    line = withdraw.lift(settings, kind, subject, reason="cleared", actor="bob")
    assert line == f"{kind} {subject} is no longer withdrawn (0 withdrawals are open)"
    assert withdrawn_list(store) == Withdrawn()
    with pytest.raises(InputError, match="is not withdrawn"):
        withdraw.lift(settings, kind, subject, **WHY)
    click_on(engine, "u2", "item3")
    night(settings, on=date(2026, 3, 3)).run(Scope())
    assert shown(read()) == every
    with Session(engine) as session:
        (row,) = session.scalars(select(Withdrawal)).all()
    assert (row.kind, row.subject, row.actor) == (kind, subject, "ann")
    assert row.reason == "a complaint; lifted by bob: cleared"
    assert row.lifted_at
    assert len(before)


def test_the_other_variant_takes_a_withdrawn_ones_share(
    settings: Settings, engine: Engine, read: Read, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    first, second = read().variants_for("u0", "item8")
    withdraw.withdraw(settings, "poster", first["poster_id"], **WHY)
    click_on(engine, "u1", "item1")
    night(settings, on=TOMORROW).run(Scope())
    (left,) = read().variants_for("u0", "item8")
    assert left == {**second, "propensity": 1.0}
    with Session(engine) as session:
        poster = session.get(Poster, second["poster_id"])
        assert poster
        assert poster.propensity == 1.0
    withdraw.lift(settings, "poster", first["poster_id"], **WHY)
    click_on(engine, "u1", "item2")
    night(settings, on=date(2026, 3, 3)).run(Scope())
    assert [row["propensity"] for row in read().variants_for("u0", "item8")] == pytest.approx([0.97, 0.03])


def test_who_objects_gets_no_drawn_posters(settings: Settings, engine: Engine, read: Read, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    with Session(engine) as session, session.begin():
        session.add(UserObjection(user_id="u0", objects=True, occurred_at=datetime(2026, 3, 1, tzinfo=UTC)))
        session.add(UserObjection(user_id="u1", objects=False, occurred_at=datetime(2026, 3, 1, tzinfo=UTC)))
    night(settings).run(Scope())
    assert {user for user, _ in shown(read())} == {"u1"}


def test_a_mistyped_withdrawal_changes_nothing(settings: Settings, store: Store, engine: Engine) -> None:
    for kind in ("poster", "picture", "item", "night"):
        with pytest.raises(InputError, match=f"no {kind} 'x'"):
            withdraw.withdraw(settings, kind, "x", **WHY)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--reason is empty"):
        withdraw.withdraw(settings, "user", "u0", reason=" ")
    with pytest.raises(InputError, match="'film' cannot be withdrawn"):
        withdraw.withdraw(settings, "film", "x", reason="why")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing is published"):
        withdraw.rollback(settings, **WHY)
    assert store.get(WITHDRAWN_KEY) is None
    with Session(engine) as session:
        assert session.scalars(select(Withdrawal)).all() == []


def test_a_list_that_was_not_written_is_mended_by_the_next_night(
    settings: Settings, engine: Engine, store: Store, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    with Session(engine) as session, session.begin():  # died between the row and the list
        session.add(Withdrawal(kind="user", subject="u9", reason="why", actor="ann"))
    night(settings).run(Scope())
    assert withdrawn_list(store) == Withdrawn(user=frozenset({"u9"}))


def test_a_night_is_rolled_back_and_stays_so_until_it_is_lifted(
    settings: Settings, engine: Engine, store: Store, read: Read, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=3, targets=1)
    night(settings).run(Scope())
    with pytest.raises(Refused, match="no whole set before that of night-20260301"):
        withdraw.rollback(settings, **WHY)
    live = read()
    good = {row["poster_id"]: row for row in live.rows().to_pylist()}
    with Session(engine) as session, session.begin():
        set_user(session, "u0", ["item4", "item5", "item6", "item1"], ["item8", "item11"])
    night(settings, on=TOMORROW).run(Scope())
    live.refresh()
    bad = {row["poster_id"] for row in live.rows().to_pylist() if row["drawn_by_run"] == "night-20260302"}
    assert len(bad) == 4
    line = withdraw.rollback(settings, **WHY)
    assert line == "rolled back from night-20260302 to night-20260301 (6 posters); readers follow at their next refresh"
    assert live.refresh()
    assert {row["poster_id"]: row for row in live.rows().to_pylist()} == good
    assert live.current
    assert live.current.run_id == "night-20260301"
    choice = live.poster_for("u0", "item8")
    assert choice
    assert choice.source == "tonight"
    assert withdrawn_list(store) == Withdrawn(night=frozenset({"night-20260302"}))
    # The next night carries on from what was current before it.
    click_on(engine, "u1", "item2")
    night(settings, on=date(2026, 3, 3)).run(Scope())
    rows = read().rows().to_pylist()
    assert not {row["poster_id"] for row in rows} & bad
    assert {row["poster_id"] for row in rows if row["user_id"] != "u1"} == {
        poster for poster, row in good.items() if row["user_id"] != "u1"
    }
    before = pointer(store).previous
    assert before
    assert before.run_id == "night-20260301"
    with Session(engine) as session:
        (row,) = session.scalars(select(Withdrawal)).all()
        assert (row.kind, row.subject, row.reason, row.actor) == ("night", "night-20260302", "a complaint", "ann")
    # Rolled back twice in a row it goes back further, and there is an end to it.
    assert "to night-20260301" in withdraw.rollback(settings, **WHY)
    with pytest.raises(Refused):
        withdraw.rollback(settings, **WHY)
    # Lifted, the latest leads again.
    assert "readers are led to its set again" in withdraw.lift(settings, "night", "night-20260303", **WHY)
    assert {row["poster_id"] for row in read().rows().to_pylist()} == {row["poster_id"] for row in rows}
    line = withdraw.lift(settings, "night", "night-20260302", **WHY)
    assert "readers stay with the set they have" in line
    click_on(engine, "u1", "item3")
    night(settings, on=date(2026, 3, 4)).run(Scope())
    assert bad <= set(read().rows()["poster_id"].to_pylist())


def test_a_rollback_that_died_is_finished_by_the_next(
    settings: Settings, engine: Engine, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    click_on(engine, "u0", "item1")
    night(settings, on=TOMORROW).run(Scope())

    def dies(*arguments: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(withdraw, "replace_pointer", dies)
        with pytest.raises(RuntimeError, match="killed"):
            withdraw.rollback(settings, **WHY)
    assert pointer(store).current.run_id == "night-20260302"
    assert "to night-20260301" in withdraw.rollback(settings, **WHY)
    assert pointer(store).current.run_id == "night-20260301"
    with Session(engine) as session:
        assert len(session.scalars(select(Withdrawal)).all()) == 1


def test_only_the_shards_of_an_erased_user_are_written_again(
    settings: Settings, engine: Engine, store: Store, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_writer, "ROWS_PER_SHARD", 2)
    build(settings, tmp_path / "art", users=4, targets=1)
    night(settings).run(Scope())
    click_on(engine, "u0", "item1")
    night(settings, on=TOMORROW).run(Scope())
    before, live = pointer(store).current, read()
    rows = live.rows().to_pylist()
    poster = next(row["poster_id"] for row in rows if row["user_id"] == "u1")
    withdraw.withdraw(settings, "user", "u1", **WHY)
    withdraw.withdraw(settings, "poster", poster, **WHY)
    # A night that was killed before its flip left a shard of its own.
    for shard in before.shards:
        stored = store.get(shard.key)
        assert stored
        if b"u1" in stored.body:
            store.put(shard.key.replace("night-20260302/", "night-dead/"), stored.body, "application/octet-stream")
    with Session(engine) as session, session.begin():
        session.add(Erasure(user_id="u1", requested_at=datetime(2026, 3, 2, tzinfo=UTC)))
    assert "1 user erased" in erase_users(settings)
    after = pointer(store)
    changed = [old != new for old, new in zip(before.shards, after.current.shards, strict=True)]
    assert changed.count(True) == 1
    assert after.current.posters == before.posters - 2
    for key in store.keys("manifests/"):
        stored = store.get(key)
        assert stored
        assert key.endswith(".html") or b"u1" not in stored.body
    assert live.refresh()
    assert live.rows().to_pylist() == [row for row in rows if row["user_id"] != "u1"]
    assert live.alarms == {}
    assert withdrawn_list(store) == Withdrawn()
    with Session(engine) as session:
        runs = session.scalars(select(NightRun.manifest_key).order_by(NightRun.logical_date)).all()
        assert session.scalars(select(Withdrawal)).all() == []
    assert after.previous
    assert runs == [after.previous.manifest_key, after.current.manifest_key]
    assert all(store.exists(key) for ref in (after.current, after.previous) for key in ref.keys)
    withdraw.withdraw(settings, "user", "u2", **WHY)
    list(upkeep(settings))
    assert store.exists(WITHDRAWN_KEY)


def old_set(store: Store, users: list[str], day: str) -> ManifestRef:
    """A set as the release before wrote it."""
    import hashlib

    run_id = f"night-{day}"
    rows = [{**ROW, "user_id": user, "item_id": "item8", "drawn_by_run": run_id, "propensity": 1.0} for user in users]
    manifest = to_parquet(rows, POSTER_SCHEMA_V1, run_id=run_id)
    items = to_parquet([{"item_id": "item3", "image_uri": "file:///3"}], ITEM_SCHEMA_V1)
    ref = ManifestRef(
        run_id,
        day,
        manifest_key(day, run_id),
        hashlib.sha256(manifest).hexdigest(),
        items_key(day, run_id),
        hashlib.sha256(items).hexdigest(),
        len(rows),
        "nano-1",
    )
    store.put(ref.manifest_key, manifest, "application/octet-stream")
    store.put(ref.items_key, items, "application/octet-stream")
    return ref


def test_sets_of_version_1_are_read_erased_from_and_followed_by_version_2(
    settings: Settings, engine: Engine, store: Store, read: Read, tmp_path: Path
) -> None:
    users = ["a", "b", "ü"]
    refs = [old_set(store, users, day) for day in ("2026-02-27", "2026-02-28")]
    store.put(POINTER_KEY, Pointer(refs[1], refs[0], 1, "").to_json(), "application/json")
    reader = read()
    choice = reader.poster_for("ü", "item8")
    assert choice
    assert (choice.source, choice.image_key, choice.propensity) == ("tonight", "posters/a.webp", 1)
    other = reader.poster_for("a", "item3")
    assert other
    assert other.image_uri == "file:///3"
    assert reader.variants_for("a", "item8")[0]["renditions"] == ROW["renditions"]
    with Session(engine) as session, session.begin():
        session.add(Erasure(user_id="b", requested_at=datetime(2026, 3, 2, tzinfo=UTC)))
    assert "1 user erased" in erase_users(settings)
    assert reader.refresh()
    assert shown(reader) == {("a", "item8"), ("ü", "item8")}
    assert pointer(store).current.version == 1  # readers of then can go on
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings).run(Scope())
    assert reader.refresh()
    assert shown(reader) == {("u0", "item8")}
    now = pointer(store)
    assert now.previous
    assert (now.current.version, now.previous.version) == (2, 1)
    store.delete(now.current.shards[0].key)
    fallen = PosterManifest.open(bucket=store.bucket, client=store.s3, cache_dir=tmp_path / "empty")
    assert shown(fallen) == {("a", "item8"), ("ü", "item8")}
    # And back, by hand: the pointer is of version 2 then, for it knows a set of version 2.
    assert "to night-2026-02-28" in withdraw.rollback(settings, **WHY)
    assert reader.refresh()
    assert shown(reader) == {("a", "item8"), ("ü", "item8")}
    assert pointer(store).current == now.previous
