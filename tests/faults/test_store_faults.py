"""Fault 12 on a real store behind a proxy that answers by a script; the model is a test double.

Every operation kind meets errors, delays, cuts and lost answers; then whole nights do, and readers.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.publish import flip
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.outages import OutageRetry, PatientStore
from generator.storage.postgres import connect
from schemas import faultpoints
from schemas.errors import InputError, ServerUnavailable
from schemas.manifest import POINTER_KEY, WITHDRAWN_KEY, Pointer, PosterManifest, Withdrawn
from schemas.manifest_files import JSON
from schemas.settings import Settings
from tests.support.consume_world import ROUNDS
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night, reader, set_user
from tests.support.s3_proxy import Answer, Asked, Operation, S3Proxy, cut, cut_upload, lost, slow, status

pytestmark = [pytest.mark.integration, pytest.mark.faults]

SEED = 12
PATIENCE_SECONDS = 0.5
"""Seconds that a client waits for a byte."""
FAULTS: dict[str, Answer] = {
    "500": status(500, "InternalError"),
    "503": status(503, "SlowDown"),
    "slow": slow(2 * PATIENCE_SECONDS),
    "cut": cut,
    "lost": lost,
}
UPLOAD_FAULTS: dict[str, Answer] = {
    **FAULTS,
    "cut upload": cut_upload,
    "409": status(409, "ConditionalRequestConflict"),
}
WRITES: tuple[Operation, ...] = ("create", "flip", "put")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("generator.storage.outages.FIRST_WAIT_SECONDS", 0.02)
    yield
    faultpoints.handler = None


@pytest.fixture
def proxied(settings: Settings) -> Iterator[tuple[Settings, S3Proxy]]:
    """The test's settings with S3 behind the proxy; a client asks once, the product does the rest."""
    address = make_url(settings.s3.endpoint_url or "")
    assert address.host
    assert address.port
    with S3Proxy(address.host, address.port) as proxy:
        s3 = settings.s3.model_copy(
            update={
                "endpoint_url": f"http://127.0.0.1:{proxy.port}",
                "max_attempts": 1,
                "read_timeout_seconds": PATIENCE_SECONDS,
            }
        )
        yield settings.model_copy(update={"s3": s3, "state_dir": settings.state_dir / f"{proxy.port}"}), proxy


def like_others(settings: Settings, turn: int) -> None:
    """Give u0 another history, so that the next night has one task."""
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        set_user(session, "u0", [f"item{(turn + step) % 8}" for step in range(4)])
    engine.dispose()


def body(name: str, size: int = 40_000) -> bytes:
    """Bytes that do not repeat, so that a torn object is not by chance a whole one."""
    return random.Random(f"{SEED} {name}").randbytes(size)


def _operations(folder: Path) -> dict[Operation, Callable[[Store, str], None]]:
    """What is done under a key whose object, if it is one that is read or changed, is `body("old")`."""
    path = folder / "file"
    path.write_bytes(body("new"))
    sha = hashlib.sha256(body("new")).hexdigest()

    def create(store: Store, key: str) -> None:
        assert store.create_content(key, body("new"), "a/b") in {True, False}
        store.create_file(f"{key}.file", path, "a/b", sha256=sha)

    def flip_pointer(store: Store, key: str) -> None:
        for _ in range(9):  # what `replace_pointer` does: read, and write unless it is there already
            stored = store.get(key)
            assert stored
            if stored.body == body("new") or store.replace(key, body("new"), "a/b", etag=stored.etag):
                return
        raise AssertionError("never")

    def get(store: Store, key: str) -> None:
        stored = store.get(key)
        assert stored
        assert stored.body == body("old")

    def head(store: Store, key: str) -> None:
        assert store.exists(key)
        assert not store.exists(f"{key} that is not there")

    return {
        "create": create,
        "flip": flip_pointer,
        "put": lambda store, key: store.put(key, body("new"), "a/b"),
        "get": get,
        "head": head,
        "list": lambda store, key: _same(list(store.keys(key)), [key]),
        "delete": lambda store, key: store.delete(key),
    }


def _same(found: object, wanted: object) -> None:
    assert found == wanted


@pytest.mark.parametrize("fault", UPLOAD_FAULTS)
def test_each_operation_ends_right_whatever_the_store_answers(
    proxied: tuple[Settings, S3Proxy], settings: Settings, tmp_path: Path, fault: str
) -> None:
    """Fault 12: twice in a row, for each kind of request; what is stored is whole, and stored once."""
    far, proxy = proxied
    direct, store = Store(settings.s3), PatientStore(far.s3, OutageRetry(60.0))
    operations = _operations(tmp_path)
    tried: list[Operation] = [kind for kind in operations if fault in FAULTS or kind in WRITES]
    for kind in tried:
        if kind != "create":
            direct.put(kind, body("old"), "a/b")
        proxy.script(kind, UPLOAD_FAULTS[fault], key=kind, times=2)
        operations[kind](store, kind)
        assert proxy.left() == 0, f"{kind} was not asked often enough"
    stored = {kind: direct.get(kind) for kind in tried}
    for kind in set(tried) & set(WRITES):
        found = stored[kind]
        assert found
        assert found.body == body("new"), kind
    for kind in set(tried) & {"get", "head", "list"}:
        found = stored[kind]
        assert found
        assert found.body == body("old"), kind
    assert stored.get("delete") is None
    whole = direct.get("create.file")
    assert whole
    assert whole.body == body("new")


def test_412_means_compare_and_damage_under_a_content_key_is_replaced(
    proxied: tuple[Settings, S3Proxy], settings: Settings, tmp_path: Path
) -> None:
    """Fault 12: 412 over equal bytes, over other ones, and over a damaged object."""
    far, proxy = proxied
    direct, store = Store(settings.s3), PatientStore(far.s3, OutageRetry(60.0))
    direct.put("equal", body("new"), "a/b")
    assert store.create("equal", body("new"), "a/b") is False
    direct.put("other", body("old"), "a/b")
    with pytest.raises(FileExistsError, match="other"):
        store.create("other", body("new"), "a/b")
    path = tmp_path / "file"
    path.write_bytes(body("new"))
    sha = hashlib.sha256(body("new")).hexdigest()
    for damaged in (body("new")[:-7], b"", body("old")):
        direct.put("content", damaged, "a/b")
        direct.put("file", damaged, "a/b")
        assert store.create_content("content", body("new"), "a/b")
        assert store.create_file("file", path, "a/b", sha256=sha)
        for key in ("content", "file"):
            stored = direct.get(key)
            assert stored
            assert stored.body == body("new")
    assert store.create_file("file", path, "a/b", sha256=sha) is False
    proxy.script("create", status(412, "PreconditionFailed"), key="gone")
    assert store.create("gone", body("new"), "a/b"), "deleted between the two requests: it is put"


def test_a_list_of_many_pages_goes_on_where_it_was_cut(proxied: tuple[Settings, S3Proxy]) -> None:
    """Fault 12: no key is left out and none comes twice."""
    far, proxy = proxied
    store = PatientStore(far.s3, OutageRetry(60.0))
    keys = [f"many/{number:02}" for number in range(11)]
    for key in keys:
        store.put(key, b"x", "a/b")
    asked = store.s3.list_objects_v2

    def few(**arguments: object) -> object:
        return asked(**{**arguments, "MaxKeys": 3})  # type: ignore[arg-type] # boto3's own

    store.s3.list_objects_v2 = few  # type: ignore[assignment, method-assign]
    proxy.on_first(lambda asked: cut if asked.operation == "list" else None)
    found = []
    for key in store.keys("many/"):
        found.append(key)
        if len(found) % 3 == 0:
            proxy.script("list", status(503, "SlowDown"))
    assert found == keys


Picked = Callable[[Asked], Answer | None]


def in_turn(seed: int) -> Picked:
    """Another fault for each request that comes for the first time, in a seeded order."""
    chance = random.Random(seed)

    def pick(asked: Asked) -> Answer:
        names = sorted(UPLOAD_FAULTS if asked.operation in {"create", "flip"} else FAULTS)
        return UPLOAD_FAULTS[chance.choice(names)]

    return pick


@pytest.mark.parametrize("seed", range(SEED, SEED + max(1, ROUNDS // 10)))
def test_a_night_whose_every_first_request_fails_is_published_whole(
    proxied: tuple[Settings, S3Proxy], settings: Settings, tmp_path: Path, seed: int
) -> None:
    """Fault 12: each request for each key fails once; nothing is lost, drawn twice, or half visible."""
    far, proxy = proxied
    build(settings, tmp_path / "art", users=2, targets=2)
    model = FakePigeon()
    one = night(far, model)
    torn: list[str] = []
    done = threading.Event()

    def watch() -> None:
        opened = reader(settings)
        while not done.wait(0.05):
            opened.refresh()
            torn.extend(alarm for alarm in opened.alarms if alarm != "nothing_published")

    watcher = threading.Thread(target=watch)
    watcher.start()

    def handler(reached: str) -> None:
        if reached == "planned":  # the night's own check at the start is not waited out
            proxy.on_first(in_turn(seed))

    faultpoints.handler = handler
    try:
        one.run(Scope())
    finally:
        done.set()
        watcher.join()
    assert torn == []
    kinds = Counter(asked.operation for asked in proxy.asked)
    assert set(kinds) >= {"create", "head", "get"}, "and the pointer is one that is created"
    rows = reader(settings).rows().to_pylist()
    assert len(rows) == 8
    direct = Store(settings.s3)
    for row in rows:
        stored = direct.get(row["image_key"])
        assert stored
        assert hashlib.sha256(stored.body).hexdigest() == row["image_sha256"]
    drawn = [request.tokens for request in model.drawn]
    assert len(drawn) == len(set(drawn))
    assert len(model.answered) == 4
    # The second night replaces the pointer (If-Match) and must find everything that the first one stored.
    proxy.clear()
    like_others(settings, 4)
    for fault in UPLOAD_FAULTS.values():
        proxy.script("flip", fault, key=POINTER_KEY)
    night(far, on=NIGHT.replace(day=2)).run(Scope())
    assert proxy.left() == 0
    current = reader(settings).current
    assert current
    assert current.logical_date == "2026-03-02"


@pytest.mark.parametrize("fault", UPLOAD_FAULTS)
def test_the_pointers_flip_counts_once_whatever_becomes_of_its_answer(
    proxied: tuple[Settings, S3Proxy], settings: Settings, tmp_path: Path, fault: str
) -> None:
    """Fault 12: If-Match and a lost answer; the pointer leads to one of two whole sets at every moment."""
    far, proxy = proxied
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings).run(Scope())
    direct, store = Store(settings.s3), PatientStore(far.s3, OutageRetry(60.0))
    stored = direct.get(POINTER_KEY)
    assert stored
    before = Pointer.parse(stored.body)
    ref = replace(before.current, run_id="later", logical_date="2026-03-02")
    engine = connect(settings.database)
    with lead(engine, "night") as lease:
        proxy.script("flip", UPLOAD_FAULTS[fault], key=POINTER_KEY, times=2)
        proxy.script("get", FAULTS.get(fault, cut), key=POINTER_KEY)
        assert flip(store, Ledger(engine, lease), ref, lease.token)
    engine.dispose()
    stored = direct.get(POINTER_KEY)
    assert stored
    after = Pointer.parse(stored.body)
    assert (after.current, after.previous) == (ref, before.current)


STEPS: tuple[tuple[Operation, str], ...] = (
    ("create", "art/"),
    ("create", "posters/"),
    ("head", "posters/"),
    ("create", "manifests/2026"),
    ("flip", POINTER_KEY),
)


@pytest.mark.parametrize(("operation", "key"), STEPS)
def test_a_store_that_stays_away_at_a_step_ends_the_night_in_words_and_resume_goes_on(
    proxied: tuple[Settings, S3Proxy], settings: Settings, tmp_path: Path, operation: Operation, key: str
) -> None:
    """Fault 12: 503 for longer than night.outage_seconds; readers keep yesterday's set."""
    far, proxy = proxied
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    yesterday = reader(settings).current
    like_others(settings, 4)
    impatient = far.model_copy(update={"night": far.night.model_copy(update={"outage_seconds": 0.3})})
    proxy.script(operation, status(503, "SlowDown"), key=key, times=10**6)
    tomorrow, first = NIGHT.replace(day=2), FakePigeon()
    with pytest.raises(ServerUnavailable, match=rf"S3 \(http://127\.0\.0\.1:{proxy.port}, bucket .*503|SlowDown"):
        night(impatient, first, on=tomorrow).run(Scope())
    assert reader(settings).current == yesterday
    proxy.clear()
    second = FakePigeon()
    night(far, second, on=tomorrow).resume()
    current = reader(settings).current
    assert current
    assert current.logical_date == "2026-03-02"
    assert len(first.answered) + len(second.answered) == 1, "answers are kept"
    assert len(reader(settings).rows()) == 4


def test_a_store_that_refuses_our_keys_mid_night_is_a_setting_and_named(
    proxied: tuple[Settings, S3Proxy], settings: Settings, tmp_path: Path
) -> None:
    """Fault 12: 403 is no outage: it ends the night at once, with the settings to look at."""
    far, proxy = proxied
    build(settings, tmp_path / "art", users=1, targets=1)
    proxy.script("create", status(403, "AccessDenied"), key="art/", times=10**6)
    with pytest.raises(InputError, match=r"AccessDenied; may these keys do this\? Else check PIGEON_S3__ACCESS_KEY_ID"):
        night(far).run(Scope())
    assert Store(settings.s3).get(POINTER_KEY) is None
    proxy.clear()
    night(far).resume()
    assert len(reader(settings).rows()) == 2


def test_a_reader_stays_on_the_last_set_until_the_next_can_be_read_whole(
    proxied: tuple[Settings, S3Proxy], settings: Settings, tmp_path: Path
) -> None:
    """Fault 12: the pointer, a shard and the list of what is withdrawn, each with every fault in turn."""
    far, proxy = proxied
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    Store(settings.s3).put(WITHDRAWN_KEY, Withdrawn().to_json(), JSON)
    alarms: list[str] = []
    opened = PosterManifest.open(
        bucket=far.s3.bucket,
        client=Store(far.s3).s3,
        refresh_seconds=math.inf,
        cache_dir=tmp_path / "cache",
        on_alarm=lambda name, detail: alarms.append(name),
    )
    choice = opened.poster_for("u1", "item9")
    assert choice
    for day, key in enumerate((POINTER_KEY, "manifests/2026", WITHDRAWN_KEY), start=2):
        like_others(settings, day)
        night(settings, on=NIGHT.replace(day=day)).run(Scope())
        was = opened.current
        for name, fault in FAULTS.items():
            alarms.clear()
            proxy.script("get", fault, key=key, times=9)
            assert not opened.refresh(), name
            assert alarms == ["refresh_failed"], name
            assert opened.current == was
            assert opened.poster_for("u1", "item9") == choice
            proxy.clear()
        assert opened.refresh()
        assert opened.current != was
        again = opened.poster_for("u1", "item9")
        assert again
        assert again.poster_id == choice.poster_id, "u1 is carried over"
        choice = again
