"""Text for pictures: captions to train on, and the sentence that a catalogue gives of a film."""

import re

from generator.datasets.icons import STYLE_NAMES, Concept
from generator.datasets.movies import Movie
from generator.datasets.palettes import palette_named
from generator.datasets.posters import PosterSpec

CAPTION_TEMPLATES: tuple[str, ...] = (
    "{a_label}, {style} style, {colour} with {motif}",
    "a {colour} poster of {a_label} in {style} style",
    "{label}",
    "{style} {label}: {tags}",
    "A poster with {a_label}.",
    "{facts}. A poster with {a_label}.",
    "{tags}, {style} style, {colour}",
    "{label} on a {colour} background with {motif}",
)

_POSE = re.compile(r" (tilted (left|right)|(not )?done)$")
_UNCOUNTABLE = frozenset(
    {"bacon", "biohazard", "bread", "camping", "construction", "fire", "fog", "foggy", "lightning", "radioactive"}
    | {"rain", "rice", "snow", "spaghetti", "sushi", "tennis", "voltage"}
)


def caption(spec: PosterSpec, concept: Concept, variant: int, facts: str = "") -> str:
    """A caption of the picture; `variant` chooses the template (modulo their number).

    `facts`: a film's, by `facts_of`; a template that needs it falls back to the plain one without.
    """
    palette = palette_named(spec.palette)
    template = CAPTION_TEMPLATES[variant % len(CAPTION_TEMPLATES)]
    if "{facts}" in template and not facts:
        template = "A poster with {a_label}."
    return template.format(
        a_label=with_article(concept.label),
        label=_POSE.sub("", concept.label),
        tags=", ".join(concept.tags[:4]) or concept.label,
        style=STYLE_NAMES[spec.style].lower(),
        colour=palette.words[0],
        motif=palette.words[1],
        facts=facts,
    )


def facts_of(movie: Movie) -> str:
    """Genres and year, e.g. "Action, Sci-Fi, 1977"."""
    return ", ".join([*movie.genres, *([str(movie.year)] if movie.year else [])]) or "Film"


def description(movie: Movie, concept: Concept) -> str:
    """A film's description in the catalogue, e.g. "Action, Sci-Fi, 1977. A poster with a rocket."."""
    return f"{facts_of(movie)}. A poster with {with_article(concept.label)}."


def with_article(label: str) -> str:
    """The label as a noun phrase: "an owl", "glasses", "a magnifying glass"."""
    label = _POSE.sub("", label)
    head = label.split(" with ")[0].lower()
    first, last = head.split()[0], head.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us"))
    if plural or first in ("the", "mount") or last in _UNCOUNTABLE or not label[0].isalpha():
        return label
    vowel = first.startswith("hour") or (first[0] in "aeiou" and not first.startswith(("uni", "one", "euro")))
    return f"{'an' if vowel else 'a'} {label}"
