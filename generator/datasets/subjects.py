"""The curated words of `subjects.toml`: which concept stands for which film, title word or genre."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def _inverted(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {entry: slug for slug, entries in table.items() for entry in entries}


_TABLES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("subjects.toml").read_text(encoding="utf-8"))

FILM_PHRASES: dict[str, str] = _inverted(_TABLES["films"])
"""Words of a film's title -> slug."""

TITLE_WORDS: dict[str, str] = _inverted({slug: words.split() for slug, words in _TABLES["words"].items()})
"""Word -> slug."""

STOP_WORDS: frozenset[str] = frozenset(_TABLES["stop_words"].split())

GENRE_POOLS: dict[str, tuple[str, ...]] = {genre: tuple(text.split()) for genre, text in _TABLES["pools"].items()}
"""Genre, or "none" -> slugs."""

GENRES_BY_WEIGHT: tuple[str, ...] = tuple(_TABLES["genres_by_weight"])
