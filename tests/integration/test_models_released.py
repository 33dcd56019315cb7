"""A model repository goes to S3 once and from there, verified, to the hosts of two real Tritons."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.local import ports
from deploy.local.stack import Stack
from deploy.local.state import Secrets
from generator.serving import release
from generator.serving.api import AnswerRequest, PictureRequest
from generator.serving.client import TritonPigeon
from generator.serving.pull import pull
from generator.serving.repository import check_repository, file_hash, read_manifest
from generator.storage.objects import Store, Stored
from schemas.errors import LockHeld, ModelError
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings, load_settings
from tests.support.tiny_releases import add_adapter, rename_build
from tests.support.tiny_serving import tiny_build

# The first run exports the tiny model, which takes minutes where the cores are busy.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]

PICTURE = PictureRequest((1, 2, 3), 7)
REQUEST = AnswerRequest(
    "task",
    PromptSnapshot(
        history_titles=("w1",), history_tokens=((0, 1),), title="w2", description="w3", reference_tokens=(0, 1)
    ),
    (0.0, 0.5),
    (0.0, 1.0),
    5,
    1,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoint, and its repository in `models`."""
    folder = tmp_path_factory.mktemp("original")
    tiny_build(folder)
    return folder


@pytest.fixture
def built(original: Path, tmp_path: Path) -> Path:
    """A copy of the repository, on the host that builds."""
    return Path(shutil.copytree(original / "models", tmp_path / "builder" / "models"))


class CountingStore(Store):
    """The real bucket; counts the parts that are read, and breaks off after `left` of them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.s3)
        self.parts: list[str] = []
        self.left = 10**9

    def get(self, key: str, *, bucket: str | None = None) -> Stored | None:
        if key.startswith(release.PARTS):
            if not self.left:
                raise ConnectionError("the host lost its power")
            self.left -= 1
            self.parts.append(key)
        return super().get(key, bucket=bucket)


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in folder.rglob("*") if path.is_file()}


def test_a_release_is_sent_once_and_every_host_has_the_same_bytes(
    settings: Settings, built: Path, original: Path, tmp_path: Path
) -> None:
    store = CountingStore(settings)
    made, sent = release.push(store, built, "nano")
    assert sent == sum({part.sha256: part.bytes for one in made.files.values() for part in one.parts}.values())
    assert release.push(store, built, "nano") == (made, 0)
    host = tmp_path / "host" / "models"
    pulled = pull(store, host, "nano")
    assert files(host) == files(built)
    assert pulled.release == made
    assert not (again := pull(store, host, "nano")).changed
    assert again.fetched_bytes == 0
    with pytest.raises(ModelError, match="is of preset nano, the settings say lavit-7b"):
        pull(store, tmp_path / "other", "lavit-7b")
    # With an adapter more only its folder comes, and what serves is left as it is.
    add_adapter(built, original / "checkpoint", 2, tmp_path / "two")
    second, _ = release.push(store, built, "nano")
    assert second.adapters == (1, 2)
    before = {path: path.stat().st_ino for path in host.rglob("*") if path.is_file()}
    pulled = pull(store, host, "nano")
    assert 0 < pulled.fetched_bytes < sent / 10
    assert files(host) == files(built)
    assert {path: path.stat().st_ino for path in before} == before
    # An earlier release is there by its hash.
    assert pull(store, host, "nano", made.sha256).dropped_adapters == (2,)
    assert "personalizer/2/adapter.npz" not in files(host)


def test_a_pull_that_broke_off_goes_on_and_what_is_damaged_is_refused(
    settings: Settings, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "PART_BYTES", 20_000)
    store = CountingStore(settings)
    made, _ = release.push(store, built, "nano")
    host = tmp_path / "host" / "models"
    every = sum(len(file.parts) for file in made.files.values())
    assert max(len(file.parts) for file in made.files.values()) > 3
    store.left = every // 2
    with pytest.raises(ConnectionError):
        pull(store, host, "nano")
    assert not host.exists()
    # What a pull of another release has left would be a version of a model for Triton.
    stale = host.with_name("models.pulling") / "personalizer" / "7"
    stale.mkdir(parents=True)
    (stale / "adapter.npz").write_bytes(b"of another release")
    # A part that was half written counts as not there.
    torn = next(iter(sorted(host.with_name("models.pulling").rglob("*.part"))), None)
    if torn is not None:
        torn.write_bytes(torn.read_bytes() + b"half a part")
    store.left = 10**9
    broken = made.files["unet/1/model.onnx"].parts[-1]
    body = store.get(broken.key)
    assert body
    store.put(broken.key, body.body[:-1] + b"x", release.BYTES)
    with pytest.raises(ModelError, match=r"unet/1/model.onnx: .* holds other bytes than its name says; .*--again"):
        pull(store, host, "nano")
    assert not host.exists()
    store.delete(broken.key)
    with pytest.raises(ModelError, match=r"unet/1/model.onnx: no s3://"):
        pull(store, host, "nano")
    assert release.push(store, built, "nano") == (made, broken.bytes)
    store.parts.clear()
    pull(store, host, "nano")
    assert len(store.parts) < every // 4, "what was there was not fetched again"
    assert files(host) == files(built)
    assert not (host / "personalizer" / "7").exists()
    check_repository(host, "nano")


def test_of_two_pushes_at_once_servers_are_led_to_one(
    settings: Settings, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(settings.s3)
    first, _ = release.push(store, built, "nano")
    other = release.ReleasePointer(release="0" * 64).model_dump_json().encode()
    described = release.described

    def overtaken(*given: Any) -> release.Release:
        made = described(*given)
        store.put(release.POINTER, other, release.JSON)
        return made

    rename_build(built, "another build")
    monkeypatch.setattr(release, "described", overtaken)
    get = store.get
    monkeypatch.setattr(store, "get", lambda key: Stored(b"", '"older"') if key == release.POINTER else get(key))
    with pytest.raises(LockHeld, match="another push was first"):
        release.push(store, built, "nano")
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"no s3://.*; `pigeon models push` makes it"):
        release.read_release(store)
    assert release.read_release(store, first.sha256) == first


@pytest.fixture(scope="module")
def hosts(own_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Settings]]:
    """Two hosts, each with a Triton and a model repository of its own, and with one key."""
    with ExitStack() as ends:
        started, key = [], Secrets.new()
        for number in range(2):
            servers = Stack(tmp_path_factory.mktemp(f"host{number}"))
            ends.callback(servers.down, purge=True)
            servers.state.make()
            servers.state.save_identity(ports.choose(servers.state.path), key)
            servers.up(services=("triton",), tied=True)
            started.append(load_settings(state_dir=servers.state.path))
        yield started


def repository(host: Settings) -> Path:
    folder = host.triton.model_repository
    assert folder
    return folder


def take(store: Store, host: Settings) -> None:
    """`pigeon models pull --load` on a host."""
    pull(store, repository(host), "nano")
    with TritonPigeon(host) as model:
        model.load_repository()


class Traffic:
    """Requests of a night that do not stop while servers are given other models."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self._stop, self.answers = work, threading.Event(), list[Any]()
        self._pool = ThreadPoolExecutor(2)
        self._running = [self._pool.submit(self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._work())

    def end(self) -> list[Any]:
        """All answers.

        Raises:
            InferenceError: a request failed.
        """
        self._stop.set()
        for one in self._running:
            one.result(120)
        self._pool.shutdown()
        return self.answers


def test_servers_are_given_another_release_one_after_the_other_and_no_request_fails(
    settings: Settings, hosts: list[Settings], built: Path, original: Path, tmp_path: Path
) -> None:
    store = Store(settings.s3)
    rename_build(built, "a build of before")
    release.push(store, built, "nano")
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda host: take(store, host), hosts))
    url = ",".join(host.triton.url for host in hosts)
    both = hosts[0].triton.model_copy(update={"url": url, "model_repository": tmp_path / "none"})
    night = settings.model_copy(update={"triton": both})
    with TritonPigeon(night) as model, TritonPigeon(night) as other:
        (wanted,) = model.draw_pictures([PICTURE])
        traffic = Traffic(lambda: model.draw_pictures([PICTURE])[0])
        rename_build(built, "0123456789abcdef")
        add_adapter(built, original / "checkpoint", 2, tmp_path / "two")
        release.push(store, built, "nano")
        take(store, hosts[0])
        # The second server lags: it is not asked for what it does not have.
        retrained = [other.answer(replace(REQUEST, adapter_version=2)) for _ in range(3)]
        assert [server.requests for server in other.servers()] == [3, 0]
        take(store, hosts[1])
        drawn = traffic.end()
        assert all(server.requests for server in model.servers())
        model.check_served(read_manifest(repository(hosts[0])))
        assert model.loaded_versions("personalizer") == (1, 2)
    assert len(drawn) > 10
    assert all(np.array_equal(picture.image, wanted.image) for picture in drawn)
    assert len({one.answers[0].tokens for one in retrained}) == 1
