"""Two more icon sets, no styles of nano's, that stage `imputer` may look at.

They were drawn by others than the six, so what a set that is held out looks like is in neither; but that a thing is drawn from the
side, or with a stem, is often seen there first.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from generator.datasets.errors import DatasetError
from generator.datasets.fetch import AUXILIARY_PACKAGES, Progress, auxiliary_key, fetch_auxiliary, no_progress
from generator.datasets.icons import ICON_SIZE, Concept, Pixels, read_json, render_icon, replace_file, slug_of

FXEMOJI_NAMES: dict[str, str] = {
    "ballot-box-with-ballot": "ballottboxwithballott",
    "beach-with-umbrella": "beachumbrella",
    "blue-heart": "heartblue",
    "bullet-train": "highspeedtrainbulletnose",
    "cloud-with-lightning": "stormcloud",
    "cloud-with-rain": "raincloud",
    "confetti-ball": "confetti",
    "confused-face": "confused",
    "crying-face": "crying",
    "detective": "sleuthspy",
    "dragon": "dragonside",
    "dragon-face": "dragonhead",
    "face-screaming-in-fear": "screamfear",
    "face-with-tears-of-joy": "grintears",
    "fallen-leaf": "fallingleaf",
    "fearful-face": "fearful",
    "folded-hands": "pray",
    "fork-and-knife-with-plate": "forkknife",
    "gem-stone": "gem",
    "globe-showing-americas": "americasglobe",
    "globe-showing-europe-africa": "europeafricaglobe",
    "grinning-squinting-face": "grinsquint",
    "hamster": "hampster",
    "heart-with-arrow": "heartarrow",
    "high-heeled-shoe": "heels",
    "high-voltage": "bolt",
    "hourglass-not-done": "hourglassflowingsand",
    "latin-cross": "whitelatincross",
    "leaf-fluttering-in-wind": "leaffluttering",
    "leopard": "leopardside",
    "magnifying-glass-tilted-left": "leftmagnifyingglass",
    "magnifying-glass-tilted-right": "rightmagnifyingglass",
    "mantelpiece-clock": "manltepiececlock",
    "old-man": "gpa",
    "old-woman": "gma",
    "oncoming-fist": "fistedhand",
    "pensive-face": "pensive",
    "person-running": "running",
    "person-swimming": "swimming",
    "police-officer": "cop",
    "rabbit-face": "bunny",
    "racing-car": "racecar",
    "see-no-evil-monkey": "monkeysee",
    "skull-and-crossbones": "blackskullcrossbones",
    "sleeping-face": "sleeping",
    "smiling-face-with-heart-eyes": "hearteyes",
    "smirking-face": "smirk",
    "spouting-whale": "spurtingwhale",
    "studio-microphone": "studiomic",
    "telephone-receiver": "telephonereceiver2",
    "two-hearts": "2hearts",
    "videocassette": "videocasette",
}
"""Concept -> its name in FxEmojis, where that differs; of the concepts that films show."""


def load_auxiliary(cache_dir: Path, concepts: Sequence[Concept], progress: Progress = no_progress) -> Pixels:
    """The sets' drawings: uint8 (concepts, sets, 64, 64, 4), straight-alpha RGBA, memory-mapped.

    Zeros where a set lacks the concept.

    Raises:
        DatasetError: the sets cannot be downloaded or drawn.
    """
    target = cache_dir / f"auxiliary-{auxiliary_key()}-{ICON_SIZE}.npy"
    if not target.exists():
        source = fetch_auxiliary(cache_dir, progress)
        pixels: Pixels = np.zeros((len(concepts), len(AUXILIARY_PACKAGES), ICON_SIZE, ICON_SIZE, 4), np.uint8)
        for number, name in enumerate(AUXILIARY_PACKAGES):
            icons = read_json(source / name / "icons.json")
            found = match_names([*icons["icons"], *icons.get("aliases", {})], concepts)
            for place, concept in enumerate(concepts):
                if icon := found.get(concept.slug):
                    pixels[place, number] = render_icon(icons, icon, ICON_SIZE)
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        replace_file(target, buffer.getvalue())
    drawings: Pixels = np.load(target, mmap_mode="r")
    if len(drawings) != len(concepts):
        raise DatasetError(f"{target} has {len(drawings)} things, expected {len(concepts)}; delete it and try again")
    return drawings


def match_names(names: Sequence[str], concepts: Sequence[Concept]) -> dict[str, str]:
    """Find among `names` the icon that shows each concept: slug -> name.

    It is found by emojibase's label, Unicode's name, a name it has in the six styles or `FXEMOJI_NAMES`. Neither set publishes code
    points.
    """
    icons = {_squashed(name): name for name in reversed(names)}
    found = {}
    for concept in concepts:
        own = FXEMOJI_NAMES.get(concept.slug, "")
        for name in (concept.label, _unicode_name(concept.emoji), *concept.icons, own):
            if icon := icons.get(_squashed(name)):
                found[concept.slug] = icon
                break
    return found


def _unicode_name(emoji: str) -> str:
    characters = [character for character in emoji if character not in "\ufe0f\u200d"]
    return unicodedata.name(characters[0], "") if len(characters) == 1 else ""


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", slug_of(name))
