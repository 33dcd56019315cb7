"""The runbook has a section for each alert and exit code, and what it names exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import typer.main
import yaml

from generator import cli
from schemas import errors
from schemas.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "runbook.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.+)\n\n((?:(?!^##).*\n)*)", TEXT, re.MULTILINE))


def alerts() -> set[str]:
    groups = yaml.safe_load((ROOT / "deploy" / "observability" / "alerts.yml").read_text())["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"]}


def exit_codes() -> set[int]:
    classes = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.PigeonError)]
    return {one.exit_code for one in classes}


def commands() -> set[str]:
    found: set[str] = set()

    def walk(command: object, path: str) -> None:
        found.add(path)
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}")

    walk(typer.main.get_command(cli.build_app()), "pigeon")
    return found


def test_every_alert_has_its_section_and_no_section_is_left_over() -> None:
    assert {name for name in SECTIONS if name.startswith("Pigeon")} == alerts()


@pytest.mark.parametrize("alert", sorted(alerts()))
def test_an_alerts_section_says_what_it_means_where_to_look_and_what_to_do(alert: str) -> None:
    for part in ("**Means:**", "**Look:**", "**Do:**"):
        assert part in SECTIONS[alert]


def test_every_exit_code_has_its_section() -> None:
    codes = {int(code) for name in SECTIONS if name.startswith("Exit code") for code in re.findall(r"\d+", name)}
    assert codes == exit_codes() | {130, 143}


def test_commands_that_it_names_exist() -> None:
    known = commands()
    said = [inline or block for inline, block in re.findall(r"`(pigeon [^`]+)`|^    (pigeon .+)$", TEXT, re.MULTILINE)]
    named = {match[0] for line in said if (match := re.match(r"pigeon(?: [a-z][a-z-]*)+", line))}
    assert len(named) > 15
    for command in named:
        words = command.split()
        assert any(" ".join(words[:length]) in known for length in (3, 2)), command


def test_settings_and_tests_that_it_names_exist() -> None:
    for group, name in re.findall(r"`([a-z]+)\.([a-z_]+)(?:`| = )", TEXT):
        if group in Settings.model_fields:
            model = Settings.model_fields[group].annotation
            assert name in getattr(model, "model_fields", {}), f"{group}.{name}"
    named = re.findall(r"tests/[a-z_/]+\.py", TEXT)
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).is_file()]
