"""The lease, the bucket and the tables of one upkeep or erasure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from generator.nightly.ledger import Ledger
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.settings import Settings


@contextmanager
def leading(settings: Settings, name: str) -> Iterator[tuple[Store, Ledger]]:
    """A bucket, and a ledger that writes under the lease `name`; released at the end.

    Raises:
        LockHeld: another process has the lease.
        InputError: bucket, keys, region or clock are wrong.
        ServerUnavailable: Postgres or S3 is away.
    """
    engine = connect(settings.database)
    store = Store(settings.s3)
    try:
        store.check()
        with lead(engine, name) as lease:
            yield store, Ledger(engine, lease)
    finally:
        engine.dispose()
        store.s3.close()
