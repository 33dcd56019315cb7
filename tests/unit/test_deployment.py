"""Compose file, images and chart name settings that exist, and keep secrets apart.

Their own tools check their form in `make check-deploy`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from schemas.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "pigeon"
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yml").read_text())


def settings(model: type[BaseModel] = Settings, path: str = "PIGEON_") -> Iterator[tuple[str, bool]]:
    """Names of all settings as environment variables, and whether each is a secret."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{path}{name.upper()}__")
        else:
            yield f"{path}{name.upper()}", SecretStr in {kind, *getattr(kind, "__args__", ())}


NAMES = dict(settings())


def named(text: str) -> set[str]:
    return set(re.findall(r"\bPIGEON_[A-Z0-9_]+[A-Z0-9]", text)) - {"PIGEON_VERSION"}


@pytest.mark.parametrize(
    "path",
    [
        DEPLOY / "compose" / "compose.yml",
        DEPLOY / "Dockerfile",
        DEPLOY / "helm" / "full.yaml",
        CHART / "values.yaml",
        CHART / "values.schema.json",
        *sorted((CHART / "templates").glob("*.yaml")),
    ],
    ids=lambda path: path.name,
)
def test_settings_that_are_given_exist(path: Path) -> None:
    unknown = named(path.read_text()) - set(NAMES)
    assert not unknown, f"{path.name}: no such settings {sorted(unknown)}"


def test_the_chart_refuses_every_secret_among_its_settings() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    refused = set(schema["properties"]["settings"]["propertyNames"]["not"]["enum"])
    assert {name for name, secret in NAMES.items() if secret} <= refused


def test_the_chart_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version
    assert f"PIGEON_VERSION:-{version}" in (DEPLOY / "compose" / "compose.yml").read_text()


def test_the_chart_carries_the_alerts_and_dashboards_of_observability() -> None:
    carried = {path.name: path.resolve() for path in (CHART / "files").iterdir()}
    sources = [DEPLOY / "observability" / "alerts.yml", *(DEPLOY / "observability" / "dashboards").glob("*.json")]
    assert carried == {path.name: path for path in sources}


@pytest.mark.parametrize("name", [name for name, one in COMPOSE["services"].items() if "build" in one])
def test_our_containers_run_with_a_read_only_root_and_without_rights(name: str) -> None:
    service: dict[str, Any] = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_what_runs_for_long_has_a_health_check_and_starts_again() -> None:
    for name, service in COMPOSE["services"].items():
        if service["restart"] == "no":
            continue
        assert service["restart"] == "unless-stopped"
        assert "healthcheck" in service or service["profiles"] == ["observed"], name


def test_variables_of_the_compose_file_are_in_the_example_and_secrets_have_no_default() -> None:
    text = (DEPLOY / "compose" / "compose.yml").read_text()
    example = (DEPLOY / "compose" / ".env.example").read_text()
    for name, rest in re.findall(r"\$\{([A-Z0-9_]+)([^}]*)\}", text):
        assert re.search(rf"^(?:# )?{name}=", example, re.MULTILINE), name
        if name.endswith(("PASSWORD", "KEY")):
            assert rest in {":?see .env.example", "", ":-"}, name
    assert not re.findall(r"^[A-Z0-9_]+(?:PASSWORD|KEY)=.+", example, re.MULTILINE)


def test_images_are_pinned_by_tag_and_name_no_digest_of_ours() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM") and ":" in line.split()[1]]
    assert bases == ["python:3.11.13-slim-bookworm${DIGEST}"]
    for service in COMPOSE["services"].values():
        assert re.search(r":[^:/]*\d", service["image"])
        assert "latest" not in service["image"]
