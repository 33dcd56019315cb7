"""The simulated users: seeded, honest about what they see.

And clicking by taste, position and noise as stated.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.local.demo import simulator
from deploy.local.demo.simulator import Looks, Shown, behave, judge, read_tastes, summary
from schemas.errors import InputError

DAY = date(1998, 4, 24)
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def image(colour: tuple[int, int, int], stripes: bool, shift: int = 0) -> np.ndarray:
    pixels = np.full((64, 64, 3), colour, np.uint8)
    if stripes:
        pixels[:, shift % 4 :: 4] = 255 - np.array(colour, np.uint8)
    else:
        pixels[16 + shift : 40 + shift, 16:40] = 255 - np.array(colour, np.uint8)
    return pixels


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    posters = tmp_path / "posters"
    posters.mkdir()
    for n in range(8):
        Image.fromarray(image((200, 30, 30), True, n)).save(posters / f"red{n}.png")
        Image.fromarray(image((30, 30, 200), False, n)).save(posters / f"blue{n}.png")
    start = datetime(1998, 1, 1, tzinfo=UTC)
    clicks = [("ann", f"red{n}", n) for n in range(8)] + [("bob", f"blue{n}", n) for n in range(8)]
    clicks += [("cai", f"red{n}", n) for n in range(5)] + [("cai", "blue0", 99)]
    (tmp_path / "clicks.jsonl").write_text(
        "".join(
            json.dumps({"user_id": u, "item_id": i, "occurred_at": (start + timedelta(days=d)).isoformat()}) + "\n"
            for u, i, d in clicks
        )
    )
    return tmp_path


def test_taste_is_what_was_liked_and_newer_likes_weigh_more(catalogue: Path) -> None:
    looks = Looks.of_catalogue(catalogue / "posters")
    tastes = read_tastes(catalogue / "clicks.jsonl", looks)
    red, blue = looks.of(image((200, 30, 30), True, 1)), looks.of(image((30, 30, 200), False, 1))
    assert tastes["ann"] @ red > 0.5 > 0 > tastes["ann"] @ blue
    assert tastes["bob"] @ blue > 0.5 > 0 > tastes["bob"] @ red
    plain = sum(looks.official[f"red{n}"] for n in range(5)) + looks.official["blue0"]
    assert tastes["cai"] @ blue > plain / 6 @ blue, "the newest like counts for more than one in six"
    rows = [
        {"user_id": "ann", "item_id": "x", "poster_id": name, "propensity": 0.5, "image_key": name}
        for name in ("r", "b")
    ]
    images = {"r": image((200, 30, 30), True, 2), "b": image((30, 30, 200), False, 2)}
    assert [s.similarity > 0 for s in judge(rows, images, tastes, looks)] == [True, False]
    with pytest.raises(InputError, match="no poster of a user"):
        judge([], {}, tastes, looks)


def many(users: int = 60, items: int = 5) -> list[Shown]:
    return [
        Shown(f"u{u}", f"i{i}", f"u{u}-i{i}-{variant}", chance, 1.0 if variant else -1.0)
        for u in range(users)
        for i in range(items)
        for variant, chance in ((0, 0.75), (1, 0.25))
    ]


def test_behaviour_is_as_stated_and_follows_the_seed() -> None:
    shown = many()
    events = list(behave(shown, DAY, 7, now=NOW))
    assert events == list(behave(shown, DAY, 7, now=NOW))
    assert {e.event_id for e in events}.isdisjoint({e.event_id for e in behave(shown, DAY, 8, now=NOW)})
    assert len({e.event_id for e in events}) == len(events)

    seen = Counter((e.poster_id[-1], e.position) for e in events if e.action == "impression")
    clicked = Counter((e.poster_id[-1], e.position) for e in events if e.action == "click")
    total = sum(seen.values())
    assert total == 60 * 5 * simulator.VISITS
    assert sum(seen["0", k] for k in range(5)) / total == pytest.approx(0.75, abs=0.02), "shown by propensity"
    rate = {key: clicked[key] / seen[key] for key in seen}
    for k in range(5):
        assert rate["1", k] > 4 * rate["0", k], "taste"
    looked = [rate["1", k] / rate["1", 0] for k in range(5)]
    assert looked == pytest.approx([1 / (1 + simulator.POSITION_BIAS * k) for k in range(5)], abs=0.12), "position"
    liked, others = re.search(
        r"click rate (\d+)% of posters nearer to their taste, (\d+)%", summary(shown, events)
    ).groups()
    assert int(liked) > 4 * int(others)


def test_a_click_follows_its_impression_and_nothing_is_in_the_future() -> None:
    today = datetime(2026, 11, 1, 9, 30, tzinfo=UTC)
    events = list(behave(many(20), today.date(), 1, now=today))
    last: dict[tuple[str, str], datetime] = {}
    for event in events:
        assert today - timedelta(hours=3) < event.occurred_at <= today + timedelta(seconds=10)
        if event.action == "impression":
            last[event.user_id, event.poster_id] = event.occurred_at
        else:
            assert event.occurred_at > last[event.user_id, event.poster_id]
        assert event.propensity in {0.75, 0.25}


def test_the_art_is_cut_out_of_portrait_and_landscape_posters(tmp_path: Path) -> None:
    for size, box in (((40, 60), (0, 0, 40, 40)), ((90, 40), (0, 0, 40, 40))):
        poster = Image.new("RGB", size, (0, 0, 0))
        poster.paste((255, 0, 0), box)
        path = tmp_path / "poster.webp"
        poster.save(path, lossless=True)
        assert (simulator._poster_art(path.read_bytes()) == (255, 0, 0)).all()


def test_missing_data_and_malformed_dates_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pigeon demo data"):
        Looks.of_catalogue(tmp_path)
    with pytest.raises(InputError, match="YYYY-MM-DD"):
        simulator._day("yesterday")
