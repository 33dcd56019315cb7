"""Users who object to drawn posters, by event or by an operator's hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from generator.nightly.plan import Scope
from generator.storage.objects import Store
from generator.upkeep.erase import erase_users
from schemas.events import CATALOG, Erasure, Objection
from schemas.manifest import WITHDRAWN_KEY
from schemas.settings import Settings
from schemas.tables import Poster, UserObjection
from tests.support import ingest_world
from tests.support.consume_world import consume, query
from tests.support.night_world import build, draw_catalogue, night, reader

pytestmark = pytest.mark.integration
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOMORROW = date(2026, 3, 2)
Pigeon = Callable[..., "subprocess.CompletedProcess[str]"]


def objection(user: str, *, objects: bool, hours: int = 0) -> Objection:
    return Objection(user_id=user, objects=objects, occurred_at=AT + timedelta(hours=hours))


@pytest.fixture
def store(settings: Settings) -> Iterator[Callable[..., object]]:
    """Store events as the consumers do, one batch."""
    with closing(ingest_world.connect(settings.database)) as connection:
        yield lambda *events: ingest_world.store(connection, events)


def state(engine: Engine) -> dict[str, bool]:
    with Session(engine) as session:
        return {row.user_id: row.objects for row in session.scalars(select(UserObjection))}


def test_the_objection_that_occurred_last_counts_in_whatever_order_it_comes(
    store: Callable[..., object], engine: Engine
) -> None:
    store(objection("a", objects=True), objection("b", objects=True), objection("b", objects=False, hours=1))
    assert state(engine) == {"a": True, "b": False}
    store(objection("a", objects=False, hours=2))
    store(objection("a", objects=True, hours=1), objection("b", objects=True, hours=-1))
    assert state(engine) == {"a": False, "b": False}
    store(objection("a", objects=False, hours=2), objection("a", objects=True, hours=3))
    assert state(engine) == {"a": True, "b": False}


def test_an_erasure_takes_the_objection_along_and_a_later_one_stays(
    store: Callable[..., object], engine: Engine
) -> None:
    store(objection("a", objects=True), objection("b", objects=True))
    store(Erasure(user_id="a", occurred_at=datetime.now(UTC)))
    store(objection("a", objects=True))
    assert state(engine) == {"b": True}
    later = Objection(user_id="a", objects=True, occurred_at=datetime.now(UTC) + timedelta(seconds=1))
    store(later)
    assert state(engine) == {"a": True, "b": True}


def test_readers_leave_out_who_objects_at_the_next_step_and_nothing_is_erased(
    settings: Settings, engine: Engine, store: Callable[..., object], tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    live = reader(settings)
    with Session(engine) as session:
        posters = session.scalar(select(func.count()).select_from(Poster))
    store(objection("u0", objects=True), objection("never-drawn-for", objects=True))
    assert erase_users(settings) == "erasure: no open requests"
    live.refresh()
    choice = live.poster_for("u0", "item8")
    assert choice
    assert choice.source == "item"
    assert "u0" in live.withdrawn.user
    stored = Store(settings.s3).get(WITHDRAWN_KEY)
    assert stored
    assert json.loads(stored.body)["user"] == ["u0"], "only those who have posters in some set"
    night(settings, on=TOMORROW).run(Scope())
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(Poster)) == posters
    store(objection("u0", objects=False, hours=1))
    erase_users(settings)
    live.refresh()
    assert live.withdrawn.user == frozenset()


def test_an_operator_objects_for_a_user_and_lifts_it(
    settings: Settings, engine: Engine, pigeon: Pigeon, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings).run(Scope())
    wrong = pigeon("night", "object", "--user", "u0", "--lift", "--reason", "never mind")
    assert wrong.returncode == 2
    assert "user 'u0' does not object" in wrong.stderr
    done = pigeon("night", "object", "--user", "u0", "--reason", "called us")
    assert done.returncode == 0, done.stderr
    assert "user u0 objects; readers show the items' own pictures from their next refresh on" in done.stdout
    assert "already" in pigeon("night", "object", "--user", "u0", "--reason", "called again").stdout
    assert reader(settings).withdrawn.user == {"u0"}
    with Session(engine) as session:
        row = session.get_one(UserObjection, "u0")
        assert (row.objects, (row.reason or "").endswith(": called us")) == (True, True)
    lifted = pigeon("night", "object", "--user", "u0", "--lift", "--reason", "changed their mind")
    assert "no longer objects" in lifted.stdout
    assert reader(settings).withdrawn.user == frozenset()
    assert state(engine) == {"u0": False}


def test_an_items_wish_passes_through_the_import(settings: Settings, pigeon: Pigeon, tmp_path: Path) -> None:
    draw_catalogue(tmp_path, 1)
    file = tmp_path / "items.csv"
    file.write_text('item_id,title,image_uri,attributes\ni1,One,item0.png,"{""drawn_posters"": false}"\n')
    sent = pigeon("catalog", "import", str(file))
    assert sent.returncode == 0, sent.stderr
    consume(settings, [CATALOG])
    assert query(settings, "SELECT attributes FROM items") == [({"drawn_posters": False},)]
