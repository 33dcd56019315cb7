"""Retention of sets and reports."""

from __future__ import annotations

import re

from generator.nightly.erasure_fence import live_publishers
from generator.nightly.ledger import Ledger
from generator.nightly.withdraw import read_pointer
from generator.nightly.wording import counted
from generator.storage.objects import Store
from schemas.settings import Settings

_SET = re.compile(r"/set\.[0-9a-f]+\.json$|/[^/.]+(\.[0-9a-f]+)?\.parquet$")
_DATED = re.compile(r"manifests/(\d{4}-\d{2}-\d{2})/([^/]+)")


def drop_old_manifests(settings: Settings, store: Store, ledger: Ledger, *, dry_run: bool = False) -> str:
    """Delete sets and reports of all but the newest `night.keep_manifests` nights.

    What the pointer leads to stays, and what is being written. Returns a line with the numbers.
    """
    keys = [key for key in store.keys("manifests/") if _DATED.match(key)]
    old = set(nights_of(keys)[: -settings.night.keep_manifests])
    pointer = read_pointer(store)
    held = {ref.logical_date for ref in (pointer.current, pointer.previous) if ref} if pointer else set()
    with ledger.reading() as session:
        writing = live_publishers(session, end_dead=False)
    doomed = [key for key in keys if key.split("/")[1] in old - held and _run_of(key) not in writing]
    if not dry_run:
        for key in doomed:
            store.delete(key)
    words = f"{counted(len(nights_of(keys)), 'night')} found, {counted(len(doomed), 'object')} of older ones"
    return f"manifests: {words} {'would go' if dry_run else 'deleted'}"


def nights_of(keys: list[str]) -> list[str]:
    """Dates of the nights that have something in the bucket, in order."""
    return sorted({found[1] for found in map(_DATED.match, keys) if found})


def runs_with_sets(store: Store) -> list[str]:
    """Runs whose sets are in the bucket."""
    return sorted({_run_of(key) for key in store.keys("manifests/") if _DATED.match(key) and _SET.search(key)})


def _run_of(key: str) -> str:
    found = _DATED.match(key)
    return found[2].split(".")[0] if found else ""
