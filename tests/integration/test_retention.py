"""Retention: what is old goes, what is shown or can be led back to stays; on real Postgres and S3."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from generator.feedback import registry
from generator.feedback.artifacts import upload
from generator.feedback.retention import DROPPED, drop_adapters, drop_snapshots
from generator.nightly.ledger import run_id_of
from generator.nightly.plan import Scope
from generator.storage.objects import Store
from generator.upkeep.batches import Upkeep
from generator.upkeep.leading import leading
from generator.upkeep.retention import upkeep
from generator.upkeep.unused import drop_orphans
from schemas.manifest import POINTER_KEY
from schemas.manifest_cache import FileCache
from schemas.manifest_files import Pointer, art_key, poster_key
from schemas.manifest_source import ManifestSource
from schemas.settings import Settings
from schemas.tables import (
    AnswerSet,
    CatalogImage,
    ImageFeature,
    Item,
    ModelVersion,
    NightRun,
    NightSkip,
    NightTask,
    PlannedUser,
    Poster,
    PosterFeedback,
    PreferenceSnapshot,
    ScheduleMoment,
)
from tests.support.night_world import build, night, reader, set_user
from tests.support.upkeep_world import dies, unnamed

pytestmark = pytest.mark.integration
NOW = datetime.now(UTC)
DAYS = [date(2026, 3, day) for day in range(1, 5)]
LATER = 50
"""Days from now: past retention.replaced_days."""


def after(days: float) -> datetime:
    return NOW + timedelta(days=days)


def changed(settings: Settings, **values: object) -> Settings:
    retention = settings.retention.model_copy(update=values)
    return settings.model_copy(
        update={"retention": retention, "night": settings.night.model_copy(update={"keep_manifests": 2})}
    )


@pytest.fixture
def four_nights(settings: Settings, engine: Engine, tmp_path: Path) -> Settings:
    """u0 likes something new every day, u1 never; sets of the last two nights are kept."""
    build(settings, tmp_path / "art", users=2, targets=1)
    for number, day in enumerate(DAYS):
        with Session(engine) as session, session.begin():
            set_user(session, "u0", [f"item{number}", "item5", "item6", "item7"], ["item8"])
        night(settings, on=day).run(Scope())
    return changed(settings)


def runs_of(engine: Engine, table: type, user: str) -> set[str]:
    """Days of the nights of which a table has rows of a user."""
    with Session(engine) as session:
        found = session.scalars(select(table.run_id).where(table.user_id == user))  # type: ignore[attr-defined]
        return {run_id[-2:] for run_id in found}


def images_of_both_sets(settings: Settings, folder: Path) -> set[str]:
    """Images of the set that readers are led to, and of the one before."""
    store = Store(settings.s3)
    stored = store.get(POINTER_KEY)
    assert stored
    pointer = Pointer.parse(stored.body)
    assert pointer.previous
    source = ManifestSource(store.s3, settings.s3.bucket, FileCache(folder))
    return {
        key
        for ref in (pointer.current, pointer.previous)
        for shard in source.shards(ref)
        for key in shard.rows["image_key"].to_pylist()
    }


def test_what_later_nights_replaced_goes_and_what_is_shown_or_can_be_led_back_to_stays(
    four_nights: Settings, engine: Engine, tmp_path: Path
) -> None:
    led_to = images_of_both_sets(four_nights, tmp_path / "sets")
    shown = reader(four_nights).rows().to_pylist()
    assert list(upkeep(four_nights)) == [
        "manifests: 4 nights found, 8 objects of older ones deleted",
        "retention: nothing is older than retention.* says",
    ], "a night that was published just now replaced nothing long ago"

    said = list(upkeep(four_nights, now=after(LATER)))
    assert runs_of(engine, Poster, "u0") == {"03", "04"}
    assert runs_of(engine, NightTask, "u0") == {"03", "04"}
    assert runs_of(engine, Poster, "u1") == runs_of(engine, NightTask, "u1") == {"01"}, "unchanged, so current"
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(AnswerSet)) == 3
    assert any("4 posters, 2 tasks, 2 answers deleted" in line for line in said), said
    assert reader(four_nights).rows().to_pylist() == shown
    store = Store(four_nights.s3)
    assert all(store.exists(key) for key in led_to)
    assert unnamed(four_nights) == set()
    with Session(engine) as session:
        used = set(session.scalars(select(Poster.image_key)))
    assert set(store.keys("posters/")) == used, "and the files that only they had"
    again = list(upkeep(four_nights, now=after(LATER)))
    assert again[-1] == "retention: nothing is older than retention.* says"


def leave_out(engine: Engine, user: str) -> None:
    """Skips of a user in the last three nights, as of one who has too little history."""
    with Session(engine) as session, session.begin():
        session.add_all(NightSkip(run_id=run_id_of(day), user_id=user, item_id="", reason="short") for day in DAYS[1:])


def test_a_dry_run_says_the_same_and_deletes_nothing(four_nights: Settings, engine: Engine) -> None:
    def state() -> tuple[list[str], int]:
        with Session(engine) as session:
            rows = sum(
                session.scalar(select(func.count()).select_from(table)) or 0
                for table in (Poster, NightTask, NightSkip, AnswerSet, NightRun)
            )
        return list(Store(four_nights.s3).keys("")), rows

    leave_out(engine, "u1")
    before = state()
    would = list(upkeep(four_nights, dry_run=True, now=after(LATER)))
    assert state() == before
    assert "retention: 4 posters, 2 tasks, 2 answers would go" in would
    did = list(upkeep(four_nights, now=after(LATER)))
    assert "retention: 4 posters, 2 tasks, 2 answers deleted" in did
    skips = [line for line in would if "skips" in line]
    assert skips == [line.replace("deleted", "would go") for line in did if "skips" in line]
    assert skips


def test_a_clicked_poster_stays_as_long_as_histories_take_the_click_in_and_no_longer(
    four_nights: Settings, engine: Engine
) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        run_id = run_id_of(DAYS[0])
        first = select(Poster).where(Poster.run_id == run_id, Poster.user_id == "u0")
        poster, other = session.scalars(first.order_by(Poster.variant)).all()
        click = {"poster_id": poster.poster_id, "user_id": "u0", "item_id": "item8", "action": "click"}
        session.add(PosterFeedback(event_id=uuid4(), occurred_at=NOW, **click))
        features = {"image_sha256": poster.art_sha256, "tokenizer_version": "t", "tokens": [], "embedding": []}
        session.add(ImageFeature(**features, created_at=NOW - timedelta(days=200)))
        session.add(ImageFeature(**{**features, "image_sha256": "0"}, created_at=NOW - timedelta(days=200)))
        session.execute(text("""UPDATE night_runs SET settings = '{"served": {"tokenizer": "t"}}'"""))

    def left() -> tuple[set[str], set[str]]:
        with Session(engine) as session:
            posters = set(
                session.scalars(select(Poster.poster_id).where(Poster.run_id == run_id, Poster.user_id == "u0"))
            )
            return posters, set(session.scalars(select(ImageFeature.image_sha256)))

    assert left()[0] == {poster.poster_id, other.poster_id}
    assert left()[1] >= {poster.art_sha256, "0"}
    for days in (LATER, 90):
        list(upkeep(four_nights, now=after(days)))
        assert left()[0] == {poster.poster_id}, "the other variant was replaced and nobody clicked it"
        assert poster.art_sha256 in left()[1]
        assert "0" not in left()[1], "of no picture at all"
        assert Store(four_nights.s3).exists(poster.art_key)
        assert "01" in runs_of(engine, NightTask, "u0")
    said = list(upkeep(four_nights, now=after(92), dry_run=True))
    assert any(line.endswith("1 posters, 1 tasks, 1 answers would go") for line in said), said
    assert left()[0] == {poster.poster_id}
    said = list(upkeep(four_nights, now=after(92)))
    assert any(line.endswith("1 posters, 1 tasks, 1 answers deleted") for line in said), said
    assert left()[0] == set()
    list(upkeep(four_nights, now=after(120)))
    assert not Store(four_nights.s3).exists(poster.art_key)
    assert unnamed(four_nights) == set()


def test_where_histories_take_in_no_clicks_a_clicked_poster_goes_as_any_other(
    four_nights: Settings, engine: Engine
) -> None:
    with Session(engine) as session, session.begin():
        for poster in session.scalars(select(Poster).where(Poster.user_id == "u0")):
            click = {"poster_id": poster.poster_id, "user_id": "u0", "item_id": "item8", "action": "click"}
            session.add(PosterFeedback(event_id=uuid4(), occurred_at=NOW, **click))
    off = four_nights.model_copy(update={"history": four_nights.history.model_copy(update={"drawn_share": 0.0})})
    list(upkeep(off, now=after(LATER)))
    assert runs_of(engine, Poster, "u0") == {"03", "04"}


def test_files_have_a_grace_after_their_posters_went(four_nights: Settings, engine: Engine) -> None:
    store = Store(four_nights.s3)
    before = set(store.keys("posters/"))
    with Session(engine) as session, session.begin():
        session.execute(update(NightRun).values(finished_at=NightRun.finished_at - timedelta(days=LATER)))
        for table in ("pictures", "compositions"):
            session.execute(text(f"UPDATE {table} SET last_used_at = last_used_at - interval '50 days'"))  # noqa: S608
    list(upkeep(four_nights))
    assert set(store.keys("posters/")) == before, "nobody had looked at them since the posters went"
    list(upkeep(four_nights, now=after(four_nights.retention.unused_days + 1)))
    assert len(before - set(store.keys("posters/"))) == len(before) - len(set(store.keys("posters/"))) > 0
    assert unnamed(four_nights) == set()


def test_a_trial_that_nobody_saw_goes_and_a_run_goes_when_nothing_of_it_is_left(
    four_nights: Settings, engine: Engine
) -> None:
    with Session(engine) as session, session.begin():
        set_user(session, "u1", ["item0", "item5", "item6", "item7"], ["item9"])
    trial = Scope(users=("u1",))
    night(four_nights, on=date(2026, 2, 1)).run(trial)
    name = run_id_of(date(2026, 2, 1), trial.name)
    with Session(engine) as session, session.begin():
        session.execute(update(NightRun).where(NightRun.run_id == name).values(finished_at=NOW - timedelta(days=1)))
    list(upkeep(four_nights, now=after(LATER)))
    with Session(engine) as session:
        assert session.scalars(select(Poster.poster_id).where(Poster.run_id == name)).all() == []
        assert session.get(NightRun, name)
    list(upkeep(four_nights, now=after(four_nights.retention.runs_days + 1)))
    with Session(engine) as session:
        left = set(session.scalars(select(NightRun.run_id)))
    assert left == {run_id_of(DAYS[0]), run_id_of(DAYS[2]), run_id_of(DAYS[3])}, "those whose posters stay"


def test_skips_go_before_their_runs(four_nights: Settings, engine: Engine) -> None:
    leave_out(engine, "u1")
    assert runs_of(engine, NightSkip, "u1") == {"02", "03", "04"}
    list(upkeep(four_nights, now=after(four_nights.retention.skips_days - 1)))
    assert runs_of(engine, NightSkip, "u1") == {"02", "03", "04"}
    few = changed(four_nights, batch_rows=1)
    assert any("3 skips deleted" in line for line in upkeep(few, now=after(four_nights.retention.skips_days + 1)))
    assert runs_of(engine, NightSkip, "u1") == set()


@pytest.mark.parametrize(("point", "count"), [("rows retired", 1), ("rows retired", 2), ("file deleted", 2)])
def test_an_upkeep_that_is_killed_is_finished_by_the_next(
    four_nights: Settings, engine: Engine, point: str, count: int
) -> None:
    shown = reader(four_nights).rows().to_pylist()
    dies(four_nights, "upkeep", point, count=count, days=LATER)
    assert reader(four_nights).rows().to_pylist() == shown
    list(upkeep(four_nights, now=after(LATER)))
    assert runs_of(engine, Poster, "u0") == {"03", "04"}
    assert unnamed(four_nights) == set()
    assert all(Store(four_nights.s3).exists(row["image_key"]) for row in shown)


def test_an_object_that_no_row_names_goes_after_a_grace(four_nights: Settings) -> None:
    store = Store(four_nights.s3)
    known = {*store.keys("posters/"), *store.keys("art/")}
    sha = hashlib.sha256(b"left by a killed night").hexdigest()
    orphans = {poster_key(sha), art_key(sha), "posters/not-ours.txt"}
    for key in orphans:
        store.put(key, b"left by a killed night", "image/webp")
    every = changed(four_nights, orphan_slices=16)
    for days in (every.retention.orphan_days - 1, every.retention.orphan_days + 1):
        with leading(every, "upkeep") as (_, ledger):
            one = Upkeep(every, store, ledger, now=after(days))
            drop_orphans(one)
        there = {*store.keys("posters/"), *store.keys("art/")}
        if days < every.retention.orphan_days:
            assert there == known | orphans
            assert one.removed["orphans"] == 0
    assert there == known | {"posters/not-ours.txt"}
    assert one.removed["orphans"] == 2


def test_the_bucket_is_compared_a_slice_at_a_time_and_all_of_it_in_the_end(four_nights: Settings) -> None:
    store = Store(four_nights.s3)
    for digit in "08f":
        store.put(poster_key(digit * 64), b"orphan", "image/webp")
    seen = []
    for _ in range(16):
        with leading(four_nights, "upkeep") as (_, ledger):
            one = Upkeep(four_nights, store, ledger, now=after(30))
            drop_orphans(one)
        seen.append(one.removed["orphans"])
    assert [number for number, count in enumerate(seen) if count] == [0, 8, 15]


def test_an_orphan_that_a_night_names_at_that_moment_is_put_back(
    four_nights: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(four_nights.s3)
    key = poster_key("a" * 64)
    store.put(key, b"poster", "image/webp")
    delete = Store.delete

    def named_meanwhile(self: Store, gone: str) -> None:
        with Session(engine) as session, session.begin():
            session.execute(
                text(
                    "INSERT INTO compositions (composition_key, picture_key, image_key, width, height) "
                    "VALUES ('c', 'p', :key, 1, 1)"
                ),
                {"key": key},
            )
        delete(self, gone)

    monkeypatch.setattr(Store, "delete", named_meanwhile)
    every = changed(four_nights, orphan_slices=16)
    with leading(every, "upkeep") as (bucket, ledger):
        drop_orphans(Upkeep(every, bucket, ledger, now=after(30)))
    assert store.exists(key)


def test_old_rows_of_each_kind_go_and_those_in_use_stay(settings: Settings, engine: Engine) -> None:
    old, recent = NOW - timedelta(days=500), NOW - timedelta(days=1)

    def feedback(ingested_at: datetime) -> PosterFeedback:
        names = {"poster_id": "p", "user_id": "u", "item_id": "i", "action": "click"}
        return PosterFeedback(event_id=uuid4(), occurred_at=old, ingested_at=ingested_at, **names)

    def moment(name: str, status: str, due_at: datetime) -> ScheduleMoment:
        return ScheduleMoment(job="night", moment=name, status=status, due_at=due_at, token=1)

    with Session(engine) as session, session.begin():
        session.add_all([feedback(old), feedback(recent)])
        session.add_all(
            [
                moment("a", "done", old),
                moment("b", "waiting", old),
                moment("c", "gave_up", recent),
                moment("d", "gave_up", old),
            ]
        )
        session.add(Item(item_id="i", title="t", image_uri="s3://b/used.png"))
        session.add(Item(item_id="gone", title="t", image_uri="s3://b/gone.png", deleted_at=old))
        for name, checked_at in (("used", old), ("gone", old), ("new", recent)):
            image = CatalogImage(uri=f"s3://b/{name}.png", sha256=name, checked_at=checked_at, changed_at=old)
            session.add(image)
        session.add(
            NightRun(
                run_id="night-20260301",
                logical_date=date(2026, 3, 1),
                status="published",
                model_version="m",
                fencing_token=1,
                settings={"served": {"tokenizer": "t-2"}},
            )
        )
        for sha, version in (("used", "t-2/pictures-1"), ("gone", "t-2/pictures-1"), ("used", "t-1/pictures-1")):
            row = {"image_sha256": sha, "tokenizer_version": version, "tokens": [], "embedding": []}
            session.add(ImageFeature(**row, created_at=old))
        set_user(session, "u0", ["i"])
        for user, planned_at in (("u0", old), ("vanished", old), ("new", recent)):
            prints = dict.fromkeys(("history_fingerprint", "targets_fingerprint", "drawing_fingerprint"), "f")
            session.add(PlannedUser(user_id=user, planned_at=planned_at, **prints))
    said = list(upkeep(changed(settings, batch_rows=1)))
    assert "retention: 1 feedback deleted" in said
    assert "retention: 1 catalog images, 2 image features, 1 planned users deleted" in said
    assert "retention: 2 moments deleted" in said
    with Session(engine) as session:
        assert set(session.scalars(select(CatalogImage.uri))) == {"s3://b/used.png", "s3://b/new.png"}
        assert session.scalars(select(ImageFeature.tokenizer_version)).all() == ["t-2/pictures-1"]
        assert set(session.scalars(select(PlannedUser.user_id))) == {"u0", "new"}
        assert set(session.scalars(select(ScheduleMoment.moment))) == {"b", "c"}
        assert session.scalars(select(PosterFeedback.ingested_at)).all() == [recent]


@pytest.fixture
def versions(settings: Settings, engine: Engine, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Prefixes of adapters in the bucket: champion, the one before, one older, and a refused one."""
    store, prefixes = Store(settings.s3), {}
    with Session(engine) as session, session.begin():
        parent = registry.ensure_champion(session, "nano", "base")
        for number, name in enumerate(("older", "before", "champion", "refused")):
            snapshot = PreferenceSnapshot(
                snapshot_id=name,
                key=f"snapshots/{name}.jsonl",
                window_start=NOW,
                window_end=NOW,
                train_pairs=1,
                holdout_pairs=1,
            )
            session.add(snapshot)
            session.flush()
            store.put(snapshot.key, b"{}", "application/jsonl")
            version = registry.register(session, "nano", parent, name, "recipe", "test")
            folder = tmp_path / name
            folder.mkdir()
            (folder / "adapter").write_bytes(os.urandom(8))
            version.adapter_key, version.adapter_sha256 = upload(store, version.version, folder)
            prefixes[name] = version.adapter_key
            if name == "refused":
                registry.change_state(session, version.version, "refused", "worse")
            else:
                registry.change_state(session, version.version, "loaded", "good")
                registry.make_champion(session, version.version, "better")
                session.flush()
                parent = registry.get(session, version.version)
            assert number < 4
    yield prefixes
    store.s3.close()


def test_adapters_that_were_decided_against_go_but_not_what_a_rollback_brings_back(
    settings: Settings, engine: Engine, versions: dict[str, str]
) -> None:
    store = Store(settings.s3)
    store.put("models/nano-9/abc/adapter", b"left by a killed training", "application/octet-stream")
    assert drop_adapters(engine, store, settings, NOW) == 0
    assert drop_adapters(engine, store, settings, after(200), dry_run=True) == 3
    assert drop_adapters(engine, store, settings, after(200)) == 3
    assert {f"{key.rpartition('/')[0]}/" for key in store.keys("models/")} == {versions["before"], versions["champion"]}
    with Session(engine) as session:
        rows = session.scalars(select(ModelVersion).where(ModelVersion.adapter_sha256.is_not(None))).all()
        assert {row.state for row in rows if row.adapter_key is None} == {"retired", "refused"}
        assert all((row.adapter_key is None) == (DROPPED in row.metrics) for row in rows)
    assert drop_adapters(engine, store, settings, after(200)) == 0


def test_old_snapshots_go_unless_a_version_in_use_was_trained_from_them(
    settings: Settings, engine: Engine, versions: dict[str, str]
) -> None:
    store = Store(settings.s3)
    assert drop_snapshots(engine, store, settings, after(399)) == 0
    assert drop_snapshots(engine, store, settings, after(401)) == 3
    assert list(store.keys("snapshots/")) == ["snapshots/champion.jsonl"]
    assert drop_snapshots(engine, store, settings, after(401)) == 0


def test_upkeep_runs_beside_a_night(four_nights: Settings, engine: Engine) -> None:
    from generator.storage.lease import lead

    with lead(engine, "night"):
        assert list(upkeep(four_nights, now=after(LATER)))
    assert runs_of(engine, Poster, "u0") == {"03", "04"}
