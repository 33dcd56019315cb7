"""What is asked of the machine that draws, for `pigeon doctor`: disk, fonts, safety model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from generator.nightly.wording import counted
from schemas.runtime.checkup import Finding, Probe, ok, warn, wrong
from schemas.settings import Settings

AREA = "machine"
LEAST_BYTES = 2**30
"""Bytes that must be free where the state folder is: a night's shards, caches and logs."""


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = _existing(settings.state_dir)
    if not os.access(folder, os.W_OK):
        yield wrong(
            AREA,
            "state_dir",
            f"{settings.state_dir} cannot be written by this user",
            "choose another by PIGEON_STATE_DIR",
        )
        return
    free = shutil.disk_usage(folder).free
    wanted = settings.images.cache_mib * 2**20
    told = f"{free / 2**30:.1f} GiB free at {settings.state_dir}"
    if free < LEAST_BYTES:
        yield wrong(AREA, "disk", told, f"make room: a night needs {LEAST_BYTES / 2**30:.0f} GiB and more")
    elif free < LEAST_BYTES + wanted:
        yield warn(
            AREA, "disk", told, f"the cache of pictures may take {wanted / 2**30:.1f} GiB more (images.cache_mib)"
        )
    else:
        yield ok(AREA, "disk", told)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that there is."""
    absolute = folder.absolute()
    return next(one for one in (absolute, *absolute.parents) if one.exists())


def _fonts(settings: Settings) -> Iterator[Finding]:
    from schemas.typefaces import Typefaces, can_shape

    faces = Typefaces(settings.night.font, settings.night.fonts)
    fonts = counted(len(faces.files), "font")
    yield ok(AREA, "fonts", f"{fonts}, titles begin with {faces.files[0].name}")
    if not can_shape():
        mend = "apt-get install libfribidi0"
        yield warn(AREA, "fonts", "Arabic, Hebrew and Indic titles cannot be shaped and get no posters", mend)


def _safety(settings: Settings) -> Iterator[Finding]:
    from generator.safety.open_nsfw import load_check

    check = load_check(settings.safety)
    if check is None:
        yield warn(
            AREA, "safety", "no model looks for unsafe pictures", "PIGEON_SAFETY__ENABLED=true with the extra `safety`"
        )
    else:
        yield ok(AREA, "safety", f"{check.judge.version}, unsafe from {check.threshold}")


PROBES = (
    Probe(AREA, "disk", _disk, seconds=10.0),
    Probe(AREA, "fonts", _fonts, seconds=30.0),
    Probe(AREA, "safety", _safety, seconds=30.0),
)
