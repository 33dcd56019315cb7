"""Shards: the same bytes for the same rows, look-ups in place, the cache folder, choices for a page."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from generator.nightly.manifest_images import ImagesMissing, NamedImages
from generator.nightly.manifest_writer import ROWS_PER_SHARD, ShardSpool, shards_for, write_items
from schemas.control import control_poster_id, in_control_group
from schemas.events import PosterFeedback
from schemas.manifest import ITEM_SCHEMA, POINTER_KEY, WITHDRAWN_KEY, ManifestRef, Pointer, PosterManifest, ShardRef
from schemas.manifest_cache import FileCache, default_folder
from schemas.manifest_choice import PosterChoice
from schemas.manifest_shards import SHARD_SCHEMA, Shard, shard_of, stable_hash, stable_hashes, with_hashes, write_shard
from schemas.manifest_withdrawn import Withdrawn
from tests.support.manifest_rows import rows_of

USERS = [f"user {n}" for n in range(200)]
ITEMS = ["i1", "i2", "ü"]


def shards_of(rows: pa.Table, folder: Path, shards: int, page: int = 100) -> list[tuple[bytes, int]]:
    """Each shard's bytes and rows."""
    folder.mkdir(parents=True, exist_ok=True)
    spool = ShardSpool(folder, shards)
    for start in range(0, len(rows), page):
        spool.add(rows.slice(start, page))
    found = [(shard.path.read_bytes(), shard.rows) for shard in spool.write(run_id="night-1")]
    assert list(folder.iterdir()) == []
    return found


def mapped(body: bytes, path: Path) -> Shard:
    path.write_bytes(body)
    file = os.open(path, os.O_RDONLY)
    try:
        return Shard(file, SHARD_SCHEMA)
    finally:
        os.close(file)


def test_the_hash_is_the_documented_one() -> None:
    assert stable_hash("u42") == int(hashlib.sha256(b"u42").hexdigest()[:16], 16)
    hashes = stable_hashes(["u42", "u42", "ü"])
    assert hashes.tolist() == [stable_hash("u42"), stable_hash("u42"), stable_hash("ü")]
    assert shard_of(hashes, 1).tolist() == [0, 0, 0]
    assert shard_of(hashes, 16).tolist() == [value >> 60 for value in hashes.tolist()]


def test_the_same_rows_give_the_same_bytes_however_they_come(tmp_path: Path) -> None:
    rows = rows_of(USERS, ITEMS)
    first = shards_of(rows, tmp_path / "a", 4)
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    assert shards_of(rows.take(order), tmp_path / "b", 4, page=37) == first
    assert sum(count for _, count in first) == len(rows)


def test_a_users_rows_are_found_in_their_order(tmp_path: Path) -> None:
    ((body, _),) = shards_of(rows_of(USERS, ITEMS), tmp_path / "a", 1)
    shard = mapped(body, tmp_path / "shard")
    for user in (*USERS, "nobody", ""):
        start, end = shard.span(np.uint64(stable_hash(user)), user)
        rows = shard.rows.slice(start, end - start).to_pylist()
        expected = [(user, item, variant) for item in ITEMS for variant in (0, 1)] if user in USERS else []
        assert [(row["user_id"], row["item_id"], row["variant"]) for row in rows] == expected


def test_two_users_of_one_hash_are_kept_apart(tmp_path: Path) -> None:
    rows = with_hashes(rows_of(["ann", "bob", "eve"], ITEMS), SHARD_SCHEMA)
    same = rows.set_column(0, SHARD_SCHEMA.field(0), pa.array([7] * len(rows), pa.uint64()))
    write_shard(same, tmp_path / "shard")
    shard = mapped((tmp_path / "shard").read_bytes(), tmp_path / "shard")
    for user in ("ann", "bob", "eve"):
        start, end = shard.span(np.uint64(7), user)
        assert end - start == 6
        assert set(shard.values("user_id", list(range(start, end)))) == {user}
    assert np.ptp(shard.span(np.uint64(7), "mallory")) == 0


@pytest.mark.parametrize("body", [b"", b"nonsense", b"ARROW1" * 100])
def test_what_is_no_shard_is_a_value_error(body: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty|not an Arrow file"):
        mapped(body, tmp_path / "shard")


def test_a_shard_of_another_version_is_refused(tmp_path: Path) -> None:
    rows = with_hashes(rows_of(["ann"], ITEMS), SHARD_SCHEMA)
    write_shard(rows.replace_schema_metadata({"manifest_version": "3"}), tmp_path / "shard")
    with pytest.raises(ValueError, match="manifest version 3, this reader knows 2"):
        mapped((tmp_path / "shard").read_bytes(), tmp_path / "shard")


def test_shards_are_a_power_of_two_of_bounded_size() -> None:
    assert [shards_for(rows) for rows in (0, 1, ROWS_PER_SHARD, ROWS_PER_SHARD + 1, 5_000_000)] == [1, 1, 1, 2, 32]


def test_a_cached_file_is_made_once_and_whole(tmp_path: Path) -> None:
    cache, made = FileCache(tmp_path / "cache"), []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"content")

    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("the download died")

    with pytest.raises(RuntimeError, match="died"):
        cache.open("a.arrow", broken)
    assert list((tmp_path / "cache").glob("*.arrow")) == []
    assert list((tmp_path / "cache").glob(".*.part")) == []
    files: list[int] = []
    threads = [threading.Thread(target=lambda: files.append(cache.open("a.arrow", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert {os.pread(file, 10, 0) for file in files} == {b"content"}
    for file in files:
        os.close(file)


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "pigeon" / "manifest"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    other = default_folder()
    assert other.parent == tmp_path
    assert other.stat().st_mode & 0o777 == 0o700


class Bucket:
    """Test double of an S3 client: objects in a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.meta = type("Meta", (), {"endpoint_url": "memory"})

    def get_object(self, *, Bucket: str, Key: str, IfNoneMatch: str = "") -> dict[str, Any]:
        from botocore.exceptions import ClientError
        from botocore.response import StreamingBody

        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        etag = hashlib.sha256(self.objects[Key]).hexdigest()
        if etag == IfNoneMatch:
            raise ClientError({"Error": {"Code": "304"}}, "GetObject")
        import io

        return {"ETag": etag, "Body": StreamingBody(io.BytesIO(self.objects[Key]), len(self.objects[Key]))}

    def publish(self, rows: pa.Table, folder: Path, shards: int = 2, prefix: str = "s") -> ManifestRef:
        """A set and the pointer to it."""

        def put(key: str, body: bytes, count: int) -> ShardRef:
            self.objects[key] = body
            return ShardRef(key, hashlib.sha256(body).hexdigest(), count, len(body))

        parts = tuple(put(f"{prefix}{n}", *shard) for n, shard in enumerate(shards_of(rows, folder / "spool", shards)))
        items = [{"item_id": item, "image_uri": f"file:///{item}"} for item in (*ITEMS, "other")]
        written = write_items(
            iter([pa.Table.from_pylist([*items, {"item_id": "bare", "image_uri": None}], ITEM_SCHEMA)]), folder
        )
        ref, _ = ManifestRef.of_set(
            run_id="night-1",
            logical_date="2026-03-01",
            model_version="nano-1",
            shards=parts,
            items=put("items", written.path.read_bytes(), written.rows),
        )
        self.objects[POINTER_KEY] = Pointer(ref, None, 1, "").to_json()
        return ref

    def reader(self, folder: Path, **options: Any) -> PosterManifest:
        given = {"refresh_seconds": float("inf"), "control_share": 0.0, **options}
        return PosterManifest.open(bucket="b", client=self, cache_dir=folder / "cache", **given)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    made = Bucket()
    made.publish(rows_of(USERS, ITEMS), tmp_path)
    return made


def test_a_page_is_answered_in_its_order_by_the_ladder(bucket: Bucket, tmp_path: Path) -> None:
    reader = bucket.reader(tmp_path)
    page = reader.posters_for("user 7", ["other", "ü", "unknown", "bare", "i1", "ü"])
    assert [(item, choice.source) for item, choice in page.items()] == [
        ("other", "item"),
        ("ü", "tonight"),
        ("i1", "tonight"),
    ]
    assert page["other"].image_uri == "file:///other"
    for item in ("ü", "i1"):
        assert page[item] == reader.poster_for("user 7", item)
        rows = reader.variants_for("user 7", item)
        assert [row["variant"] for row in rows] == [0, 1]
        row = rows[page[item].variant or 0]
        assert (page[item].poster_id, page[item].propensity) == (row["poster_id"], row["propensity"])
    assert {choice.source for choice in reader.posters_for("stranger", ITEMS).values()} == {"item"}
    assert reader.posters_for("user 7", []) == {}
    assert len(reader.rows()) == len(USERS) * len(ITEMS) * 2


def test_a_day_a_session_or_a_request_decides_which_variant_it_is(bucket: Bucket, tmp_path: Path) -> None:
    """FLAWS F1: who sees one variant a day never sees both; another rotation shows them all."""

    def shares(reader: PosterManifest, **key: Any) -> list[int | None]:
        return [choice.variant for user in USERS for choice in reader.posters_for(user, ITEMS, **key).values()]

    by_day, by_session = bucket.reader(tmp_path), bucket.reader(tmp_path, rotation="session")
    assert shares(by_day) == shares(by_day) == shares(by_day, on=date(2026, 3, 1)) == shares(by_day, key="ignored")
    assert shares(by_day) != shares(by_day, on=date(2026, 3, 2))
    assert shares(by_session, key="s1") == shares(by_session, key="s1", on=date(2026, 3, 2))
    assert shares(by_session, key="s1") != shares(by_session, key="s2")
    assert shares(by_session, key="s1") != shares(bucket.reader(tmp_path, rotation="request"), key="s1")
    assert 0.7 < shares(by_session, key="s1").count(0) / 600 < 0.8
    with pytest.raises(ValueError, match="needs the session's id as `key`"):
        by_session.poster_for("user 7", "i1")


@pytest.mark.parametrize("rotation", ["day", "session", "request"])
def test_a_variant_is_shown_as_often_as_its_propensity_says(bucket: Bucket, tmp_path: Path, rotation: str) -> None:
    """Over 2,000 days, sessions or requests; where a variant is withdrawn, the other is always shown."""
    reader = bucket.reader(tmp_path, rotation=rotation)
    turns = [
        {"on": date(2026, 3, 1) + timedelta(days=n)} if rotation == "day" else {"key": f"{n}"} for n in range(2_000)
    ]
    choices = [reader.poster_for("user 7", "i1", **turn) for turn in turns]
    rows = reader.variants_for("user 7", "i1")
    for row in rows:
        mine = [choice for choice in choices if choice.poster_id == row["poster_id"]]
        assert {choice.propensity for choice in mine} == {row["propensity"]}
        deviation = (row["propensity"] * (1 - row["propensity"]) / len(turns)) ** 0.5
        assert len(mine) / len(turns) == pytest.approx(row["propensity"], abs=4 * deviation)
    bucket.objects[WITHDRAWN_KEY] = Withdrawn(poster=frozenset({rows[0]["poster_id"]})).to_json()
    reader.refresh()
    left = [reader.poster_for("user 7", "i1", **turn) for turn in turns[:50]]
    assert {(choice.poster_id, choice.propensity) for choice in left} == {(rows[1]["poster_id"], 1.0)}


def test_the_control_group_is_shown_the_items_own_posters_with_what_it_reports(bucket: Bucket, tmp_path: Path) -> None:
    drawn, reader = bucket.reader(tmp_path), bucket.reader(tmp_path, control_share=0.3)
    control = [user for user in USERS if in_control_group(user, 0.3)]
    assert len(control) / len(USERS) == pytest.approx(0.3, abs=0.1)
    for user in USERS:
        for item, choice in reader.posters_for(user, [*ITEMS, "other", "unknown"]).items():
            if user not in control or item == "other":
                assert choice == drawn.poster_for(user, item)
                continue
            expected = PosterChoice("control", control_poster_id(item), image_uri=f"file:///{item}", propensity=0.3)
            assert choice == expected
            PosterFeedback(
                event_id=UUID(int=1),
                poster_id=choice.poster_id,
                user_id=user,
                item_id=item,
                action="impression",
                propensity=choice.propensity,
                occurred_at=datetime(2026, 3, 1, tzinfo=UTC),
            )
    assert {user for user in USERS if in_control_group(user, 0.1)} < set(control), "nobody leaves when the share grows"
    assert reader.poster_for(control[0], "i1", on=date(2027, 1, 1)).source == "control"
    assert drawn.rows() == reader.rows(), "tools see all that was drawn"


def test_a_control_user_gets_the_drawn_poster_where_the_item_has_none_of_its_own(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.publish(rows_of(["u"], ["bare"]), tmp_path)
    assert bucket.reader(tmp_path, control_share=1.0).poster_for("u", "bare").source == "tonight"


def test_ids_of_the_control_group_fit_any_item() -> None:
    longest = "i" * 256
    assert len(control_poster_id(longest)) < 64
    assert control_poster_id(longest) != control_poster_id("i")


@pytest.mark.parametrize(
    ("withdrawn", "left"),
    [
        (Withdrawn(user=frozenset({"user 7"})), {}),
        (Withdrawn(item=frozenset({"i1"})), {"i2": 2, "ü": 2}),
        (Withdrawn(poster=frozenset({"user 7/i1/0"})), {"i1": 1, "i2": 2, "ü": 2}),
        (Withdrawn(picture=frozenset({"picture i2 0", "picture i2 1"})), {"i1": 2, "ü": 2}),
        (Withdrawn(night=frozenset({"night-1"})), {}),
    ],
)
def test_what_is_withdrawn_is_shown_no_more(
    bucket: Bucket, tmp_path: Path, withdrawn: Withdrawn, left: dict[str, int]
) -> None:
    reader = bucket.reader(tmp_path)
    before = reader.rows()
    bucket.objects[WITHDRAWN_KEY] = withdrawn.to_json()
    assert not reader.refresh()  # no other set, but
    assert reader.withdrawn == withdrawn
    page = reader.posters_for("user 7", ITEMS)
    assert {item for item, choice in page.items() if choice.source == "tonight"} == set(left)
    assert list(page) == ITEMS  # the catalogue's own picture instead
    for item in ITEMS:
        rows = reader.variants_for("user 7", item)
        assert len(rows) == left.get(item, 0)
        if len(rows) == 1:
            assert page[item].propensity == 1  # what was done, not what was planned
            assert rows[0]["variant"] == 1
    mine = [row["item_id"] for row in reader.rows().to_pylist() if row["user_id"] == "user 7"]
    assert {item: mine.count(item) for item in mine} == left
    bucket.objects[WITHDRAWN_KEY] = b"{ half a li"
    reader.refresh()
    assert reader.alarms == {"withdrawn_unreadable": 1}
    assert reader.withdrawn == withdrawn
    del bucket.objects[WITHDRAWN_KEY]
    reader.refresh()
    assert reader.rows() == before


def test_a_set_that_is_replaced_while_it_is_read_is_no_alarm(bucket: Bucket, tmp_path: Path) -> None:
    """An erasure moves the pointer and deletes: who comes between the two reads the pointer again."""
    real, moved = bucket.get_object, []

    def erased_meanwhile(**arguments: Any) -> dict[str, Any]:
        if arguments["Key"] == "s1" and not moved:
            moved.append(bucket.publish(rows_of(USERS[1:], ITEMS), tmp_path, shards=4, prefix="new"))
            del bucket.objects["s1"]
        return real(**arguments)

    bucket.get_object = erased_meanwhile  # type: ignore[method-assign]
    reader = bucket.reader(tmp_path)
    assert reader.alarms == {}
    assert reader.current == moved[0]


def test_only_shards_that_changed_are_read_again(bucket: Bucket, tmp_path: Path) -> None:
    reader = bucket.reader(tmp_path)
    rows = rows_of(USERS, ITEMS)
    gone = USERS[0]
    asked: list[str] = []
    real = bucket.get_object
    bucket.get_object = lambda **a: asked.append(a["Key"]) or real(**a)  # type: ignore[method-assign,func-returns-value]
    kept = rows.filter(pa.array([user != gone for user in rows["user_id"].to_pylist()]))
    bucket.publish(kept, tmp_path)
    assert reader.refresh()
    place = stable_hash(gone) >> 63
    assert asked == [WITHDRAWN_KEY, POINTER_KEY, f"s{place}"]
    assert {choice.source for choice in reader.posters_for(gone, ITEMS).values()} == {"item"}
    assert {choice.source for choice in reader.posters_for(USERS[1], ITEMS).values()} == {"tonight"}


def test_old_sets_are_unmapped_once_nobody_uses_them(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.manifest_refresh.RETIRE_SECONDS", 0.0)
    reader = bucket.reader(tmp_path)
    assert reader._loaded
    maps = [shard.map for shard in reader._loaded.shards.values()]
    table = reader.rows()
    bucket.publish(rows_of(USERS[:9], ITEMS), tmp_path)
    assert reader.refresh()
    reader.refresh()
    assert not any(one.closed for one in maps)
    assert len(table.to_pylist()) == 1200  # whoever still has its rows may read them
    del table
    reader.refresh()
    assert all(one.closed for one in maps)


class Posters:
    """Test double of a store with these posters."""

    bucket = "b"

    def __init__(self, keys: set[str]) -> None:
        self._keys = keys

    def exists(self, key: str) -> bool:
        return key in self._keys

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self._keys if key.startswith(prefix))


@pytest.mark.parametrize("count", [10, 2000])
def test_every_named_image_is_looked_for(count: int, tmp_path: Path) -> None:
    keys = [f"posters/{hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()}.webp" for n in range(count)]
    odd = f"posters/{'ab' * 31}00.webp"  # its hash ends in a zero byte
    named = NamedImages(tmp_path)
    named.add(keys)
    named.add([odd, "elsewhere.webp", *keys[:5]])
    named.check(Posters({*keys, odd, "elsewhere.webp", "posters/stray"}))  # type: ignore[arg-type]
    with pytest.raises(ImagesMissing, match=r"3 images .* nothing was published") as error:
        named.check(Posters({*keys[1:]}))  # type: ignore[arg-type]
    assert set(error.value.keys) == {keys[0], odd, "elsewhere.webp"}
    assert all(key in str(error.value) for key in error.value.keys)
    named.close()
