"""A small shop: items with pictures of a colour, users who click on mostly one colour, as files."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

START = datetime(2026, 11, 1, tzinfo=UTC)
COLOURS = ((200, 40, 40), (40, 160, 60), (40, 70, 200), (220, 190, 40))


def write_shop(folder: Path, users: int = 60, items: int = 24, clicks: int = 12) -> tuple[Path, Path]:
    """Write catalog.jsonl, clicks.jsonl and posters/; returns the two files."""
    rng = np.random.default_rng(3)
    (folder / "posters").mkdir(parents=True, exist_ok=True)
    catalog = []
    for number in range(items):
        image = Image.new("RGB", (48, 48), COLOURS[number % 4])
        left = int(rng.integers(2, 20))
        ImageDraw.Draw(image).ellipse((left, left, left + 18, left + 24), fill=tuple(rng.integers(0, 255, 3).tolist()))
        image.save(folder / "posters" / f"i{number}.png")
        catalog.append({"item_id": f"i{number}", "title": f"Thing {number}", "image_uri": f"posters/i{number}.png"})
    rows = []
    for user in range(users):
        liked = [n for n in range(items) if n % 4 == user % 4]
        others = [n for n in range(items) if n % 4 != user % 4]
        chosen = rng.permutation(liked)[: clicks - 4].tolist() + rng.permutation(others)[:12].tolist()
        for place, number in enumerate(rng.permutation(chosen[:clicks]).tolist()):
            moment = START + timedelta(hours=user % 7, days=place, seconds=user)
            rows.append(
                {"user_id": f"u{user}", "item_id": f"i{number}", "kind": "click", "occurred_at": moment.isoformat()}
            )
    return write_lines(folder / "catalog.jsonl", catalog), write_lines(folder / "clicks.jsonl", rows)


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
