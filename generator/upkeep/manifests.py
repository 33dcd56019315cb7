"""Retention of sets and reports."""

from __future__ import annotations

import re

from generator.nightly.erasure_fence import live_publishers
from generator.nightly.withdraw import read_pointer
from generator.nightly.wording import counted
from generator.upkeep.batches import Upkeep

_SET = re.compile(r"/set\.[0-9a-f]+\.json$|/[^/.]+(\.[0-9a-f]+)?\.parquet$")
_DATED = re.compile(r"manifests/(\d{4}-\d{2}-\d{2})/([^/]+)")


def drop_old_manifests(upkeep: Upkeep) -> str:
    """Delete sets and reports of all but the newest `night.keep_manifests` nights.

    What the pointer leads to stays, and what is being written. Returns a line with the numbers.
    """
    # What has no date is no night's: the pointer, and the list of what was withdrawn.
    keys = [key for key in upkeep.store.keys("manifests/") if _DATED.match(key)]
    nights = sorted({key.split("/")[1] for key in keys})
    old = set(nights[: -upkeep.settings.night.keep_manifests])
    pointer = read_pointer(upkeep.store)
    held = {ref.logical_date for ref in (pointer.current, pointer.previous) if ref} if pointer else set()
    with upkeep.ledger.reading() as session:
        writing = live_publishers(session, end_dead=False)
    doomed = [key for key in keys if key.split("/")[1] in old - held and _run_of(key) not in writing]
    if not upkeep.dry_run:
        for key in doomed:
            upkeep.store.delete(key)
    upkeep.runs_with_sets = sorted({_run_of(key) for key in set(keys) - set(doomed) if _SET.search(key)})
    words = f"{counted(len(nights), 'night')} found, {counted(len(doomed), 'object')} of older ones"
    return f"manifests: {words} {'would go' if upkeep.dry_run else 'deleted'}"


def _run_of(key: str) -> str:
    found = _DATED.match(key)
    return found[2].split(".")[0] if found else ""
