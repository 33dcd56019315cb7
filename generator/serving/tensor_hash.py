"""A hash of named arrays; numpy only, because vLLM's environment checks adapters by it as well."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray


def content_hash(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of the arrays themselves, whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + str(arrays[name].shape).encode() + arrays[name].tobytes())
    return digest.hexdigest()
