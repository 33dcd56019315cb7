"""A stored report as a file of this machine."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from generator.nightly.ledger import Ledger
from generator.nightly.status import find_run
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import InputError
from schemas.settings import Settings


def save_report(settings: Settings, day: date | None, run_id: str | None, path: Path) -> str:
    """Write the report of a run to a file; returns a line that says so.

    The run is found as by `pigeon night status`.

    Raises:
        InputError: there is no such run, it has no report, or the file cannot be written.
        ServerUnavailable: Postgres or S3 is away.
    """
    engine, store = connect(settings.database), Store(settings.s3)
    try:
        run = find_run(Ledger(engine), day, run_id)
        stored = store.get(run.report_key) if run.report_key else None
    finally:
        engine.dispose()
        store.s3.close()
    if stored is None:
        raise InputError(
            f"run {run.run_id} ({run.status}) has no report: it is not over, it drew nothing, or the report went with an "
            "erased user or an old manifest"
        )
    try:
        path.write_bytes(stored.body)
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror or error}") from error
    return f"the report of {run.run_id}: {path.resolve()}"
