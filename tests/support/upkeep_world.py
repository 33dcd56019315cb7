"""A process that erases or tidies up and may die; and what is left of a user anywhere.

python -m tests.support.upkeep_world erase|upkeep DAYS POINT COUNT   # SIGKILLs itself at the point's COUNT-th passage
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from generator.storage.objects import Store
from generator.storage.postgres import connect
from generator.upkeep.erase import erase_users
from generator.upkeep.retention import upkeep
from schemas import faultpoints
from schemas.settings import Settings, load_settings
from schemas.tables import Erasure

TABLES = (
    "answer_sets",
    "current_posters",
    "night_skips",
    "night_tasks",
    "planned_users",
    "posters",
    "user_objections",
)


def ask_to_erase(settings: Settings, user: str) -> None:
    """Leave the row that the consumers leave."""
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        session.merge(Erasure(user_id=user, requested_at=datetime.now(UTC), completed_at=None))
        # The consumers delete it in the same transaction, so that no later plan has the user.
        session.execute(text("DELETE FROM user_histories WHERE user_id = :user"), {"user": user})
    engine.dispose()


def traces(settings: Settings, user: str) -> list[str]:
    """Where the user is still found: tables, and objects of the bucket with their older versions."""
    engine = connect(settings.database)
    with Session(engine) as session:
        found = [
            table
            for table in TABLES
            if session.scalar(text(f"SELECT count(*) FROM {table} WHERE user_id = :user"), {"user": user})  # noqa: S608
        ]
    engine.dispose()
    store = Store(settings.s3)
    for key in store.keys(""):
        stored = store.get(key)
        if stored and user.encode() in stored.body and not key.endswith((".png", ".webp")):
            found.append(key)
    store.s3.close()
    return found


def unnamed(settings: Settings) -> set[str]:
    """Posters and pictures in the bucket without a row, and rows without their file."""
    engine, store = connect(settings.database), Store(settings.s3)
    with Session(engine) as session:
        named = set(
            session.scalars(
                text(
                    "SELECT art_key FROM pictures WHERE art_key IS NOT NULL "
                    "UNION SELECT image_key FROM compositions WHERE image_key IS NOT NULL"
                )
            )
        )
    stored = {*store.keys("art/"), *store.keys("posters/")}
    engine.dispose()
    store.s3.close()
    return named ^ stored


def proof_of(settings: Settings, user: str) -> tuple[bool, dict[str, object]]:
    """Whether the request is completed, and the night's proof."""
    engine = connect(settings.database)
    with Session(engine) as session:
        erasure = session.scalars(select(Erasure).where(Erasure.user_id == user)).one()
    engine.dispose()
    return erasure.completed_at is not None, erasure.proof.get("night", {})


def dies(settings: Settings, what: str, point: str, *, count: int = 1, days: int = 0) -> None:
    """Run `what` in a process that kills itself at a point; it must have come there."""
    own = {
        "PIGEON_STATE_DIR": str(settings.state_dir),
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
        "PIGEON_S3__BUCKET": settings.s3.bucket,
        "PIGEON_NIGHT__KEEP_MANIFESTS": str(settings.night.keep_manifests),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.upkeep_world", what, str(days), point, str(count)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **own},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def main() -> None:
    """Erase or tidy up, and die; see the module's docstring."""
    what, days, point, count = sys.argv[1:]
    passages = itertools.count(1)

    def die(reached: str) -> None:
        if reached == point and next(passages) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    faultpoints.handler = die
    if what == "erase":
        erase_users(load_settings())
    else:
        list(upkeep(load_settings(), now=datetime.now(UTC) + timedelta(days=int(days))))


if __name__ == "__main__":
    main()
