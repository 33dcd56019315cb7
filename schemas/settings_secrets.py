"""Secrets from files, as containers give them: `PIGEON_KAFKA__SASL_PASSWORD_FILE=/run/secrets/kafka`.

Every secret setting has such a variable, and so have the names that go with secrets (`NAMES`).
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, SecretStr

from schemas.errors import InputError

SUFFIX = "_FILE"
NAMES = frozenset({"access_key_id", "sasl_username", "oauth_client_id"})
"""Settings that are no secrets and change together with one."""
_DELIMITER = "__"


def secret_variables(model: type[BaseModel], prefix: str) -> frozenset[str]:
    """Variables, in capitals, of every setting that may come from a file."""
    return frozenset(_secrets(model, prefix))


def _secrets(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _secrets(kind, f"{prefix}{name.upper()}{_DELIMITER}")
        elif name in NAMES or SecretStr in (kind, *typing.get_args(kind)):
            yield f"{prefix}{name.upper()}"


def with_files_read(variables: Mapping[str, str | None], secrets: frozenset[str]) -> dict[str, str | None]:
    """The variables, those that name files replaced by what the files hold; names in any case.

    Raises:
        InputError: a file cannot be read or is empty, or both variables are given; the message names them and no secret.
    """
    read = dict(variables)
    for name, path in variables.items():
        base = name[: -len(SUFFIX)]
        if not name.upper().endswith(SUFFIX) or base.upper() not in secrets:
            continue
        del read[name]
        if not path:
            continue
        if variables.get(base):
            raise InputError(f"{base.upper()} and {name.upper()} are both given: take one of them away")
        read[base] = read_secret(name.upper(), Path(path))
    return read


def read_secret(variable: str, path: Path) -> str:
    """A file's text without the newline at its end.

    Raises:
        InputError: as `with_files_read`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{variable}={path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{variable}={path}: is no text in UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise InputError(f"{variable}={path}: the file is empty")
    return text


def file_of(variable: str) -> Path | None:
    """The file that a secret comes from, for who reads it again; None when it comes from elsewhere."""
    path = os.environ.get(f"{variable}{SUFFIX}")
    return Path(path) if path else None
