"""Titles as posters bear them: entities decoded, invisible characters gone, the article in front."""

from __future__ import annotations

import html
import re
import unicodedata

JOINERS = "\u200c\u200d"
"""Invisible, and part of the spelling in Persian, Indic scripts and emoji."""
_ARTICLES = r"The|A|An|Le|La|Les|L'|Un|Une|Der|Die|Das|Ein|Eine|El|Los|Las|Il|Lo|Gli|I|O|Os|As|De|Het|Den|Det"
_TURNED = re.compile(rf"^(?P<rest>[^,]+(?:, [^,]+)*?), (?P<article>{_ARTICLES})(?P<year>\s*\(\d{{4}}\))?$")
_TAIL = re.compile(r"(?<=\w)'$")


def clean_title(text: str) -> str:
    """The title in NFC, one blank between words; empty when nothing of it can be seen.

    `American President, The (1995)` becomes `The American President (1995)`.
    """
    seen = unicodedata.normalize("NFC", html.unescape(text))
    seen = "".join(_visible(character) for character in seen)
    seen = " ".join(seen.split())
    if not seen.strip(JOINERS + " "):
        return ""
    match = _TURNED.match(seen)
    if not match:
        return seen
    article = match["article"] if _TAIL.search(match["article"]) else match["article"] + " "
    return f"{article}{match['rest']}{match['year'] or ''}"


def _visible(character: str) -> str:
    if character in JOINERS:
        return character
    if character.isspace():
        return " "
    # Controls, formats (soft hyphens, zero-width blanks, directions), surrogates, private and unassigned code points.
    return "" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn") else character
