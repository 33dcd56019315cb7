"""Rows as nights and their feedback leave them, for the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid5

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.feedback import pairs
from schemas.images import features_version
from schemas.tables import ImageFeature, NightRun, NightTask, Poster, PosterFeedback

DAY = date(2026, 11, 2)
MORNING = datetime(2026, 11, 2, 8, tzinfo=UTC)
TOKENIZER = "double"
WINDOW = (datetime(2026, 10, 6, tzinfo=UTC), datetime(2026, 11, 3, tzinfo=UTC))


class Night:
    """Rows as a night and its feedback leave them."""

    def __init__(self, engine: Engine, day: date = DAY, embedding: Sequence[float] = (0.0, 1.0)) -> None:
        """embedding: of the one image of every history."""
        self.engine, self.day, self.run_id = engine, day, f"run-{day}"
        self.clock = 0
        self.owners: dict[str, tuple[str, str]] = {}
        with Session(engine) as session, session.begin():
            common = {
                "status": "published",
                "model_version": "nano-1",
                "settings": {},
                "figures": {},
                "fencing_token": 1,
            }
            session.add(NightRun(run_id=self.run_id, logical_date=day, **common))
            if session.get(ImageFeature, ("h", features_version(TOKENIZER))) is None:
                feature = ImageFeature(
                    image_sha256="h",
                    tokenizer_version=features_version(TOKENIZER),
                    tokens=[1],
                    embedding=list(embedding),
                )
                session.add(feature)

    def task(
        self, user: str, item: str, cis: Sequence[float] = (60.0, 50.0), propensity: Sequence[float] = (0.5, 0.5)
    ) -> list[str]:
        image = {"item_id": "h1", "title": "Heat", "uri": "x", "sha256": "h"}
        prompt = {
            "history": [image],
            "reference": {**image, "item_id": item, "title": item},
            "description": "words",
            "tokenizer_version": TOKENIZER,
            "snapshot": {
                "history_titles": ["Heat"],
                "history_tokens": [[1, 2]],
                "title": item,
                "description": "words",
                "reference_tokens": [3],
            },
        }
        common = {"run_id": self.run_id, "user_id": user, "item_id": item, "model_version": "nano-1", "seed": 7}
        names = [f"{self.day}-{user}-{item}-{variant}" for variant in range(len(cis))]
        self.owners |= dict.fromkeys(names, (user, item))
        with Session(self.engine) as session, session.begin():
            done = {"status": "done", "input_fingerprint": "f", "adapter_version": 1, "prompt": prompt}
            session.add(NightTask(**common, **done))
            session.flush()
            for variant, name in enumerate(names):
                files = {
                    "art_key": "a",
                    "art_sha256": "a",
                    "image_key": "i",
                    "image_sha256": "i",
                    "width": 4,
                    "height": 6,
                }
                scores = {
                    "cs": 30.0,
                    "cis_reference": 70.0,
                    "cis_history": cis[variant],
                    "score": 45.0,
                    "look": "0" * 16,
                }
                drawn = {
                    "alpha": 0.5 * variant,
                    "tokens": [10 + variant],
                    "propensity": propensity[variant],
                    "safety": "ok",
                }
                session.add(
                    Poster(poster_id=name, variant=variant, input_fingerprint="f", **common, **files, **scores, **drawn)
                )
        return names

    def feedback(
        self, poster: str, actions: str, position: int = 0, at: datetime | None = None, propensity: float | None = None
    ) -> None:
        """`actions`: i impression, c click, d dismiss, a minute apart."""
        user, item = self.owners[poster]
        words = {"i": "impression", "c": "click", "d": "dismiss"}
        with Session(self.engine) as session, session.begin():
            for action in actions:
                self.clock += 1
                session.add(
                    PosterFeedback(
                        event_id=uuid5(UUID(int=0), f"{self.day}/{self.clock}"),
                        poster_id=poster,
                        user_id=user,
                        item_id=item,
                        action=words[action],
                        position=position,
                        propensity=propensity,
                        occurred_at=(at or MORNING) + timedelta(minutes=self.clock),
                    )
                )


def filled(
    engine: Engine,
    users: int = 40,
    day: date = DAY,
    embedding: Sequence[float] = (0.0, 1.0),
    flipped: Callable[[str], bool] = lambda user: False,
) -> Night:
    """One task per user, its first variant clicked (its second where flipped), the other one only shown."""
    night = Night(engine, day, embedding)
    for n in range(users):
        a, b = night.task(f"user{n}", "x")
        if flipped(f"user{n}"):
            a, b = b, a
        night.feedback(a, "ic", at=datetime(day.year, day.month, day.day, 8, tzinfo=UTC))
        night.feedback(b, "i", at=datetime(day.year, day.month, day.day, 8, tzinfo=UTC))
    return night


def mine(engine: Engine, share: float = 0.0) -> pairs.Mined:
    with Session(engine) as session:
        return pairs.mine(session, *WINDOW, score_share=share, base_sha256="base")
