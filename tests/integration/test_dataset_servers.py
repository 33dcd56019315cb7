"""A data set from Postgres into S3, and what an erasure leaves of it, on real servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from subprocess import CompletedProcess
from uuid import uuid4

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from consumers.partitions import make
from generator.storage.objects import Store
from generator.training.catalog.dataset.reader import Dataset
from generator.training.catalog.dataset.storage import PREFIX, fetch, stored_ids
from schemas.settings import Settings
from schemas.tables import Erasure, Interaction, Item
from tests.support.shop import write_shop

pytestmark = pytest.mark.integration


def fill(engine: Engine, folder: Path) -> None:
    """The small shop as rows of Postgres."""
    catalog, clicks = (list(map(json.loads, path.read_text().splitlines())) for path in write_shop(folder))
    with Session(engine) as session, session.begin():
        make(session.connection().connection.cursor(), [date(2026, 11, 1)])
        session.execute(
            insert(Item),
            [
                {"item_id": i["item_id"], "title": i["title"], "image_uri": str(folder / i["image_uri"])}
                for i in catalog
            ],
        )
        session.execute(
            insert(Interaction),
            [
                {**row, "event_id": uuid4(), "occurred_at": datetime.fromisoformat(row["occurred_at"]), "context": {}}
                for row in clicks
            ],
        )


def users(dataset: Dataset) -> set[str]:
    return {window.user_id for split in ("train", "validation", "test") for window in dataset.windows(split)}  # type: ignore[arg-type]


def test_a_data_set_goes_from_postgres_to_s3_and_an_erasure_replaces_it(
    settings: Settings, engine: Engine, pigeon: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    fill(engine, tmp_path)
    built = pigeon("dataset", "build", "--no-redraw", "--min-windows", "20", timeout=300)
    assert built.returncode == 0, built.stderr
    store = Store(settings.s3)
    (old,) = stored_ids(store)
    assert f"Data set {old}" in built.stdout
    dataset = Dataset.open(fetch(store, old[:8], tmp_path / "fetched"))
    assert pigeon("dataset", "show", old[:8]).stdout.startswith(f"# Data set {old}")
    user = sorted(window.user_id for window in dataset.windows("train"))[0]
    learned = settings.state_dir / "learned"
    learned.mkdir()
    (learned / "alignment.json").write_text(json.dumps({"dataset": old}))

    with Session(engine) as session, session.begin():
        session.add(Erasure(user_id=user, requested_at=datetime.now(UTC), proof={}))
    named = pigeon("dataset", "erase", "--dry-run")
    assert "1 erased user(s) in it" in named.stdout
    assert list(stored_ids(store)) == [old]
    erased = pigeon("dataset", "erase")
    assert erased.returncode == 0, erased.stderr
    assert f"training {learned} learned from {old[:12]}" in erased.stdout
    (new,) = stored_ids(store)
    assert new != old
    assert not list(store.keys(f"{PREFIX}{old}/"))
    assert users(Dataset.open(fetch(store, new, tmp_path / "fetched"))) == users(dataset) - {user}
    assert "erased" not in pigeon("dataset", "erase").stdout

    again = pigeon(
        "dataset", "build", "--no-redraw", "--min-windows", "20", "--out", str(tmp_path / "again"), timeout=300
    )
    assert again.returncode == 0, again.stderr
    assert users(Dataset.open(tmp_path / "again")) == users(dataset) - {user}
