"""Data of the demo and of the nano preset: pictures, films, clicks, and what is held out.

- `icons`: concepts that six openly licensed icon sets draw, and their pictures
- `posters`: what a poster is drawn from, a film's official poster, and drawing it
- `palettes`: backgrounds of posters
- `titles`: the concept that a film is about, by the words of its title or its genre
- `subjects`: the curated words that `titles` reads, from subjects.toml
- `captions`: texts that describe a picture or a film
- `movies`: MovieLens-100k, the films and their ratings
- `stickers`: simulated users of the sticker scenario
- `splits`: the (concept, style) pairs that training never sees
- `fetch`: downloads through npm and pip, at set-up time
- `errors`: the one error that all of them raise

Imports `schemas.errors`, numpy and Pillow and, to draw icons the first time, resvg-py; no torch. Imported by `generator.training.nano`
and by `deploy.local.demo`.
Everything is deterministic; `cache_dir` is the caller's, `<state_dir>/cache` in the product.

    art = load_icons(cache_dir)                 # IconArt: 1,170 concepts in six styles, pixels [1170, 6, 64, 64, 4]
    films = load_movielens(cache_dir)           # MovieLens(movies, interactions in time order)
    finder = ConceptFinder(art.concepts)
    spec = spec_for(films.movies[0], finder)    # PosterSpec(concept, style, palette), the film's official poster
    picture = draw(spec, 64, art)               # uint8 [64, 64, 3], 0.3 ms; any size from 16, 256 for the page
    text = caption(spec, art.concept(spec.concept), variant=0)
    is_held_out_pair(spec.concept, spec.style)  # True: never train on this picture
"""

from generator.datasets.captions import CAPTION_TEMPLATES, caption, description, facts_of, with_article
from generator.datasets.errors import DatasetError
from generator.datasets.fetch import Progress
from generator.datasets.icons import ICON_SIZE, STYLE_LICENCES, STYLE_NAMES, STYLES, Concept, IconArt, load_icons
from generator.datasets.movies import Interaction, Movie, MovieLens, load_movielens
from generator.datasets.palettes import PALETTES, POSTER_PALETTES
from generator.datasets.posters import PosterSpec, attributes, draw, spec_for, sticker_spec
from generator.datasets.splits import is_held_out_pair, stable_hash
from generator.datasets.stickers import StickerUser, simulate_sticker_users
from generator.datasets.titles import ConceptFinder, main_genre

__all__ = [
    "CAPTION_TEMPLATES",
    "ICON_SIZE",
    "PALETTES",
    "POSTER_PALETTES",
    "STYLES",
    "STYLE_LICENCES",
    "STYLE_NAMES",
    "Concept",
    "ConceptFinder",
    "DatasetError",
    "IconArt",
    "Interaction",
    "Movie",
    "MovieLens",
    "PosterSpec",
    "Progress",
    "StickerUser",
    "attributes",
    "caption",
    "description",
    "draw",
    "facts_of",
    "is_held_out_pair",
    "load_icons",
    "load_movielens",
    "main_genre",
    "simulate_sticker_users",
    "spec_for",
    "stable_hash",
    "sticker_spec",
    "with_article",
]
