"""What the night remembers of catalogue pictures, on real Postgres and S3.

Their host is a web server of the tests' own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from generator.nightly.image_cache import ImageCache
from generator.nightly.image_hosts import HostOutage
from generator.nightly.images import CatalogImages, ImageAway, Probe
from generator.storage.objects import Store
from schemas.images import ImageProblem, decode
from schemas.settings import Settings
from schemas.tables import CatalogImage, Item
from tests.support.picture_host import PictureHost, picture

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def host() -> Iterator[PictureHost]:
    with PictureHost() as made:
        made.pictures = {f"/{number}.png": picture(number) for number in range(6)}
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.image_hosts.FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr("generator.nightly.image_hosts.LONGEST_WAIT_SECONDS", 0.2)


def options(settings: Settings, folder: Path, *, outage: float = 0.5, **images: Any) -> Settings:
    data = settings.model_dump()
    data["state_dir"] = folder
    data["night"] |= {"outage_seconds": outage, "image_timeout_seconds": 5.0}
    data["images"] |= {"allowed_networks": ("127.0.0.0/8",), "fresh_seconds": 0.0, "attempts": 1, **images}
    return Settings.model_validate(data)


@pytest.fixture
def made(settings: Settings, engine: Engine, tmp_path: Path) -> Iterator[CatalogImages]:
    images = CatalogImages(engine, options(settings, tmp_path))
    yield images
    images.close()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def rows(engine: Engine) -> dict[str, CatalogImage]:
    with Session(engine, expire_on_commit=False) as session:
        return {row.uri: row for row in session.scalars(select(CatalogImage))}


def backdate(engine: Engine) -> None:
    """Everything known was learned long ago."""
    with Session(engine) as session, session.begin():
        session.execute(update(CatalogImage).values(changed_at=LONG_AGO, checked_at=LONG_AGO))


def test_a_second_look_downloads_nothing_and_says_what_changed(
    made: CatalogImages, host: PictureHost, engine: Engine
) -> None:
    uris = [host.url(f"/{number}.png") for number in range(3)]
    first = made.probe_all([*uris, *uris, host.url("/none.png")])
    assert first == {
        **{uri: Probe(sha(picture(number)), None) for number, uri in enumerate(uris)},
        host.url("/none.png"): Probe(None, "there is no such picture (answer 404)"),
    }
    assert set(made.changed_since(LONG_AGO)) == set(first)
    backdate(engine)
    host.pictures["/2.png"] = picture(9)
    second = made.probe_all(first)
    assert host.unchanged == 2
    assert second[uris[2]].sha256 == sha(picture(9))
    assert {uri for uri in uris if second[uri] == first[uri]} == set(uris[:2])
    assert list(made.changed_since(LONG_AGO)) == [uris[2]]
    assert made.outages() == []


def test_a_host_without_tags_costs_a_download_but_is_no_change(
    made: CatalogImages, host: PictureHost, engine: Engine
) -> None:
    host.etags = False
    first = made.probe(host.url("/1.png"))
    backdate(engine)
    assert made.probe(host.url("/1.png")) == first
    assert list(made.changed_since(LONG_AGO)) == []


def test_what_was_looked_at_lately_is_not_asked_again_but_problems_are(
    settings: Settings, host: PictureHost, engine: Engine, tmp_path: Path
) -> None:
    made = CatalogImages(engine, options(settings, tmp_path, fresh_seconds=3600.0))
    uris = [host.url("/1.png"), host.url("/none.png")]
    made.probe_all(uris)
    host.pictures["/none.png"] = picture(7)
    assert made.probe_all(uris)[uris[1]] == Probe(sha(picture(7)), None)
    assert (host.asked["/1.png"], host.asked["/none.png"]) == (1, 2)
    backdate(engine)
    made.probe_all(uris)
    assert host.asked["/1.png"] == 2
    made.close()


def test_an_outage_takes_pictures_as_they_were_seen_last(
    made: CatalogImages, host: PictureHost, engine: Engine
) -> None:
    uris = [*(host.url(f"/{number}.png") for number in range(6)), host.url("/none.png")]
    first = made.probe_all(uris)
    before = {uri: (row.sha256, row.problem, row.checked_at) for uri, row in rows(engine).items()}
    host.down = True
    assert made.probe_all(uris) == first
    assert {uri: (row.sha256, row.problem, row.checked_at) for uri, row in rows(engine).items()} == before
    (outage,) = made.outages()
    assert (outage.host, outage.known, outage.unseen) == (f"127.0.0.1:{host.port}", 7, 0)
    assert "503" in outage.reason
    made.check_outages()  # nothing is missing


def test_a_host_that_is_away_is_not_asked_for_each_picture(
    made: CatalogImages, host: PictureHost, engine: Engine
) -> None:
    host.pictures = {f"/{number}.png": picture(number) for number in range(60)}
    uris = [host.url(path) for path in host.pictures]
    first = made.probe_all(uris)
    host.asked.clear()
    host.down = True
    assert made.probe_all(uris) == first
    assert sum(host.asked.values()) <= 16
    host.down = False


def test_pictures_never_seen_are_waited_for_and_then_told(
    made: CatalogImages, host: PictureHost, engine: Engine
) -> None:
    known = made.probe(host.url("/0.png"))
    host.down = True
    back = threading.Timer(0.2, lambda: setattr(host, "down", False))
    back.start()
    assert made.probe(host.url("/1.png")) == Probe(sha(picture(1)), None)
    assert made.outages() == []
    host.down = True
    found = made.probe_all([host.url(f"/{number}.png") for number in range(6)])
    assert found[host.url("/0.png")] == known
    missing = [probe for probe in found.values() if probe.away]
    assert len(missing) == 4
    assert all(probe.sha256 is None and f"127.0.0.1:{host.port}" in str(probe.problem) for probe in missing)
    assert host.url("/5.png") not in rows(engine), "an outage is nothing to remember of a picture"
    with pytest.raises(HostOutage, match=rf"4 of 8 pictures .* 127\.0\.0\.1:{host.port}: 4 pictures \(answers 503\)"):
        made.check_outages()
    host.down = False


def test_an_outage_is_waited_out_once(made: CatalogImages, host: PictureHost) -> None:
    host.down = True
    made.probe(host.url("/0.png"))
    host.asked.clear()
    for number in range(1, 6):
        assert made.probe(host.url(f"/{number}.png")).away
    assert not host.asked


def test_one_address_in_trouble_is_no_outage_of_its_host(
    made: CatalogImages, host: PictureHost, engine: Engine
) -> None:
    made.probe(host.url("/0.png"))
    with ThreadPoolExecutor(1) as pool:
        stop = threading.Event()

        def others() -> None:
            while not stop.wait(0.01):
                made.probe(host.url("/0.png"))

        asking = pool.submit(others)
        found = made.probe(host.url("/status/500"))
        stop.set()
        asking.result()
    assert found.sha256 is None
    assert not found.away
    assert "answers 500" in str(found.problem)
    assert host.url("/status/500") not in rows(engine)
    made.check_outages()


def test_one_dead_host_of_one_picture_ends_no_night(made: CatalogImages, host: PictureHost) -> None:
    found = made.probe_all([host.url("/0.png"), "http://127.0.0.9:1/dead.png"])
    assert found["http://127.0.0.9:1/dead.png"].away
    assert found[host.url("/0.png")].sha256
    made.check_outages()


def test_a_request_to_stop_ends_the_wait(settings: Settings, host: PictureHost, engine: Engine, tmp_path: Path) -> None:
    stopping = threading.Event()
    made = CatalogImages(engine, options(settings, tmp_path, outage=600.0), stopping=stopping)
    host.down = True
    threading.Timer(0.2, stopping.set).start()
    began = time.monotonic()
    assert made.probe(host.url("/0.png")).away
    assert time.monotonic() - began < 120
    made.close()


NASTY = [
    "",
    "\x01",
    "no scheme at all",
    "http://",
    "http://a b/",
    "http://127.0.0.1:99999/",
    "s3://",
    "s3://other-bucket/a.png",
    "file:///dev/zero",
    "file:///proc/self/mem",
    "data:image/png;base64," + "A" * 9000,
    "http://169.254.169.254/latest",
    "http://" + "x" * 5000,
    "ünïcode://x",
]


def test_nothing_that_one_address_is_takes_the_others_along(
    made: CatalogImages, host: PictureHost, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(picture()[:100])
    nasty = [*NASTY, f"file://{tmp_path}/broken.png", f"file://{tmp_path}", host.url("/cut"), host.url("/drip-headers")]
    found = made.probe_all([*nasty, host.url("/0.png")])
    assert found.pop(host.url("/0.png")).sha256 == sha(picture(0))
    assert all(probe.sha256 is None and probe.problem for probe in found.values())
    assert made.probe_all(nasty).keys() == set(nasty)  # nor does what was stored of them


def test_a_setting_that_forbids_an_address_holds_for_known_pictures_too(
    settings: Settings, made: CatalogImages, host: PictureHost, engine: Engine, tmp_path: Path
) -> None:
    made.probe(host.url("/0.png"))
    strict = CatalogImages(engine, options(settings, tmp_path, allowed_hosts=("img.example",), fresh_seconds=3600.0))
    assert "images.allowed_hosts" in str(strict.probe(host.url("/0.png")).problem)
    assert made.probe(host.url("/0.png")).sha256
    strict.close()


def test_objects_are_read_from_our_bucket_and_from_those_that_are_listed(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    store = Store(settings.s3)
    store.create(f"catalog/{sha(picture())}.png", picture(), "image/png")
    store.create("art/ä b+c?.png", picture(1), "image/png")
    other = f"{settings.s3.bucket}-other"
    store.s3.create_bucket(Bucket=other)
    store.s3.put_object(Bucket=other, Key="x.png", Body=picture(2))
    bucket = settings.s3.bucket
    uris = [
        f"s3://{bucket}/catalog/{sha(picture())}.png",
        f"s3://{bucket}/art/ä b+c?.png",
        f"s3://{bucket}/none.png",
        f"s3://{other}/x.png",
        "s3://no-such-bucket-at-all/x.png",
    ]
    made = CatalogImages(engine, options(settings, tmp_path))
    found = made.probe_all(uris)
    assert [found[uri].sha256 for uri in uris] == [sha(picture()), sha(picture(1)), None, None, None]
    assert "no such picture" in str(found[uris[2]].problem)
    assert "images.allowed_buckets" in str(found[uris[3]].problem)
    asked = made.asked
    assert made.probe(uris[0]).sha256
    assert made.asked == asked, "an address that names its content cannot change"
    assert made.probe(uris[1]).sha256 == sha(picture(1))
    store.put("art/ä b+c?.png", picture(3), "image/png")
    assert made.probe(uris[1]).sha256 == sha(picture(3))
    made.close()
    listed = CatalogImages(engine, options(settings, tmp_path, allowed_buckets=("*",)))
    assert listed.probe(uris[3]).sha256 == sha(picture(2))
    assert "no such picture" in str(listed.probe(uris[4]).problem)
    listed.close()
    wrong = options(settings, tmp_path)
    wrong = wrong.model_copy(update={"s3": wrong.s3.model_copy(update={"access_key_id": "nobody"})})
    refused = CatalogImages(engine, wrong)
    found = refused.probe_all(uris[1:3])
    assert found[uris[1]].sha256 == sha(picture(3)), "keys that are refused are no property of a picture"
    refused.close()
    store.s3.close()


def test_pixels_come_from_the_disk_then_from_the_host(
    made: CatalogImages, host: PictureHost, tmp_path: Path, settings: Settings, engine: Engine
) -> None:
    uri = host.url("/1.png")
    known = made.probe(uri).sha256
    assert known
    host.down = True
    assert (made.pixels(uri, known) == decode(picture(1))).all()
    bare = CatalogImages(engine, options(settings, tmp_path / "elsewhere"))
    with pytest.raises(ImageAway, match=rf"away: 127\.0\.0\.1:{host.port}: answers 503"):
        bare.pixels(uri, known)
    threading.Timer(0.2, lambda: setattr(host, "down", False)).start()
    patient = CatalogImages(engine, options(settings, tmp_path / "patient", outage=60.0))
    assert (patient.pixels(uri, known) == decode(picture(1))).all()
    host.pictures["/1.png"] = picture(2)
    other = CatalogImages(engine, options(settings, tmp_path / "other"))
    with pytest.raises(ImageProblem, match="changed since the night was planned"):
        other.pixels(uri, known)
    for images in (bare, patient, other):
        images.close()


def test_blank_pictures_are_named(made: CatalogImages, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "blank.png")
    uri = f"file://{tmp_path}/blank.png"
    assert made.probe(uri).sha256, "usable, but counted"
    assert made.blank == {uri}


def test_addresses_that_no_item_has_are_forgotten(made: CatalogImages, host: PictureHost, engine: Engine) -> None:
    made.probe_all([host.url("/0.png"), host.url("/1.png")])
    assert made.drop_unlisted(3600.0) == 0
    backdate(engine)
    with Session(engine) as session, session.begin():
        session.add(Item(item_id="i", title="t", image_uri=host.url("/0.png")))
    assert made.drop_unlisted(3600.0) == 1
    assert list(rows(engine)) == [host.url("/0.png")]


WORKER = """
import sys
from generator.nightly.images import CatalogImages
from generator.storage.postgres import connect
from schemas.settings import load_settings
settings = load_settings()
engine = connect(settings.database)
images = CatalogImages(engine, settings)
found = images.probe_all(sys.argv[1:])
assert all(probe.sha256 for probe in found.values()), found
images.close()
engine.dispose()
"""


def test_several_processes_and_threads_may_look_at_once(
    settings: Settings, host: PictureHost, engine: Engine, tmp_path: Path
) -> None:
    host.pictures = {f"/{number}.png": picture(number) for number in range(40)}
    uris = [host.url(path) for path in host.pictures]
    shared = options(settings, tmp_path)
    environment = {
        **os.environ,
        "PIGEON_STATE_DIR": str(tmp_path),
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
        "PIGEON_IMAGES__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *uris], env=environment, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    made = CatalogImages(engine, shared)
    with ThreadPoolExecutor(4) as pool:
        told = [pool.submit(worker.communicate, timeout=120) for worker in workers]
        found = list(pool.map(made.probe_all, [uris] * 2))
        for worker, words in zip(workers, told, strict=True):
            assert words.result()[1] == ""
            assert worker.returncode == 0
    assert found[0] == found[1]
    assert {uri: row.sha256 for uri, row in rows(engine).items()} == {uri: one.sha256 for uri, one in found[0].items()}
    made.close()


def test_the_cache_keeps_what_was_used_last_within_its_limit(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", limit_bytes=20_000)
    files = [bytes([number]) * 1000 for number in range(40)]
    (tmp_path / "cache").mkdir()
    draft = tmp_path / "cache" / ".dead.1.1"
    draft.touch()
    os.utime(draft, (1, 1))
    for number, data in enumerate(files):
        cache.put(sha(data), data)
        os.utime(tmp_path / "cache" / sha(data), (1000 + number, 1000 + number))
        assert cache.get(sha(files[0])) == files[0], "used all the time, so it stays"
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 21_000
    assert {sha(files[0]), *(sha(data) for data in files[-10:])} <= kept
    assert not draft.exists()
    damaged = tmp_path / "cache" / sha(files[-1])
    damaged.write_bytes(b"no")
    assert cache.get(sha(files[-1])) is None
    assert not damaged.exists()


def test_a_cache_that_cannot_be_written_remembers_nothing_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = ImageCache(tmp_path / "file" / "cache", limit_bytes=1000)
    for number in range(3):
        cache.put(sha(bytes([number])), bytes([number]))
    assert cache.get(sha(bytes([0]))) is None
    assert len(caplog.records) == 1


def test_dates_of_changes_are_the_databases(made: CatalogImages, host: PictureHost, engine: Engine) -> None:
    made.probe(host.url("/0.png"))
    (row,) = rows(engine).values()
    assert abs(row.changed_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert row.changed_at == row.checked_at
