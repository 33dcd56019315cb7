"""A night whose model draws several pictures at once, on real Postgres and S3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from generator.nightly import picture_batches
from generator.nightly.pictures import decoded, picture_seed
from generator.nightly.plan import Scope
from generator.serving.api import Picture, PictureRequest
from generator.storage.objects import Store
from schemas.settings import Settings
from schemas.tables import Picture as Row
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import build, night, reader

pytestmark = pytest.mark.integration


class Batching(FakePigeon):
    """Test double that draws four pictures at once, and remembers how many each request had."""

    pictures_at_once = 4

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def draw_pictures(
        self, requests: Sequence[PictureRequest], *, deadline_seconds: float | None = None
    ) -> list[Picture]:
        self.sizes.append(len(requests))
        return super().draw_pictures(requests, deadline_seconds=deadline_seconds)


def test_pictures_of_several_tasks_are_one_request_and_each_task_gets_its_own(
    settings: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_batches, "GATHER_SECONDS", 1.0)  # a busy machine's threads come together, too
    build(settings, tmp_path / "art", users=8, targets=3)
    model, alone = Batching(), FakePigeon()
    night(settings, model).run(Scope())
    assert max(model.sizes) == 4
    store = Store(settings.s3)
    with Session(engine) as session:
        rows = list(session.scalars(select(Row)))
    assert sum(model.sizes) == len(rows), "each picture is drawn once"
    for row in rows:
        request = PictureRequest(tuple(row.tokens), picture_seed(model.drawing_version, row.tokens))
        (wanted,) = alone.draw_pictures([request])
        stored = store.get(row.art_key or "")
        assert stored
        assert np.array_equal(decoded(stored.body), wanted.image)
    assert len(reader(settings).rows()) == 48
