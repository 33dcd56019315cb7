"""What a night asks of Triton before it draws; serving is a test double."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.feedback.artifacts import upload
from generator.feedback.ports import AdapterTrainer, RetrainContext, Serving
from generator.feedback.rollout import ensure_drawers
from generator.storage.objects import Store
from schemas.errors import ModelError
from schemas.settings import Settings
from schemas.tables import ModelVersion

pytestmark = pytest.mark.integration


class ServingDouble:
    """Adapters by number: a test double."""

    def __init__(self) -> None:
        self.numbers = {1}
        self.calls: list[str] = []
        self.base: Exception | None = None

    def loaded(self) -> frozenset[int]:
        return frozenset(self.numbers)

    def check_base(self) -> None:
        self.calls.append("check_base")
        if self.base:
            raise self.base

    def install(self, number: int, adapter: Path) -> None:
        self.calls.append(f"install {number}")
        self.numbers.add(number)

    def probe(self, number: int) -> None:
        self.calls.append(f"probe {number}")


@pytest.fixture
def world(settings: Settings, engine: Engine, tmp_path: Path) -> tuple[RetrainContext, ServingDouble, list[str]]:
    """A registry whose champion is adapter 2, and a Triton that has adapter 1 only."""
    serving, echoed, store = ServingDouble(), list[str](), Store(settings.s3)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    key, sha256 = upload(store, "nano-2", adapter)
    with Session(engine) as session, session.begin():
        session.add(ModelVersion(version="nano-1", number=1, state="retired", base_sha256="b", metrics={}))
        session.add(
            ModelVersion(
                version="nano-2",
                number=2,
                state="champion",
                base_sha256="b",
                metrics={},
                adapter_key=key,
                adapter_sha256=sha256,
            )
        )
    own = settings.model_copy(update={"state_dir": tmp_path})
    trainer = cast(AdapterTrainer, None)
    context = RetrainContext(own, engine, store, cast(Serving, serving), trainer, "b", echoed.append)
    return context, serving, echoed


World = tuple[RetrainContext, ServingDouble, Any]
CHAMPION: Sequence[tuple[str, int]] = [("nano-2", 2)]


def test_the_champions_adapter_is_loaded_when_triton_lost_it(world: World) -> None:
    """Fault 11: Triton was restarted without the champion's adapter."""
    context, serving, echoed = world
    ensure_drawers(context, CHAMPION, has_repository=True)
    assert serving.calls == ["check_base", "install 2", "probe 2"]
    assert echoed == ["adapter 2 of nano-2 was not in Triton: loaded"]
    ensure_drawers(context, CHAMPION, has_repository=True)
    assert serving.calls[3:] == ["check_base", "install 2"], "what serves is not drawn with to see"


def test_what_cannot_be_loaded_is_named_with_its_fix(world: World) -> None:
    """Fault 11: a version that Triton does not have and we cannot give it."""
    context, serving, _ = world
    with pytest.raises(ModelError, match=r"adapter 2 of nano-2: `pigeon models load`"):
        ensure_drawers(context, CHAMPION, has_repository=False)
    with pytest.raises(ModelError, match=r"adapter 7 of nano-7: `pigeon models load`"):
        ensure_drawers(context, [("nano-7", 7)], has_repository=True)
    ensure_drawers(context, [("nano-1", 1)], has_repository=False)
    serving.base = ModelError("Triton serves another build")
    with pytest.raises(ModelError, match="another build"):
        ensure_drawers(context, CHAMPION, has_repository=True)
