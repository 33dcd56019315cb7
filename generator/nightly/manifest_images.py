"""Whether every image that a manifest names is in the bucket. Memory does not grow with the rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from generator.storage.objects import Store
from schemas.errors import PigeonError
from schemas.manifest import poster_key

HEX = "0123456789abcdef"
HEAD_LIMIT = 500
"""Images up to which each is asked for; more are compared with the bucket's lists."""
THREADS = 8
NAMED = 5
"""Missing images that an error names."""

_POSTER = re.compile(r"posters/([0-9a-f]{64})\.webp")


class ImagesMissing(PigeonError):
    """The manifest names images that are not in the bucket; nothing was published. `keys` are those."""

    def __init__(self, bucket: str, keys: list[str]) -> None:
        self.keys = keys
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        super().__init__(
            f"{len(keys)} images of the manifest are not in s3://{bucket}: {', '.join(keys[:NAMED])}{more}; "
            "nothing was published. Withdraw their posters or restore the images, then `pigeon night resume`"
        )


class NamedImages:
    """The keys that a manifest names, on disk."""

    def __init__(self, folder: Path) -> None:
        self._files = {digit: (folder / f"{digit}.keys").open("w+b") for digit in HEX}
        self._others: set[str] = set()
        self._count = 0

    def add(self, keys: Iterable[str]) -> None:
        """Keys, in any order and as often as they come."""
        for key in set(keys):
            found = _POSTER.fullmatch(key)
            if found:
                self._files[found[1][0]].write(bytes.fromhex(found[1]))
                self._count += 1
            else:
                self._others.add(key)

    def check(self, store: Store) -> None:
        """Compare with the bucket.

        Raises:
            ImagesMissing: some are not there.
        """
        missing: list[str] = []
        with ThreadPoolExecutor(THREADS) as threads:
            missing += _absent(store, sorted(self._others), threads)
            for digit, file in self._files.items():
                file.seek(0)
                wanted = np.unique(np.frombuffer(file.read(), "S32"))
                if self._count > HEAD_LIMIT and len(wanted):
                    wanted = wanted[~np.isin(wanted, _listed(store, digit, threads))]
                # What a list did not show is asked for by name before it counts as missing.
                missing += _absent(store, [poster_key(sha.ljust(32, b"\0").hex()) for sha in wanted.tolist()], threads)
        if missing:
            raise ImagesMissing(store.bucket, missing)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def _absent(store: Store, keys: list[str], threads: ThreadPoolExecutor) -> list[str]:
    return [key for key, there in zip(keys, threads.map(store.exists, keys), strict=True) if not there]


def _listed(store: Store, digit: str, threads: ThreadPoolExecutor) -> npt.NDArray[np.bytes_]:
    """The hashes of all posters in the bucket that begin with a hexadecimal digit."""

    def part(prefix: str) -> bytes:
        found = (_POSTER.fullmatch(key) for key in store.keys(f"posters/{prefix}"))
        return b"".join(bytes.fromhex(one[1]) for one in found if one)

    return np.frombuffer(b"".join(threads.map(part, [digit + second for second in HEX])), "S32")
