"""A small catalogue with users for the night's tests, and a process that runs a night and may die.

python -m tests.support.night_world KILL_POINT COUNT [NOISE]   # SIGKILLs itself when it reaches the point for the COUNT-th time

With NOISE, a seed, its pictures come out otherwise than those of other processes (`NoisyPigeon`).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image
from sqlalchemy.orm import Session

from generator.nightly.announce import Announcer
from generator.nightly.plan import Scope
from generator.nightly.run import Night, NightContext
from generator.safety.judge import SafetyCheck
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas import faultpoints
from schemas.events import PosterPublished
from schemas.manifest import PosterManifest
from schemas.settings import Settings, load_settings
from schemas.tables import Item, Recommendation, UserHistory
from tests.support.fake_pigeon import FakePigeon
from tests.support.noisy_pigeon import NoisyPigeon

NIGHT = date(2026, 3, 1)
START = datetime(2026, 2, 1, tzinfo=UTC)


def draw_catalogue(folder: Path, count: int) -> None:
    """Pictures item0.png... that differ in shape and colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        image = np.full((96, 64, 3), rng.integers(0, 256, 3), np.uint8)
        x, y = rng.integers(0, 40, 2)
        image[y : y + 40, x : x + 24] = rng.integers(0, 256, 3)
        Image.fromarray(image).save(folder / f"item{number}.png")


def history(*items: str) -> list[dict[str, str]]:
    """Entries as the consumers write them; the last named is the newest."""
    return [
        {
            "event_id": f"{item}-{number}",
            "item_id": item,
            "kind": "click",
            "occurred_at": (START + timedelta(hours=number)).isoformat(),
        }
        for number, item in reversed(list(enumerate(items)))
    ]


def set_user(session: Session, user_id: str, items: Iterable[str], recommended: Iterable[str] | None = None) -> None:
    """Write or replace a user's history and recommendations."""
    entries = history(*items)
    session.merge(
        UserHistory(
            user_id=user_id,
            entries=entries,
            fingerprint="|".join(entry["event_id"] for entry in entries),
            interaction_count=len(entries),
            last_occurred_at=START,
        )
    )
    if recommended is not None:
        session.merge(Recommendation(user_id=user_id, item_ids=list(recommended), occurred_at=START))


def set_item(session: Session, item_id: str, folder: Path, **changes: object) -> None:
    """Write or replace an item with its picture from `folder`."""
    values = {
        "title": f"Film of {item_id}",
        "description": f"What happens in {item_id}",
        "image_uri": f"file://{folder / item_id}.png",
        "attributes": {"synthetic": True},
    }
    session.merge(Item(item_id=item_id, **{**values, **changes}))


def build(settings: Settings, folder: Path, *, users: int = 3, targets: int = 2) -> None:
    """Items item0..item11 and users u0.. who liked some of them and are recommended others."""
    draw_catalogue(folder, 12)
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        for number in range(12):
            set_item(session, f"item{number}", folder)
        for number in range(users):
            liked = [f"item{(number + step) % 8}" for step in range(4)]
            set_user(session, f"u{number}", liked, [f"item{8 + (number + step) % 4}" for step in range(targets)])
    engine.dispose()


def reader(settings: Settings) -> PosterManifest:
    """The manifest as a recommender reads it."""
    return PosterManifest.open(
        bucket=settings.s3.bucket,
        client=Store(settings.s3).s3,
        refresh_seconds=math.inf,
        cache_dir=settings.state_dir / "cache" / "manifest",
    )


class Announcements:
    """Test double of the announcer: keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[PosterPublished] = []

    def send(self, events: Iterable[PosterPublished]) -> None:
        self.events.extend(events)

    def close(self) -> None:
        pass


def night(
    settings: Settings,
    model: FakePigeon | None = None,
    announcements: Announcer | None = None,
    on: date = NIGHT,
    echo: Callable[[str], None] = lambda line: None,
    safety: SafetyCheck | None = None,
) -> Night:
    """The product's night with a fake model and, if none is given, a fake announcer."""
    fake = model or FakePigeon()
    announcer = announcements or Announcements()
    return Night(NightContext(settings, lambda: fake, lambda: announcer, echo, safety=safety), on)


def run_and_die(settings: Settings, point: str, count: int, *noise: int) -> bool:
    """Run a night in its own process that dies at the COUNT-th passage of the point; whether it died."""
    secret = settings.s3.secret_access_key
    environment = {
        "PIGEON_STATE_DIR": str(settings.state_dir),  # its env file has the other addresses
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
        "PIGEON_S3__BUCKET": settings.s3.bucket,
        "PIGEON_IMAGES__ALLOWED_SCHEMES": json.dumps(settings.images.allowed_schemes),
    }
    assert secret
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.night_world", point, str(count), *map(str, noise)],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode != 0


def main() -> None:
    """Run a night that kills itself; see the module's docstring."""
    point, count, *noise = sys.argv[1:]
    passages = itertools.count(1)

    def die(reached: str) -> None:
        if reached == point and next(passages) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    faultpoints.handler = die
    night(load_settings(), NoisyPigeon(int(noise[0])) if noise else None).run(Scope())


if __name__ == "__main__":
    main()
