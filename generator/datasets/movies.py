"""MovieLens-100k: the demo's catalogue and its clicks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from generator.datasets.errors import DatasetError
from generator.datasets.fetch import Progress, fetch_movies, no_progress

ARTICLES = ("The", "A", "An", "Les", "La", "Le", "L'", "Das", "Der", "Die", "Il", "El", "Det", "O")

_LETTERS_INVERTED = re.compile(rf"^(?P<rest>.+), (?P<article>{'|'.join(ARTICLES)})$")
_ORIGINAL_TITLE = re.compile(r"^(?P<main>.*\S)\s*\((?P<other>[^()]*)\)$")


@dataclass(frozen=True)
class Movie:
    """One film. `year` is None for the one item whose year the data set does not know."""

    item_id: str
    title: str
    year: int | None
    genres: tuple[str, ...]


@dataclass(frozen=True)
class Interaction:
    """One rating, 1 to 5; `timestamp` in seconds since 1970, UTC (1997-09 to 1998-04)."""

    user_id: str
    item_id: str
    rating: int
    timestamp: int


@dataclass(frozen=True)
class MovieLens:
    """Films in the order of their ids, ratings in time order."""

    movies: tuple[Movie, ...]
    interactions: tuple[Interaction, ...]


def load_movielens(cache_dir: Path, progress: Progress = no_progress) -> MovieLens:
    """MovieLens-100k from the cache, downloaded at the first call.

    Item 267, of which the data set knows neither title nor year nor genre, is left out together with its ratings.

    Raises:
        DatasetError: the data set cannot be downloaded or read.
    """
    folder = fetch_movies(cache_dir, progress)
    movies = [movie for movie in map(_movie, _rows(folder / "ml-100k.item", 4)) if movie is not None]
    known = {movie.item_id for movie in movies}
    interactions = [
        Interaction(user, item, int(float(rating)), int(float(timestamp)))
        for user, item, rating, timestamp in _rows(folder / "ml-100k.inter", 4)
        if item in known
    ]
    movies.sort(key=lambda movie: int(movie.item_id))
    interactions.sort(key=lambda row: (row.timestamp, int(row.user_id), int(row.item_id)))
    return MovieLens(tuple(movies), tuple(interactions))


def readable_title(raw: str) -> str:
    """Undo the catalogue order of titles: "Matrix, The" -> "The Matrix", also inside "(Original, The)"."""
    if match := _ORIGINAL_TITLE.match(raw):
        return f"{readable_title(match['main'])} ({readable_title(match['other'])})"
    if match := _LETTERS_INVERTED.match(raw):
        article, rest = match["article"], match["rest"]
        return f"{article}{rest}" if article.endswith("'") else f"{article} {rest}"
    return raw


def _movie(row: list[str]) -> Movie | None:
    item_id, title, year, genres = row
    if title == "unkonwn":  # sic, in the data set
        return None
    return Movie(
        item_id=item_id,
        title=readable_title(title.strip()),
        year=int(year) if year.isdecimal() else None,
        genres=tuple(genre for genre in genres.split() if genre != "unknown"),
    )


def _rows(path: Path, columns: int) -> Iterator[list[str]]:
    """Rows of a tab-separated RecBole "atomic file", without its header."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}; delete {path.parent} and try again") from error
    for number, line in enumerate(lines[1:], start=2):
        row = line.split("\t")
        if len(row) != columns:
            raise DatasetError(f"{path}:{number}: {len(row)} columns, expected {columns}; delete {path.parent}")
        yield row
