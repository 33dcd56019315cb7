"""An authority of the tests' own, and certificates for 127.0.0.1 that it signs (openssl)."""

from __future__ import annotations

import subprocess
from pathlib import Path


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """Signs certificates; its own is `certificate`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-keyout", str(self._key), "-out", str(self.certificate)),
        )

    def sign(self, name: str) -> tuple[Path, Path]:
        """A certificate for `name` on 127.0.0.1, and its key."""
        made, key, request, extra = (self._folder / f"{name}.{end}" for end in ("pem", "key", "csr", "ext"))
        _openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request))
        )
        extra.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        _openssl(
            *(
                "x509",
                "-req",
                "-days",
                "2",
                "-in",
                str(request),
                "-CA",
                str(self.certificate),
                "-CAkey",
                str(self._key),
            ),
            *("-CAcreateserial", "-extfile", str(extra), "-out", str(made)),
        )
        return made, key
