"""Poster art, its text, held-out truth and simulated users."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from generator.datasets import (
    CAPTION_TEMPLATES,
    PALETTES,
    POSTER_PALETTES,
    STYLES,
    Concept,
    ConceptFinder,
    DatasetError,
    IconArt,
    Movie,
    PosterSpec,
    attributes,
    caption,
    description,
    draw,
    facts_of,
    is_held_out_pair,
    simulate_sticker_users,
    spec_for,
    sticker_spec,
    with_article,
)
from generator.datasets.posters import PALETTES_OF_GENRE, STYLE_OF_GENRE
from generator.datasets.subjects import GENRE_POOLS

ROCKET = Concept("rocket", "rocket", ("launch", "space"), "travel-places", "transport-air", "🚀", ("rocket",) * 6)


@pytest.fixture(scope="module")
def art() -> IconArt:
    """One concept: a black disc in every style."""
    rows, columns = np.mgrid[:64, :64]
    pixels = np.zeros((1, 6, 64, 64, 4), np.uint8)
    pixels[..., 3] = np.where((rows - 31.5) ** 2 + (columns - 31.5) ** 2 < 30**2, 255, 0)
    return IconArt([ROCKET], pixels, Path("unused"))


def test_a_film_always_gets_the_same_poster() -> None:
    finder = ConceptFinder([ROCKET])
    film = Movie("50", "The Rocket", 1977, ("Action", "Adventure", "Romance", "Sci-Fi", "War"))
    assert spec_for(film, finder) == PosterSpec("rocket", "twemoji", "midnight")
    assert spec_for(Movie("50", "The Rocket", 1997, film.genres), finder).palette == "ocean"
    with pytest.raises(DatasetError, match="no concept for the genre 'Western'"):
        spec_for(Movie("1", "Unnamed", 1950, ("Western",)), finder)


def test_every_genre_has_a_style_and_palettes_and_every_style_is_used() -> None:
    assert set(STYLE_OF_GENRE) == set(PALETTES_OF_GENRE) == set(GENRE_POOLS)
    assert set(STYLE_OF_GENRE.values()) == set(STYLES)
    assert {palette for row in PALETTES_OF_GENRE.values() for palette in row} == set(POSTER_PALETTES)


def test_backgrounds_differ_clearly(art: IconArt) -> None:
    corners = {name: draw(PosterSpec("rocket", "noto", name), 64, art).astype(float) for name in PALETTES}
    names = list(corners)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            assert np.abs(corners[first] - corners[second]).mean() > 10, f"{first} looks like {second}"


@pytest.mark.parametrize("palette", PALETTES)
def test_line_art_stands_off_every_background(art: IconArt, palette: str) -> None:
    spec = PosterSpec("rocket", "fluent-emoji-high-contrast", palette)
    image = draw(spec, 64, art).astype(float)
    assert image.shape == (64, 64, 3)
    inside, edge = image[30:34, 30:34].mean(), image[31:33, 7].mean()
    assert abs(inside - edge) > 60


def test_drawing_is_exact_and_leaves_the_cached_background_alone(art: IconArt) -> None:
    spec = PosterSpec("rocket", "noto", "lemon")
    first = draw(spec, 64, art)
    draw(PosterSpec("rocket", "twemoji", "lemon"), 64, art)
    assert np.array_equal(draw(spec, 64, art), first)
    assert first.dtype == np.uint8


def test_stickers_are_on_plain_white(art: IconArt) -> None:
    image = draw(sticker_spec("rocket", "noto"), 64, art)
    assert (image[:4] == 255).all()
    assert (image[32, 32] == 0).all()


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        (PosterSpec("rocket", "noto", "beige"), 64, "no palette 'beige'; one of sunset"),
        (PosterSpec("rocket", "oil", "noir"), 64, "no style 'oil'"),
        (PosterSpec("sofa", "noto", "noir"), 64, "no concept 'sofa'"),
        (PosterSpec("rocket", "noto", "noir"), 8, "size 8 is too small"),
    ],
)
def test_what_cannot_be_drawn_is_named(art: IconArt, spec: PosterSpec, size: int, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        draw(spec, size, art)


def test_art_is_labelled_synthetic_with_its_licence() -> None:
    labels = attributes(PosterSpec("rocket", "twemoji", "noir"))
    assert (labels["synthetic"], labels["art"], labels["licence"]) == (True, "Twemoji", "CC-BY-4.0")


def test_text_tells_what_is_drawn() -> None:
    film = Movie("50", "Star Wars", 1977, ("Action", "Sci-Fi"))
    spec = PosterSpec("rocket", "twemoji", "midnight")
    assert description(film, ROCKET) == "Action, Sci-Fi, 1977. A poster with a rocket."
    texts = [caption(spec, ROCKET, variant, facts_of(film)) for variant in range(len(CAPTION_TEMPLATES))]
    assert len(set(texts)) == len(texts)
    assert texts[0] == "a rocket, twemoji style, indigo night with stars"
    assert not any("{" in text for text in texts)
    assert facts_of(Movie("1", "x", None, ())) == "Film"
    assert "." not in caption(spec, ROCKET, 5)[:-1], "without facts the sentence on them is left out"


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("glasses", "glasses"),
        ("octopus", "an octopus"),
        ("smiling face with sunglasses", "a smiling face with sunglasses"),
        ("magnifying glass tilted right", "a magnifying glass"),
        ("hourglass not done", "an hourglass"),
        ("fire", "fire"),
        ("1st place medal", "1st place medal"),
    ],
)
def test_labels_read_as_noun_phrases(label: str, phrase: str) -> None:
    assert with_article(label) == phrase


def test_a_tenth_is_held_out_for_good() -> None:
    held = [is_held_out_pair(f"concept-{number}", style) for number in range(1000) for style in STYLES]
    assert 480 < sum(held) < 720
    # Checkpoints are trained on this split: these must never change sides.
    assert [is_held_out_pair("rocket", style) for style in STYLES] == [True, True, False, False, True, False]


def test_simulated_users_follow_their_taste_but_for_the_noise() -> None:
    concepts = [f"concept-{number}" for number in range(100)]
    users = simulate_sticker_users(concepts, users=200, clicks_per_user=40, seed=3)
    assert users == simulate_sticker_users(concepts, users=200, clicks_per_user=40, seed=3)
    clicks = [(user, click) for user in users for click in user.clicks]
    off_taste = sum(style not in user.styles for user, (_, style) in clicks) / len(clicks)
    assert 0.12 < off_taste < 0.18
    assert {len(user.styles) for user in users} == {1, 2}
    assert all(len({concept for concept, _ in user.clicks}) == 40 for user in users)
    with pytest.raises(DatasetError, match="clicks_per_user=3 exceeds the 2 concepts"):
        simulate_sticker_users(["a", "b"], users=1, clicks_per_user=3, seed=0)


def test_the_package_needs_no_torch() -> None:
    code = "import sys, generator.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
