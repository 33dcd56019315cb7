"""Keys of S3 that are read from files at every signature: who renews the files renews the keys.

Containers give secrets so (`PIGEON_S3__SECRET_ACCESS_KEY_FILE=/run/secrets/...`); a process that runs for months takes the new
ones without a restart. boto3's own sources (environment, profile, role) renew themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import InputError

if TYPE_CHECKING:
    import boto3

NAMES = ("access_key_id", "secret_access_key", "session_token")
READINGS = 5
"""Times that files are read until two readings agree: they may be replaced one after the other."""

Keys = Mapping[str, str | None]


def key_files() -> dict[str, Path]:
    """The files that the environment names, by the setting that each has."""
    from schemas.settings_secrets import file_of

    named = {name: file_of(_variable(name)) for name in NAMES}
    return {name: path for name, path in named.items() if path}


def session(keys: Keys, files: Mapping[str, Path]) -> boto3.Session:
    """A boto3 session that signs with `keys`, of which those in `files` are read again each time.

    Raises:
        InputError: a file cannot be read or is empty; later, what it had last goes on.
    """
    import boto3
    import botocore.session
    from botocore.credentials import Credentials

    from schemas.settings_secrets import SUFFIX, read_secret

    def read() -> dict[str, str]:
        return {name: read_secret(_variable(name) + SUFFIX, path).strip() for name, path in files.items()}

    class FromFiles(Credentials):
        def get_frozen_credentials(self) -> Any:
            self._take(_agreed(read, self.read_last))
            return super().get_frozen_credentials()

        def _take(self, found: dict[str, str]) -> None:
            self.read_last = found
            now = {**keys, **found}
            access_key, secret_key, self.token = (now[name] for name in NAMES)
            self.access_key, self.secret_key = access_key or "", secret_key or ""

    own = FromFiles("", "")
    own._take(read())
    inner: Any = botocore.session.get_session()
    inner._credentials = own
    return boto3.Session(botocore_session=inner)


def _variable(name: str) -> str:
    return f"PIGEON_S3__{name.upper()}"


def _agreed(read: Callable[[], dict[str, str]], last: dict[str, str]) -> dict[str, str]:
    """What two readings in a row found; what was read before where there is nothing to read."""
    before: dict[str, str] | None = None
    for _ in range(READINGS):
        try:
            found = read()
        except InputError:
            return last
        if found in (last, before):
            return found
        before = found
    return last
