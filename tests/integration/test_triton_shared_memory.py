"""Pictures through shared memory: the same bytes as by gRPC, and nothing is left of whoever is killed.

On the tiny model behind the real Triton.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from generator.serving import shared_memory
from generator.serving.api import InferenceUnavailable, PictureRequest
from generator.serving.client import TritonPigeon
from schemas.errors import InputError
from schemas.settings import Settings
from tests.support.tiny_serving import tiny_build

# The first run exports the tiny model, which takes minutes where the cores are busy.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]

REQUESTS = [PictureRequest((1, 2, number), number) for number in range(3)]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served(own_triton: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The module's own Triton serves the tiny repository."""
    folder = tmp_path_factory.mktemp("serving")
    tiny_build(folder)
    assert own_triton.triton.model_repository
    shutil.copytree(folder / "models", own_triton.triton.model_repository, dirs_exist_ok=True)
    with TritonPigeon(own_triton) as model:
        model.load_repository()
    return own_triton


def changed(settings: Settings, **triton: object) -> Settings:
    return settings.model_copy(update={"triton": settings.triton.model_copy(update={"shared_memory": True, **triton})})


@pytest.fixture
def sharing(served: Settings) -> Iterator[TritonPigeon]:
    with TritonPigeon(changed(served)) as model:
        yield model


def names() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"{shared_memory.PREFIX}*")}  # noqa: S108 - the kernel's


def registered(model: TritonPigeon) -> set[str]:
    regions = model._pool.members[0].server._shared
    assert regions
    return {name for name in regions._registered() if name.startswith(shared_memory.PREFIX)}


def test_pictures_through_shared_memory_are_the_same_bytes(
    served: Settings, sharing: TritonPigeon, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [np.random.default_rng(n).integers(0, 256, (40, 30 + n, 3), dtype=np.uint8) for n in range(3)]
    with TritonPigeon(served) as plain:
        wanted, features = plain.draw_pictures(REQUESTS), plain.image_features(images)
    assert not registered(sharing)
    for _ in range(2):
        for one, other in zip(sharing.draw_pictures(REQUESTS), wanted, strict=True):
            assert np.array_equal(one.image, other.image)
            assert np.array_equal(one.embedding, other.embedding)
    assert len(registered(sharing)) == 1, "one request after the other has the same region"
    monkeypatch.setattr(shared_memory, "SHARED_FROM_BYTES", 1)
    for one, other in zip(sharing.image_features(images), features, strict=True):
        assert one.tokens == other.tokens
        assert np.array_equal(one.embedding, other.embedding)
    sharing.close()
    with TritonPigeon(changed(served)) as later:
        assert not registered(later)
    assert not names()


def test_a_server_that_forgot_its_regions_is_given_others(sharing: TritonPigeon) -> None:
    (wanted,) = sharing.draw_pictures(REQUESTS[:1])
    before = registered(sharing)
    server = sharing._pool.members[0].server
    server.client.unregister_system_shared_memory(headers=server._admin)  # as a restart does
    with pytest.raises(InferenceUnavailable, match="its shared memory is made again"):
        sharing.draw_pictures(REQUESTS[:1])
    (again,) = sharing.draw_pictures(REQUESTS[:1])
    assert np.array_equal(again.image, wanted.image)
    assert registered(sharing).isdisjoint(before)
    assert names() == registered(sharing)


def test_memory_of_a_failed_request_is_not_lent_again_until_the_server_forgot_it(
    sharing: TritonPigeon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "LOST_REGIONS", 1)
    (wanted,) = sharing.draw_pictures(REQUESTS[:1])
    (lost,) = registered(sharing)
    with pytest.raises(InferenceUnavailable):  # the server may go on writing
        sharing.draw_pictures(REQUESTS * 20, deadline_seconds=0.05)
    assert registered(sharing) == {lost}
    (plain,) = sharing.draw_pictures(REQUESTS[:1])
    assert np.array_equal(plain.image, wanted.image)
    assert registered(sharing) == {lost}, "too many are lost, so it went by gRPC"
    server = sharing._pool.members[0].server
    server.client.unregister_system_shared_memory(headers=server._admin)
    (again,) = sharing.draw_pictures(REQUESTS[:1])
    assert np.array_equal(again.image, wanted.image)
    assert len(registered(sharing) - {lost}) == 1
    assert names() == registered(sharing)


KILLED = """
import os, signal, sys
from generator.serving.api import PictureRequest
from generator.serving.client import TritonPigeon
from schemas.settings import load_settings
model = TritonPigeon(load_settings(state_dir=sys.argv[1], triton={"shared_memory": True}))
model.draw_pictures([PictureRequest((1, 2, 0), 0)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_cleaned_up_by_the_next(served: Settings, sharing: TritonPigeon) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(served.state_dir)],
        cwd=CHECKOUT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = registered(sharing)
    assert shared_memory.is_abandoned(left)
    sharing.draw_pictures(REQUESTS)
    assert left not in registered(sharing)
    assert names() == registered(sharing)


def test_a_server_that_cannot_see_our_memory_is_refused_by_name(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"triton.shared_memory: gpu-3:8001 is not this host .*SHARED_MEMORY=false"):
        TritonPigeon(changed(served, url="gpu-3:8001"))
    wrong = TritonPigeon(changed(served, admin_key=SecretStr("wrong")))
    with wrong as model, pytest.raises(InputError, match=r"does not take it: .*PIGEON_TRITON__ADMIN_KEY"):
        model.draw_pictures(REQUESTS)

    class Elsewhere(shared_memory.Region):
        """Test double of memory that the server does not find by its name, as in a container of its own."""

        def __init__(self, size: int) -> None:
            super().__init__(size)
            Path(f"/dev/shm/{self.name}").unlink()  # noqa: S108

    monkeypatch.setattr(shared_memory, "Region", Elsewhere)
    with TritonPigeon(changed(served)) as model, pytest.raises(InputError, match=r"does not take it: .*ipc: host"):
        model.draw_pictures(REQUESTS)
    assert not names()
