"""Short texts that only we can have written: signed by one key, taken from two.

A signed text is `<payload>.<key id><signature>` in base64url; the signature is HMAC-SHA256, cut to 128 bits, over the purpose and
the payload, so that what was signed for one purpose is worth nothing for another.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode

from pydantic import SecretStr

SIGNATURE_CHARACTERS = 22
ID_CHARACTERS = 4


class Signer:
    """Signs with the first key, and takes what any of them has signed."""

    def __init__(self, *keys: SecretStr) -> None:
        secrets = [key.get_secret_value().encode() for key in keys]
        self._keys = {_text(hashlib.sha256(b"id:" + key).digest())[:ID_CHARACTERS]: key for key in secrets}
        self._first = next(iter(self._keys))

    def sign(self, purpose: str, payload: bytes) -> str:
        """A text that has the payload in it, readable by anybody."""
        body = _text(payload)
        return f"{body}.{self._first}{_signature(self._keys[self._first], purpose, body)}"

    def open(self, purpose: str, text: str) -> bytes | None:
        """The payload; None when it is not our text for this purpose."""
        body, _, mark = text.rpartition(".")
        key = self._keys.get(mark[:ID_CHARACTERS])
        if key is None or not text.isascii():
            return None
        if not hmac.compare_digest(_signature(key, purpose, body), mark[ID_CHARACTERS:]):
            return None
        return urlsafe_b64decode(body + "=" * (-len(body) % 4))


def _signature(key: bytes, purpose: str, body: str) -> str:
    return _text(hmac.digest(key, f"{purpose}\x1f{body}".encode(), "sha256"))[:SIGNATURE_CHARACTERS]


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
