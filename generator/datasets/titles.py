"""What a film is about, as one drawable concept: from the words of its title, else from its genres."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from generator.datasets.errors import DatasetError
from generator.datasets.icons import Concept
from generator.datasets.movies import Movie
from generator.datasets.splits import stable_hash
from generator.datasets.subjects import FILM_PHRASES, GENRE_POOLS, GENRES_BY_WEIGHT, STOP_WORDS, TITLE_WORDS

Words = tuple[str, ...]

_FILLER = frozenset({"face", "with", "symbol", "sign", "button", "and", "of", "the", "in", "on", "a", "s"})
_GROUP_RANK = (
    "animals-nature",
    "objects",
    "travel-places",
    "food-drink",
    "activities",
    "people-body",
    "smileys-emotion",
)


_SUBTITLE = re.compile(r": | - |[()]")
_PREPOSITIONS = frozenset(
    {"of", "on", "in", "with", "at", "to", "for", "from", "under", "over", "by", "about", "without"}
)


def words_of(text: str) -> list[str]:
    """Lower-case words without accents; apostrophes stay inside."""
    plain = unicodedata.normalize("NFKD", text.replace("’", "'")).encode("ascii", "ignore").decode().lower()
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)*", plain)


def main_genre(movie: Movie) -> str:
    """The most telling of the film's genres, or "none"."""
    return next((genre for genre in GENRES_BY_WEIGHT if genre in movie.genres), "none")


class ConceptFinder:
    """Chooses one concept for a film; the same film always has the same one."""

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self._drawn = {concept.slug for concept in concepts}
        ranked = [concept for concept in concepts if concept.group in _GROUP_RANK]
        ranked.sort(key=lambda concept: (len(words_of(concept.label)), _GROUP_RANK.index(concept.group)))
        self._by_word: dict[str, str] = {}
        self._phrases: dict[Words, str] = {}
        for concept in ranked:
            words = tuple(words_of(concept.label))
            content = [word for word in words if word not in _FILLER]
            # Only a label's whole content may stand for a word: "police car" is not what "car" looks like.
            if len(content) == 1 and content[0] not in STOP_WORDS:
                self._by_word.setdefault(content[0], concept.slug)
            if len(words) > 1:
                self._phrases.setdefault(words, concept.slug)
        self._by_word |= {word: slug for word, slug in TITLE_WORDS.items() if slug in self._drawn}
        self._phrases |= {tuple(words_of(name)): slug for name, slug in FILM_PHRASES.items() if slug in self._drawn}
        self._longest = max(map(len, self._phrases), default=0)

    def for_movie(self, movie: Movie) -> tuple[str, str]:
        """A film's concept and where it comes from: (slug, "title" or "genre").

        Genre pools are walked by a hash of the id.

        Raises:
            DatasetError: no concept of the film's genre is drawn, as with an icon set that is not ours.
        """
        if slug := self.from_title(movie.title):
            return slug, "title"
        genre = main_genre(movie)
        pool = [slug for slug in GENRE_POOLS[genre] if slug in self._drawn]
        if not pool:
            raise DatasetError(f"no concept for the genre {genre!r} among {len(self._drawn)}; add one to GENRE_POOLS")
        return pool[stable_hash("pool", movie.item_id) % len(pool)], "genre"

    def from_title(self, title: str) -> str | None:
        """Slug of the concept that the title names, or None.

        A known phrase decides, the longest first. Otherwise the parts of the title are asked in turn, the main title
        before a subtitle, and in each what stands before a preposition ("The Bridge on the River Kwai" is a bridge);
        within a part the last word, where English puts the noun.
        """
        words = words_of(title)
        for length in range(min(self._longest, len(words)), 0, -1):
            for start in range(len(words) - length + 1):
                # A phrase of one word is a whole title: "Michael" is an angel, "Michael Collins" is not.
                if (length > 1 or len(words) == 1) and (
                    slug := self._phrases.get(tuple(words[start : start + length]))
                ):
                    return slug
        for part in _SUBTITLE.split(title):
            for clause in _clauses(words_of(part)):
                for word in reversed(clause):
                    if slug := self._word(word):
                        return slug
        return None

    def _word(self, word: str) -> str | None:
        forms = [word, word.removesuffix("'s")]
        if len(word) > 3 and word.endswith("s"):
            forms += [word[:-1], word.removesuffix("es"), word.removesuffix("ies") + "y"]
        return next((self._by_word[form] for form in forms if form not in STOP_WORDS and form in self._by_word), None)


def _clauses(words: Sequence[str]) -> Iterator[list[str]]:
    """The words between prepositions."""
    clause: list[str] = []
    for word in words:
        if word in _PREPOSITIONS:
            yield clause
            clause = []
        else:
            clause.append(word)
    yield clause
