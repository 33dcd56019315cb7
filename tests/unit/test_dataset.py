"""Data sets from files: windows, splits, what is left out, and the id that the content decides."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from generator.training.catalog.dataset import pictures, shards
from generator.training.catalog.dataset.build import Build, BuildConfig, FileSource
from generator.training.catalog.dataset.erasure import users_of, without_users
from generator.training.catalog.dataset.manifest import SPLITS, DatasetManifest, read_manifest
from generator.training.catalog.dataset.reader import Dataset, WindowIndex
from generator.training.catalog.dataset.windows import EARLY_SHARE, split_of
from schemas.errors import InputError, Refused, ServerUnavailable
from schemas.fetch import Fetcher, HostUnavailable
from schemas.settings import Settings
from tests.support.shop import write_lines, write_shop

CONFIG = BuildConfig("tiny", "0" * 16, image_size=32, history=5, min_windows=20)


def build(
    folder: Path, catalog: Path, clicks: Path | None, config: BuildConfig = CONFIG, out: str = "set", **source: object
) -> DatasetManifest:
    fields: dict[str, object] = {"clicked": clicks, "given": None, "positive_kinds": ("click",), "history": 5, **source}
    made = Build(
        FileSource(catalog, **fields),  # type: ignore[arg-type]
        config,
        Fetcher(Settings(), files=True),
        folder / "work",
        lambda *_: None,
    )
    return made.run(folder / out)


def rows(folder: Path, split: str) -> list[dict[str, object]]:
    return [row for path in sorted((folder / "windows").glob(f"{split}-*")) for row in shards.read_rows(path)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("shop")
    return folder, *write_shop(folder)


def test_a_window_is_five_clicks_and_the_next_one_in_time_order(shop: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, catalog, clicks = shop
    build(tmp_path, catalog, clicks, replace(CONFIG, split_by="users"))
    by_user: dict[str, list[str]] = defaultdict(list)
    for row in sorted(map(json.loads, clicks.read_text().splitlines()), key=lambda r: r["occurred_at"]):
        by_user[row["user_id"]].append(row["item_id"])
    wanted = {
        (user, tuple(items[n : n + 5]), items[n + 5]) for user, items in by_user.items() for n in range(len(items) - 5)
    }
    found = [
        (r["user_id"], tuple(r["history"]), r["reference"]) for split in SPLITS for r in rows(tmp_path / "set", split)
    ]  # type: ignore[arg-type]
    assert set(found) == wanted
    assert len(found) == len(wanted)


def test_no_user_is_in_two_splits_and_training_windows_end_before_all_held_out_ones(
    shop: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    manifest = build(tmp_path, *shop[1:])
    found = {split: rows(tmp_path / "set", split) for split in SPLITS}
    for split in SPLITS:
        assert {split_of(str(row["user_id"])) for row in found[split]} == {split}
    last_trained = max(row["occurred_at"] for row in found["train"])  # type: ignore[type-var]
    assert all(last_trained < row["occurred_at"] for split in ("validation", "test") for row in found[split])  # type: ignore[operator]
    kept = sum(len(part) for part in found.values())
    assert kept + next(n for reason, n in manifest.left_out.items() if "between" in reason) == 60 * 7
    assert len(found["train"]) <= EARLY_SHARE * 60 * 7


def test_equal_content_has_one_id_and_an_other_click_another(shop: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, catalog, clicks = shop
    first = build(tmp_path, catalog, clicks)
    turned = tmp_path / "clicks.jsonl"
    turned.write_text("".join(reversed(clicks.read_text().splitlines(keepends=True))))
    again = build(tmp_path, catalog, turned, out="again")
    assert again.dataset_id == first.dataset_id
    assert read_manifest(tmp_path / "again") == again
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(clicks.read_text().splitlines(keepends=True)[1:]))
    assert build(tmp_path, catalog, fewer, out="fewer").dataset_id != first.dataset_id
    with pytest.raises(InputError, match="holds another data set"):
        build(tmp_path, catalog, fewer)


def test_a_picture_is_kept_once_however_many_items_have_it(shop: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, catalog, clicks = shop
    same = [
        {**json.loads(line), "image_uri": str(folder / "posters/i0.png")} for line in catalog.read_text().splitlines()
    ]
    manifest = build(tmp_path, write_lines(tmp_path / "catalog.jsonl", same), clicks)
    assert (manifest.counts["items"], manifest.counts["images"]) == (24, 1)
    ((name, image),) = Dataset.open(tmp_path / "set").images()
    assert image.shape == (32, 32, 3)
    assert name == pictures.image_hash(image)


def test_what_is_left_out_is_counted_with_its_reason(shop: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, catalog, clicks = shop
    items = [json.loads(line) for line in catalog.read_text().splitlines()]
    for item in items:
        item["image_uri"] = str(folder / item["image_uri"])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items[0]["image_uri"], items[1]["image_uri"] = None, str(tmp_path / "broken.png")
    events = [json.loads(line) for line in clicks.read_text().splitlines()]
    more = [
        {**events[0], "kind": "view"},
        {**events[1], "occurred_at": "2026-12-01T00:00:00Z"},
        {**events[2], "item_id": "gone"},
        {**events[3], "occurred_at": "yesterday"},
        {"user_id": "late", "item_id": "i5", "kind": "click", "occurred_at": "2026-11-02T00:00:00Z"},
    ]
    manifest = build(
        tmp_path, write_lines(tmp_path / "catalog.jsonl", items), write_lines(tmp_path / "clicks.jsonl", events + more)
    )
    counted = {
        "clicks: kind 'view' enters no history (consumer.positive_kinds)": 1,
        "clicks: repeated, of one user with one item": 1,
        "clicks: item is not in the catalogue": 1,
        "clicks: bad occurred_at": 1,
        "items: without a picture": 1,
        "users: too few interactions for a window": 1,
    }
    assert counted.items() <= manifest.left_out.items()
    assert [n for reason, n in manifest.left_out.items() if reason.startswith("items: picture")] == [1]
    assert "| clicks: bad occurred_at | 1 |" in (tmp_path / "set/card.md").read_text()
    assert (tmp_path / "set/contact-sheet.webp").stat().st_size > 1_000


def test_a_killed_build_goes_on_and_asks_again_for_no_picture_that_it_has(
    shop: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(tmp_path, *shop[1:], out="whole")
    asked: list[str] = []
    fetch = Fetcher.fetch

    def counted(self: Fetcher, uri: str, known: object = None) -> object:
        asked.append(uri)
        if len(asked) > 16 and len(asked) <= 24:
            raise HostUnavailable("shop", "is away")
        return fetch(self, uri)

    monkeypatch.setattr(Fetcher, "fetch", counted)
    monkeypatch.setattr(pictures, "PAGE", 8)
    with pytest.raises(ServerUnavailable, match="8 of 24 pictures"):
        build(tmp_path, *shop[1:])
    assert not (tmp_path / "set").exists()
    resumed = build(tmp_path, *shop[1:])
    assert len(asked) == 24 + 8
    assert resumed.dataset_id == whole.dataset_id
    assert not list((tmp_path / "work").iterdir())


def test_a_source_that_changed_since_is_read_from_its_start(
    shop: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, catalog, clicks = shop
    changing = tmp_path / "clicks.jsonl"
    changing.write_text(clicks.read_text())
    monkeypatch.setattr(pictures, "fetch_pictures", _dies)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, catalog, changing)
    monkeypatch.undo()
    changing.write_text("".join(clicks.read_text().splitlines(keepends=True)[12:]))
    assert (
        build(tmp_path, catalog, changing).counts["train_users"]
        < build(tmp_path, *shop[1:], out="all").counts["train_users"] + 1
    )


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_erased_user_leaves_a_new_version_and_no_byte_in_the_old_place(
    shop: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    old = build(tmp_path, *shop[1:])
    folder = tmp_path / "set"
    user = str(rows(folder, "train")[0]["user_id"])
    new = without_users(folder, [user])
    assert new.dataset_id != old.dataset_id
    assert new.supersedes == old.dataset_id
    assert users_of(folder, [user]) == set()
    assert Dataset.open(folder).manifest == new
    assert user.encode() not in b"".join(path.read_bytes() for path in folder.rglob("*.parquet"))
    left = build(tmp_path, *shop[1:], out="left", erased=(user,))
    assert {str(r["user_id"]) for r in rows(tmp_path / "left", "train")} == {
        str(r["user_id"]) for r in rows(folder, "train")
    }
    assert left.counts["train_users"] == new.counts["train_users"] == old.counts["train_users"] - 1


def test_windows_may_be_given_with_codes_to_be_learned(shop: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, catalog, _ = shop
    given = [
        {
            "user_id": f"g{n}",
            "occurred_at": "2026-11-01T00:00:00Z",
            "history": [f"i{(n + k) % 24}" for k in range(5)],
            "reference": f"i{n % 24}",
            "target_codes": [n % 7, 3],
            "split": ("train", "validation", "test")[max(0, n - 27)],
        }
        for n in range(30)
    ]
    build(tmp_path, catalog, None, given=write_lines(tmp_path / "windows.jsonl", given))
    index = WindowIndex(Dataset.open(tmp_path / "set"), "train", tmp_path / "cache")
    assert len(index) == 28
    assert [index.target(row) for row in (0, 8)] == [[0, 3], [1, 3]]
    numbers = Dataset.open(tmp_path / "set").numbers
    assert index.rows[1].tolist() == [*(numbers[f"i{k}"] for k in range(1, 6)), numbers["i1"], -1]
    assert isinstance(index.rows, np.memmap)


def test_bad_input_is_one_line_that_names_it(shop: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, catalog, clicks = shop
    away = [{**json.loads(line), "image_uri": "nowhere.png"} for line in catalog.read_text().splitlines()]
    with pytest.raises(InputError, match="no pictures"):
        build(tmp_path, write_lines(tmp_path / "away.jsonl", away), clicks)
    with pytest.raises(Refused, match=r"too few windows of 60 users and 24 items.*--min-windows 1000"):
        build(tmp_path, catalog, clicks, replace(CONFIG, min_windows=1000))
    with pytest.raises(InputError, match=r"line 1: item_id: Field required"):
        build(tmp_path, write_lines(tmp_path / "bad.jsonl", [{"title": "x"}]), clicks)
    with pytest.raises(InputError, match=r"catalog\.xlsx"):
        build(tmp_path, Path(tmp_path / "catalog.xlsx"), clicks)
    build(tmp_path, catalog, clicks)
    image = next((tmp_path / "set/images").iterdir())
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="was changed after the build"):
        Dataset.open(tmp_path / "set")
    manifest = tmp_path / "set/dataset.json"
    manifest.write_text(
        manifest.read_text().replace('"history":5', '"history": 4').replace('"history": 5', '"history": 4')
    )
    with pytest.raises(InputError, match="was changed after the build"):
        read_manifest(tmp_path / "set")


def test_csv_and_parquet_give_the_same_data_set_as_json_lines(shop: tuple[Path, Path, Path], tmp_path: Path) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, catalog, clicks = shop
    events = [json.loads(line) for line in clicks.read_text().splitlines()]
    table = pa.Table.from_pylist([{**e, "occurred_at": datetime.fromisoformat(e["occurred_at"])} for e in events])
    pq.write_table(table, tmp_path / "clicks.parquet")
    items = [json.loads(line) for line in catalog.read_text().splitlines()]
    with (folder / "catalog.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["item_id", "title", "image_uri"])
        writer.writeheader()
        writer.writerows(items)
    found = build(tmp_path, folder / "catalog.csv", tmp_path / "clicks.parquet")
    assert found.dataset_id == build(tmp_path, catalog, clicks, out="lines").dataset_id
