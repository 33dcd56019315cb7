"""The demo's and the nano preset's data: pictures that may be drawn freely, films, clicks, and what is held out.

Lives here: downloading (`fetch`), icon art (`icons`), films and ratings (`movies`), what a film's poster shows
(`titles`), how it looks (`palettes`, `posters`), text (`captions`), held-out truth (`splits`), simulated users
(`stickers`). Needs numpy, Pillow and, to draw icons the first time, resvg-py; no torch. Imported by
`generator.training`, by `deploy.local` for the demo's catalogue, and by `generator.cli`; imports nothing else of the project.

In short:

    art = load_icons(cache_dir)                 # IconArt: 1,170 concepts in six styles, pixels [1170, 6, 64, 64, 4]
    films = load_movielens(cache_dir)           # MovieLens(movies, interactions in time order)
    finder = ConceptFinder(art.concepts)
    spec = spec_for(films.movies[0], finder)    # PosterSpec(concept, style, palette), the film's official poster
    picture = draw(spec, 64, art)               # uint8 [64, 64, 3], 0.3 ms; any size from 16, 256 for the page
    text = caption(spec, art.concept(spec.concept), variant=0)
    is_held_out_pair(spec.concept, spec.style)  # True: never train on this picture

`cache_dir` is the caller's (`<state_dir>/cache` in the product). Everything is deterministic.
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
