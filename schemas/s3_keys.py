"""Keys of S3 that are read from files at every signature: who renews the files renews the keys.

Containers give secrets so (`PIGEON_S3__SECRET_ACCESS_KEY_FILE=/run/secrets/...`); a process that runs for months takes the new
ones without a restart. boto3's own sources (environment, profile, role) renew themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    named = {name: file_of(f"PIGEON_S3__{name.upper()}") for name in NAMES}
    return {name: path for name, path in named.items() if path}


def session(keys: Keys, files: Mapping[str, Path]) -> boto3.Session:
    """A boto3 session that signs with `keys`, of which those in `files` are read again each time.

    Raises:
        InputError: a file cannot be read; later, what it had last goes on.
    """
    import boto3
    import botocore.session
    from botocore.credentials import Credentials

    def read() -> dict[str, str]:
        try:
            return {name: path.read_text(encoding="utf-8").strip() for name, path in files.items()}
        except (OSError, UnicodeError) as error:
            raise InputError(f"PIGEON_S3__..._FILE: {error}") from None

    class FromFiles(Credentials):  # type: ignore[misc] # botocore has no types here
        def get_frozen_credentials(self) -> Any:
            self._take(_agreed(read, self.read_last))
            return super().get_frozen_credentials()

        def _take(self, found: dict[str, str]) -> None:
            self.read_last = found
            now = {**keys, **found}
            self.access_key, self.secret_key, self.token = (now[name] for name in NAMES)

    own = FromFiles("", "")
    own._take(read())
    inner = botocore.session.get_session()
    inner._credentials = own
    return boto3.Session(botocore_session=inner)


def _agreed(read: Any, last: dict[str, str]) -> dict[str, str]:
    """What two readings in a row found; what was read before where there is nothing to read."""
    before: dict[str, str] | None = None
    for _ in range(READINGS):
        try:
            found: dict[str, str] = read()
        except InputError:
            return last
        if found in (last, before):
            return found
        before = found
    return last
