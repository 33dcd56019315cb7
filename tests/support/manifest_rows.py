"""Made-up rows of a manifest, for tests and measurements."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.manifest import POSTER_SCHEMA, poster_key

ROW: dict[str, Any] = {
    "user_id": "ü",
    "item_id": "i",
    "variant": 0,
    "poster_id": "p",
    "image_key": "posters/a.webp",
    "image_sha256": "a",
    "width": 400,
    "height": 600,
    "propensity": 0.75,
    "score": 1 / 3,
    "cs": 20.0,
    "cis_reference": 30.0,
    "cis_history": 40.0,
    "alpha": 0.5,
    "seed": 2**53 - 1,
    "safety": "unchecked",
    "model_version": "nano-1",
    "synthetic": True,
    "drawn_by_run": "night-1",
    "renditions": [{"width": 100, "height": 150, "image_key": "posters/b.webp", "image_sha256": "b"}],
    "explored": False,
    "choice_propensity": 1.0,
    "picture_key": None,
}


def rows_of(users: list[str], items: list[str], variants: int = 2) -> pa.Table:
    """Each user has all items in all variants; which picture it is follows from item and variant."""
    found = []
    for user in users:
        for item in items:
            for variant in range(variants):
                sha = hashlib.sha256(f"{item} {variant}".encode()).hexdigest()
                found.append(
                    {
                        **ROW,
                        "user_id": user,
                        "item_id": item,
                        "variant": variant,
                        "poster_id": f"{user}/{item}/{variant}",
                        "image_key": poster_key(sha),
                        "image_sha256": sha,
                        "propensity": [0.75, 0.25][variant] if variants == 2 else 1 / variants,
                        "explored": variant > 0,
                        "picture_key": f"picture {item} {variant}",
                    }
                )
    return pa.Table.from_pylist(found, schema=POSTER_SCHEMA)


def pages_of(rows: int, *, items_per_user: int = 40, variants: int = 2, page: int = 20_000) -> Iterator[pa.Table]:
    """Pages of about `rows` rows in all; users have some of 50,000 items and share pictures."""
    per_user = items_per_user * variants
    hexes = np.array([hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(4096)])
    for first in range(0, rows // per_user, page // per_user):
        users = np.arange(first, min(first + page // per_user, rows // per_user))
        user = np.repeat(users, per_user)
        place = np.tile(np.repeat(np.arange(items_per_user), variants), len(users))
        variant = np.tile(np.arange(variants), len(users) * items_per_user)
        shas = hexes[(user * 31 + place * 7 + variant) % len(hexes)]
        size = len(user)
        constant = {name: [ROW[name]] * size for name in ("safety", "model_version", "drawn_by_run")}
        text = {
            "user_id": np.char.add("user-", user.astype(str)),
            "item_id": np.char.add("item-", ((user * 17 + place * 101) % 50_000).astype(str)),
            "poster_id": shas,
            "image_key": np.char.add(np.char.add("posters/", shas), ".webp"),
            "image_sha256": shas,
            "picture_key": shas,
        }
        numbers = {name: np.full(size, ROW[name]) for name in ("width", "height", "seed", "alpha", "synthetic")}
        scores = {name: np.full(size, ROW[name]) for name in ("score", "cs", "cis_reference", "cis_history")}
        columns = {
            **constant,
            **text,
            **numbers,
            **scores,
            "variant": variant,
            "propensity": np.where(variant == 0, 1 - (variants - 1) * 0.25, 0.25),
            "renditions": pa.array([[]] * size, POSTER_SCHEMA.field("renditions").type),
            "explored": variant > 0,
            "choice_propensity": np.ones(size),
        }
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in POSTER_SCHEMA]
        yield pa.Table.from_arrays(arrays, schema=POSTER_SCHEMA)
