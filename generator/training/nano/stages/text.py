"""Byte-level BPE for titles, descriptions and captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from generator.datasets.captions import CAPTION_TEMPLATES, caption, description
from generator.datasets.icons import STYLES, load_icons
from generator.datasets.movies import load_movielens
from generator.datasets.palettes import PALETTES
from generator.datasets.posters import PosterSpec, spec_for
from generator.datasets.titles import ConceptFinder

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")


def corpus(cache_dir: Path) -> Iterator[str]:
    """All texts that the model will read: film titles and descriptions, captions of every concept."""
    art = load_icons(cache_dir)
    finder = ConceptFinder(art.concepts)
    for movie in load_movielens(cache_dir).movies:
        yield movie.title
        yield description(movie, art.concept(spec_for(movie, finder).concept))
    styles, palettes = sorted(STYLES), sorted(PALETTES)
    for number, concept in enumerate(art.concepts):
        for variant in range(len(CAPTION_TEMPLATES)):
            style, palette = styles[(number + variant) % len(styles)], palettes[(number + variant) % len(palettes)]
            yield caption(PosterSpec(concept.slug, style, palette), concept, variant)


def train_text_tokenizer(cache_dir: Path, size: int, path: Path) -> Tokenizer:
    """Train a tokenizer of at most `size` ids on `corpus` and write it as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(cache_dir), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer
