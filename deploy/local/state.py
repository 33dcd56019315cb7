"""Content of a state folder (`.pigeon/`): ports and secrets for good, the stack while it runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deploy.local import ports
from deploy.local.process import ProcessId
from schemas.errors import InputError


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


@dataclass(frozen=True)
class Secrets:
    """Random for each state folder."""

    postgres_password: str
    s3_access_key: str
    s3_secret_key: str
    triton_admin_key: str

    @classmethod
    def new(cls) -> Secrets:
        return cls(*(secrets.token_hex(length) for length in (16, 10, 20, 20)))


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class StateDir:
    """The folder and the names in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.models = self.path / "models"
        self.env_file = self.path / "env"
        self._identity_file = self.path / "local.json"
        self._record_file = self.run / "stack.json"
        self._lock_file = self.run / "lock"

    @property
    def key(self) -> str:
        """Short name, unique on this machine, of what must live outside the folder.

        That is shared memory and relocated data.
        """
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:12]

    def make(self) -> None:
        """Create the folders.

        Raises:
            InputError: the folder cannot be created or written.
        """
        try:
            for folder in (self.path, self.logs, self.run, self.models):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"state_dir {self.path}: {error.strerror}: choose another by PIGEON_STATE_DIR") from None
        if not os.access(self.run, os.W_OK):
            raise InputError(f"state_dir {self.path}: not writable for this user: choose another by PIGEON_STATE_DIR")

    def lock(self) -> IO[str] | None:
        """The lock of the stack's owner, or None while another process has it.

        The kernel frees it when its owner ends.
        """
        file = self._lock_file.open("a+")
        for _ in range(10):  # somebody may be asking for the owner just now
            if _try_lock(file):
                file.truncate(0)
                me = ProcessId.of(os.getpid())
                json.dump(me.to_record() if me else {}, file)
                file.flush()
                return file
            time.sleep(0.05)
        file.close()
        return None

    def owner(self) -> ProcessId | None:
        """The supervisor that has the lock, or None when nobody has."""
        try:
            file = self._lock_file.open()
        except FileNotFoundError:
            return None
        with file:
            while not _try_lock(file):
                try:
                    return ProcessId.from_record(json.loads(file.read()))
                except (ValueError, KeyError):  # it has the lock and has not written yet
                    time.sleep(0.01)
                    file.seek(0)
        return None

    def identity(self) -> tuple[dict[str, int], Secrets] | None:
        """The ports and secrets chosen earlier, or None at first."""
        try:
            stored = json.loads(self._identity_file.read_text())
            return {name: int(stored["ports"][name]) for name in ports.NAMES}, Secrets(**stored["secrets"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self._identity_file}: not readable as ports and secrets: restore it, or `pigeon down --purge`"
            ) from None

    def save_identity(self, chosen: dict[str, int], keys: Secrets) -> None:
        write_private(self._identity_file, json.dumps({"ports": chosen, "secrets": vars(keys)}, indent=1))

    def record(self) -> dict[str, Any]:
        """What the owner last wrote about the stack; empty when none runs or it has not got that far."""
        owner = self.owner()
        try:
            stored: dict[str, Any] = json.loads(self._record_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return stored if owner and stored["owner"] == owner.to_record() else {}

    def save_record(self, record: dict[str, Any]) -> None:
        me = ProcessId.of(os.getpid())
        write_private(self._record_file, json.dumps({"owner": me.to_record() if me else None, **record}, indent=1))

    def drop_record(self) -> None:
        self._record_file.unlink(missing_ok=True)

    def erase(self) -> None:
        """Delete ports, secrets, addresses and logs."""
        for file in (self.env_file, self._identity_file):
            file.unlink(missing_ok=True)
        for folder in (self.run, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
