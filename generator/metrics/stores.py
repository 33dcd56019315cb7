"""What waits, what is withdrawn, and how full the stores are, as samples."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from generator.metrics import names
from schemas.runtime.metrics import Samples
from schemas.tables import Erasure, Withdrawal


def read(session: Session, now: datetime) -> Samples:
    """What Postgres has of them."""
    open_ones = select(func.count(), func.min(Erasure.requested_at)).where(Erasure.completed_at.is_(None))
    count, oldest = session.execute(open_ones).one()
    yield names.ERASURES_OPEN, (), count
    yield names.ERASURE_AGE, (), max(0.0, (now - oldest).total_seconds()) if oldest else 0.0
    in_force = select(Withdrawal.kind, func.count()).where(Withdrawal.lifted_at.is_(None)).group_by(Withdrawal.kind)
    for kind, number in session.execute(in_force):
        yield names.WITHDRAWALS, (kind,), number
    yield names.DATABASE_BYTES, (), session.scalar(select(func.pg_database_size(func.current_database()))) or 0


def disk(folder: Path) -> Samples:
    """The file system that a folder is on, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    yield names.DISK_FREE, (), usage.free
    yield names.DISK_SIZE, (), usage.total
