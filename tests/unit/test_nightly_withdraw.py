"""What is recorded of a withdrawal where the bucket is not there to tell readers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from generator.nightly.withdraw import open_storage
from schemas.errors import InputError, ServerUnavailable
from schemas.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """S3 at a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    keys = {"access_key_id": "k", "secret_access_key": "s", "max_attempts": 1}
    return load_settings(state_dir=tmp_path, s3={"endpoint_url": f"http://127.0.0.1:{port}", **keys})


def test_rows_can_be_written_while_the_bucket_is_away(settings: Settings) -> None:
    with open_storage(settings) as (store, _), pytest.raises(ServerUnavailable):
        store.get("pointer")


def test_a_wrong_setting_is_told_before_anything_is_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise InputError("no such bucket")

    monkeypatch.setattr("generator.storage.objects.Store.check", refuse)
    with pytest.raises(InputError, match="no such bucket"), open_storage(settings):
        pytest.fail("nothing is written")
