"""Secrets come from files as containers give them, and what is wrong with one is said by its variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import InputError
from schemas.settings import PREFIX, Settings, load_settings
from schemas.settings_secrets import file_of, secret_variables

SECRETS = sorted(secret_variables(Settings, PREFIX))
VALID = {
    "PIGEON_DATABASE__URL": "postgresql+psycopg2://u:p@h/d",
    "PIGEON_CANARY__WEBHOOK_URL": "https://h/hook",
    "PIGEON_WEB__SIGNING_KEY": "k" * 32,
    "PIGEON_WEB__PREVIOUS_SIGNING_KEY": "p" * 32,
}


def test_every_secret_setting_has_a_file() -> None:
    assert {
        "PIGEON_DATABASE__URL",
        "PIGEON_KAFKA__SASL_PASSWORD",
        "PIGEON_KAFKA__OAUTH_CLIENT_SECRET",
        "PIGEON_S3__ACCESS_KEY_ID",
        "PIGEON_S3__SECRET_ACCESS_KEY",
        "PIGEON_TRITON__ADMIN_KEY",
        "PIGEON_ONLINE__REDIS_URL",
        "PIGEON_RAY__TOKEN",
    } <= set(SECRETS)


@pytest.mark.parametrize("variable", SECRETS)
def test_a_secret_comes_from_its_file_without_the_newline(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = VALID.get(variable, "s e c r e t")
    (tmp_path / "secret").write_text(f"{value}\n")
    monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("PIGEON_CANARY__WEBHOOK_HOSTS", '["h"]')
    found: object = load_settings(state_dir=tmp_path)
    for part in variable.removeprefix(PREFIX).lower().split("__"):
        found = getattr(found, part)
    assert (found.get_secret_value() if hasattr(found, "get_secret_value") else found) == value
    assert file_of(variable) == tmp_path / "secret"


def test_what_is_wrong_with_a_file_is_said_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PIGEON_KAFKA__SASL_PASSWORD"
    path = tmp_path / "secret"
    monkeypatch.setenv(f"{name}_FILE", str(path))
    with pytest.raises(InputError, match=rf"^{name}_FILE={path}: No such file"):
        load_settings(state_dir=tmp_path)
    path.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        load_settings(state_dir=tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        load_settings(state_dir=tmp_path)
    path.write_text("hunter2")
    monkeypatch.setenv(name, "hunter3")
    with pytest.raises(InputError, match=f"{name} and {name}_FILE are both given") as refused:
        load_settings(state_dir=tmp_path)
    assert "hunter" not in str(refused.value)


def test_a_file_wins_over_what_pigeon_up_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text("PIGEON_TRITON__ADMIN_KEY=of-the-embedded-one\n")
    (tmp_path / "secret").write_text("of-mine")
    monkeypatch.setenv("PIGEON_TRITON__ADMIN_KEY_FILE", str(tmp_path / "secret"))
    key = load_settings(state_dir=tmp_path).triton.admin_key
    assert key is not None
    assert key.get_secret_value() == "of-mine"


def test_a_setting_that_is_no_secret_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEON_S3__BUCKET_FILE", str(tmp_path))
    with pytest.raises(InputError, match="PIGEON_S3__BUCKET_FILE"):
        load_settings(state_dir=tmp_path)
