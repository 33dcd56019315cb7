"""Simulated users of the demo, who look at a night's posters and click by taste.

Their rules are stated here and printed on the page.

What is assumed:

- A user's *true taste* is measured from pixels: colour and drawing features (below) of the official pictures of everything the user
  ever clicked in MovieLens, newer clicks weighing more (half after `HALF_LIFE` clicks). It is not the model's own scorer, and not
  any label of style or palette; the model sees the last few pictures only, the simulator the whole history.
- A user makes `VISITS` visits on the day after the night. Each shows all of the user's posters once, in an order of its own; of an
  item's variants one is drawn with the manifest's propensities, and that propensity is logged.
- A poster at position k is looked at with probability 1 / (1 + `POSITION_BIAS`·k). Only what is looked at can be clicked.
- It is then clicked with probability σ(`BASE` + `SLOPE`·s + appeal): s is the similarity of the shown poster's picture to the taste,
  standardised over all posters of the night; the appeal of an item is a normal number of its own, the same for all of its variants.
  `NOISE` of all looks click or not by a coin that knows no taste. What is looked at and not clicked is dismissed now and then.
- Everything follows from the seed and the manifest: the same command sends the same events, which the consumer counts once.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import numpy.typing as npt
from PIL import Image

from schemas.connections import kafka_options, s3_client, s3_options
from schemas.errors import InputError, ServerUnavailable
from schemas.events import FEEDBACK, PosterFeedback
from schemas.manifest import PosterManifest
from schemas.settings import KafkaSettings, Settings

ASSUMPTIONS = (
    "Simulated users. Each one's taste is measured from the pixels (colours, edges) of the posters of all films the real MovieLens "
    "user liked, not by the model's own scorer. On three dozen visits the user sees one variant per film, drawn by the logged "
    "propensities, in changing order; lower positions are looked at less, and what is looked at is clicked with a probability that "
    "grows with the similarity of picture and taste, plus the film's own appeal and noise. One day is all that the demo learns "
    "from, so the second variant is shown in a quarter of the visits; by default it is 3 % (night.exploration)."
)
VISITS = 36
HALF_LIFE = 10.0
POSITION_BIAS = 0.35
BASE = -1.2
SLOPE = 2.5
APPEAL = 0.5
NOISE = 0.05
DISMISS = 0.05
SIDE = 64

Pixels = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shown:
    """A poster of the manifest and how similar its picture is to its user's taste (standardised)."""

    user_id: str
    item_id: str
    poster_id: str
    propensity: float
    similarity: float


def simulate(settings: Settings, date: str, seed: int) -> str:
    """Show the newest night's posters and send what the users did to posters.feedback.v1.

    Raises:
        InputError: the date is malformed or not that of the newest night, or the demo's data have not been built.
        ServerUnavailable: S3 or Kafka is away.
    """
    day = _day(date)
    folder = settings.state_dir / "cache" / "demo"
    s3 = s3_client(**s3_options(settings.s3))
    manifest = PosterManifest.open(
        bucket=settings.s3.bucket, client=s3, cache_dir=settings.state_dir / "cache" / "manifest"
    )
    if manifest.current is None:
        raise InputError("no night has been published yet: run `pigeon night run`")
    if manifest.current.logical_date != date:
        raise InputError(
            f"--date {date}: the newest night is {manifest.current.logical_date}; give that or run the night"
        )
    looks = Looks.of_catalogue(folder / "posters")
    tastes = read_tastes(folder / "clicks.jsonl", looks)
    rows = [row for row in manifest.rows().to_pylist() if row["user_id"] in tastes]
    images = {
        key: _poster_art(s3.get_object(Bucket=settings.s3.bucket, Key=key)["Body"].read())
        for key in sorted({row["image_key"] for row in rows})
    }
    shown = judge(rows, images, tastes, looks)
    events = list(behave(shown, day, seed, now=datetime.now(UTC)))
    _send(settings.kafka, events)
    return summary(shown, events)


class Looks:
    """Image features that are independent of the model.

    Colours (4x4x4 RGB histogram) and drawing (edges, strengths, saturation, tones).

    Each block is standardised over the catalogue and scaled to length 1, so that palette and drawing style count alike.
    """

    BLOCKS = (slice(0, 64), slice(64, None))

    def __init__(self, features: Mapping[str, Vector]) -> None:
        table = np.array(list(features.values()))
        self._mean, self._spread = table.mean(axis=0), table.std(axis=0) + 0.05
        self.official = {name: self._unit(vector) for name, vector in features.items()}

    @classmethod
    def of_catalogue(cls, folder: Path) -> Looks:
        """From the items' own posters, `<item_id>.png`."""
        files = sorted(folder.glob("*.png"))
        if not files:
            raise InputError(f"{folder}: no posters; run `pigeon demo data`")
        return cls({path.stem: features(np.asarray(Image.open(path).convert("RGB"))) for path in files})

    def of(self, pixels: Pixels) -> Vector:
        """Of any (H, W, 3) picture; the product of two is their similarity, -1 to 1."""
        return self._unit(features(pixels))

    def _unit(self, vector: Vector) -> Vector:
        scaled = (vector - self._mean) / self._spread
        blocks = [scaled[block] / (np.linalg.norm(scaled[block]) + 1e-9) for block in self.BLOCKS]
        joined: Vector = np.concatenate(blocks) / math.sqrt(len(blocks))
        return joined


def features(pixels: Pixels) -> Vector:
    """Colours and drawing of an (H, W, 3) picture, at 64x64."""
    small = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) / 255
    bins = np.minimum((small * 4).astype(int), 3) @ np.array([16, 4, 1])
    colours = np.bincount(bins.ravel(), minlength=64) / bins.size
    grey = small @ np.array([0.299, 0.587, 0.114])
    across, down = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
    strength, angle = np.hypot(across, down), np.arctan2(down, across) % np.pi / np.pi
    directions = np.bincount(np.minimum(angle * 6, 5).astype(int).ravel(), weights=strength.ravel(), minlength=6)
    strengths = np.histogram(strength, bins=[0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 2])[0]
    middle = slice(SIDE // 4, -SIDE // 4)
    saturation = np.ptp(small[middle, middle], axis=-1)
    drawing = [
        36 * directions / strength.size,
        strengths / strength.size,
        np.histogram(saturation, bins=[-0.01, 0.1, 0.25, 0.5, 0.75, 1.01])[0] / saturation.size,
        np.histogram(grey[middle, middle], bins=[-0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.01])[0] / saturation.size,
    ]
    joined: Vector = np.sqrt(np.concatenate([colours, *drawing]))
    return joined


def read_tastes(clicks: Path, looks: Looks) -> dict[str, Vector]:
    """Each user's taste: the weighted mean of the liked pictures' features, newest clicks first in weight."""
    liked: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with clicks.open(encoding="utf-8") as lines:
        for line in lines:
            click = json.loads(line)
            if click["item_id"] in looks.official:
                liked[click["user_id"]].append((click["occurred_at"], click["item_id"]))
    tastes = {}
    for user, rows in liked.items():
        newest_first = [looks.official[item] for _, item in sorted(rows, reverse=True)]
        weights = 0.5 ** (np.arange(len(newest_first)) / HALF_LIFE)
        tastes[user] = np.average(newest_first, axis=0, weights=weights)
    return tastes


def judge(
    rows: list[dict[str, Any]], images: Mapping[str, Pixels], tastes: Mapping[str, Vector], looks: Looks
) -> list[Shown]:
    """The night's posters with the standardised similarity of picture and taste, in the manifest's order."""
    if not rows:
        raise InputError(
            "the newest night has no poster of a user of the demo's data; run `pigeon demo` from its start"
        )
    raw = np.array([looks.of(images[row["image_key"]]) @ tastes[row["user_id"]] for row in rows])
    standard = (raw - raw.mean()) / (raw.std() + 1e-9)
    return [
        Shown(row["user_id"], row["item_id"], row["poster_id"], row["propensity"], float(s))
        for row, s in zip(rows, standard, strict=True)
    ]


def behave(shown: list[Shown], day: date, seed: int, *, now: datetime) -> Iterator[PosterFeedback]:
    """What the users do on the day after the night, in time order for each; nothing is dated after `now`."""
    users: dict[str, dict[str, list[Shown]]] = defaultdict(lambda: defaultdict(list))
    for poster in shown:
        users[poster.user_id][poster.item_id].append(poster)
    appeal = {i: APPEAL * float(_dice(seed, i).standard_normal()) for i in sorted({p.item_id for p in shown})}
    opens = datetime.combine(day, time(7), UTC)
    closes = min(opens + timedelta(hours=15), now)
    opens = min(opens, closes - timedelta(hours=1))
    for user, items in users.items():
        dice = _dice(seed, day, user)
        for visit in range(VISITS):
            moment = opens + (closes - opens) * ((visit + dice.random() * 0.9) / VISITS)
            for position, item in enumerate(dice.permutation(sorted(items))):
                variants = items[str(item)]
                chances = np.array([variant.propensity for variant in variants])
                poster = variants[int(dice.choice(len(variants), p=chances / chances.sum()))]
                # One number per question, always thrown, so that a changed answer does not shift all later ones.
                look, click, coin, dismiss = dice.random(4)
                moment += timedelta(seconds=0.5)
                actions = ["impression"]
                if look < 1 / (1 + POSITION_BIAS * position):
                    wanted = 1 / (1 + math.exp(-(BASE + SLOPE * poster.similarity + appeal[str(item)])))
                    if click < (0.5 if coin < NOISE else wanted):
                        actions.append("click")
                    elif dismiss < DISMISS:
                        actions.append("dismiss")
                for delay, action in enumerate(actions):
                    name = f"pigeon-demo:{seed}:{day}:{user}:{visit}:{poster.poster_id}:{action}"
                    yield PosterFeedback(
                        event_id=uuid5(NAMESPACE_URL, name),
                        poster_id=poster.poster_id,
                        user_id=user,
                        item_id=str(item),
                        action=action,
                        position=position,
                        surface="simulated-home",
                        propensity=poster.propensity,
                        occurred_at=moment + timedelta(milliseconds=200 * delay),
                    )


def summary(shown: list[Shown], events: list[PosterFeedback]) -> str:
    """One line: what was sent, and how much taste shows in it."""
    count = {action: sum(e.action == action for e in events) for action in ("impression", "click", "dismiss")}
    liked = {s.poster_id for s in shown if s.similarity > 0}
    rates = []
    for group in (liked, {s.poster_id for s in shown} - liked):
        seen = sum(e.action == "impression" and e.poster_id in group for e in events)
        clicked = sum(e.action == "click" and e.poster_id in group for e in events)
        rates.append(clicked / max(1, seen))
    return (
        f"{len({s.user_id for s in shown})} simulated users: {count['impression']} impressions of {len(shown)} posters, "
        f"{count['click']} clicks, {count['dismiss']} dismissals; click rate {rates[0]:.0%} of posters nearer to their "
        f"taste, {rates[1]:.0%} of the others"
    )


def _dice(*what: object) -> np.random.Generator:
    return np.random.default_rng(int(hashlib.sha256(repr(what).encode()).hexdigest()[:16], 16))


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"--date {text!r} is not YYYY-MM-DD") from None


def _poster_art(body: bytes) -> Pixels:
    """The picture within a composed poster.

    The square above the title of a portrait one, at the left of a landscape one."""
    image = Image.open(io.BytesIO(body)).convert("RGB")
    side = min(image.width, round(image.height * 0.7)) if image.height > image.width else image.height
    left = (image.width - side) // 2 if image.height > image.width else 0
    return np.asarray(image.crop((left, 0, left + side, side)))


def _send(settings: KafkaSettings, events: list[PosterFeedback]) -> None:
    """Send the events as a web front end would."""
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    try:
        producer = KafkaProducer(**kafka_options(settings), acks="all")
        try:
            topic = settings.topic_prefix + FEEDBACK
            sent = [
                producer.send(topic, key=event.user_id.encode(), value=event.model_dump_json().encode())
                for event in events
            ]
            for answer in sent:
                answer.get(timeout=settings.request_timeout_ms / 1000)
        finally:
            producer.close()
    except (KafkaError, OSError) as error:
        raise ServerUnavailable(
            f"kafka.bootstrap_servers {settings.bootstrap_servers}: {type(error).__name__}: {error}"
        ) from error
