"""The PIGEON_* addresses: which servers a user brings along, and the file with those of ours."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deploy.local.state import write_private
from schemas.errors import InputError

SERVICES = ("postgres", "s3", "kafka", "triton")
# Setting of each server that a user sets who brings that server along.
_ADDRESS = {
    "postgres": ("database", "url"),
    "s3": ("s3", "endpoint_url"),
    "kafka": ("kafka", "bootstrap_servers"),
    "triton": ("triton", "url"),
}
_PLAIN = re.compile(r"[\w@%+=:,./-]*")


def _variable(service: str) -> str:
    return "PIGEON_" + "__".join(_ADDRESS[service]).upper()


def _toml() -> dict[str, Any]:
    path = Path(os.environ.get("PIGEON_CONFIG_FILE", "pigeon.toml"))
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def given(group: str, key: str) -> str | None:
    """A setting of the environment or the TOML file, not of our own file; None when there is none."""
    value = os.environ.get(f"PIGEON_{group}__{key}".upper(), _toml().get(group, {}).get(key))
    return None if value is None else str(value)


def external_services(ours: Collection[tuple[str, str]]) -> dict[str, str]:
    """The servers whose address the environment or the TOML file gives, with where it was found.

    `ours` are the settings of the embedded servers, by name and value: a shell that has sourced our own file brings nothing
    along.
    """
    toml = _toml()
    found = {}
    for service, (group, key) in _ADDRESS.items():
        variable = _variable(service)
        if variable in os.environ:
            if (variable, os.environ[variable]) not in ours:
                found[service] = variable
        elif key in toml.get(group, {}):
            found[service] = f"[{group}] {key}"
    return found


def write_environment(path: Path, settings: Mapping[str, str]) -> None:
    """Write the dotenv file (mode 600), readable by pydantic-settings and by a shell.

    Raises:
        InputError: a value cannot be written so that both read it alike.
    """
    lines = ["# Written by `pigeon up`: where the embedded servers are. Variables of the environment are stronger."]
    for name, value in settings.items():
        if "'" in value or "\n" in value:
            raise InputError(
                f"{name}={value!r}: quotes and newlines are not supported: move the project to another folder"
            )
        lines.append(f"{name}={value}" if _PLAIN.fullmatch(value) else f"{name}='{value}'")
    write_private(path, "\n".join(lines) + "\n")
