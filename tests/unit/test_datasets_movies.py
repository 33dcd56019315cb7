"""MovieLens rows, titles made readable, and what a film's poster is about."""

import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from generator.datasets import Concept, ConceptFinder, DatasetError, Movie, load_movielens, main_genre, subjects
from generator.datasets.movies import readable_title
from generator.datasets.subjects import FILM_PHRASES, GENRE_POOLS, GENRES_BY_WEIGHT, TITLE_WORDS

ITEMS = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
2\tMisérables, Les\t1995\tDrama Musical
1\tToy Story\t1995\tAnimation Children's Comedy
267\tunkonwn\tunkonwn\tunknown
1373\tGood Morning\tV\tunknown
"""
RATINGS = """user_id:token\titem_id:token\trating:float\ttimestamp:float
7\t1\t4\t900
7\t267\t5\t100
6\t2\t3\t800
"""


def write_movielens(folder: Path, items: str = ITEMS) -> Path:
    (folder / "ml-100k").mkdir()
    (folder / "ml-100k/ml-100k.item").write_text(items, encoding="utf-8")
    (folder / "ml-100k/ml-100k.inter").write_text(RATINGS, encoding="utf-8")
    return folder


def test_films_and_ratings_are_read_in_order(tmp_path: Path) -> None:
    data = load_movielens(write_movielens(tmp_path))
    assert data.movies[0] == Movie("1", "Toy Story", 1995, ("Animation", "Children's", "Comedy"))
    assert data.movies[1].title == "Les Misérables"
    assert data.movies[2] == Movie("1373", "Good Morning", None, ())
    assert [(row.user_id, row.item_id, row.rating, row.timestamp) for row in data.interactions] == [
        ("6", "2", 3, 800),
        ("7", "1", 4, 900),
    ], "ratings of the nameless item are left out"


def test_a_broken_row_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"ml-100k\.item:6: 2 columns, expected 4"):
        load_movielens(write_movielens(tmp_path, ITEMS + "9\tHalf a row\n"))


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        ("Matrix, The", "The Matrix"),
        ("Paris, Texas", "Paris, Texas"),
        ("Enfer, L'", "L'Enfer"),
        ("Blue Angel, The (Blaue Engel, Der)", "The Blue Angel (Der Blaue Engel)"),
        ("Seven (Se7en)", "Seven (Se7en)"),
        ("Cook the Thief His Wife & Her Lover, The", "The Cook the Thief His Wife & Her Lover"),
    ],
)
def test_titles_are_put_back_in_reading_order(raw: str, title: str) -> None:
    assert readable_title(raw) == title


def concepts(slugs: Iterable[str]) -> list[Concept]:
    return [
        Concept(slug, slug.replace("-", " "), (), "objects", "things", "?", (slug,) * 6)
        for slug in dict.fromkeys(slugs)
    ]


@pytest.fixture(scope="module")
def finder() -> ConceptFinder:
    named = {*FILM_PHRASES.values(), *TITLE_WORDS.values(), *(slug for pool in GENRE_POOLS.values() for slug in pool)}
    return ConceptFinder(concepts(sorted(named)))


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("Star Wars", "milky-way"),  # a phrase wins over "star" and "wars"
        ("Dante's Peak", "volcano"),
        ("The Bridge on the River Kwai", "bridge-at-night"),  # before the preposition
        ("Star Trek IV: The Voyage Home", "spouting-whale"),
        ("Ghosts of Mississippi", "ghost"),  # plural
        ("Bram Stoker's Dracula", "bat"),
        ("Michael", "baby-angel"),
        ("Michael Collins", None),  # a phrase of one word is a whole title
        ("True Colours", None),
        ("", None),
    ],
)
def test_what_a_title_names(finder: ConceptFinder, title: str, slug: str | None) -> None:
    assert finder.from_title(title) == slug


def test_a_title_without_a_picture_takes_one_of_its_genre(finder: ConceptFinder) -> None:
    films = [Movie(str(number), "Kolberg", 1990, ("Drama", "Western")) for number in range(60)]
    found = [finder.for_movie(film) for film in films]
    assert {source for _, source in found} == {"genre"}
    assert {slug for slug, _ in found} == set(GENRE_POOLS["Western"]), (
        "films of one genre differ, and use all of its pool"
    )
    assert [finder.for_movie(film) for film in films] == found
    assert finder.for_movie(Movie("1", "Kolberg", None, ()))[0] in GENRE_POOLS["none"]


def test_the_most_telling_genre_decides() -> None:
    assert main_genre(Movie("1", "x", None, ("Drama", "Comedy", "Horror"))) == "Horror"
    assert main_genre(Movie("1", "x", None, ())) == "none"
    assert {*GENRES_BY_WEIGHT, "none"} == set(GENRE_POOLS)


def test_no_word_stands_for_two_pictures() -> None:
    tables = tomllib.loads(Path(subjects.__file__).with_name("subjects.toml").read_text(encoding="utf-8"))
    words = Counter(word for text in tables["words"].values() for word in text.split())
    films = Counter(film for entries in tables["films"].values() for film in entries)
    assert [entry for entry, count in (words + films).items() if words[entry] > 1 or films[entry] > 1] == []
