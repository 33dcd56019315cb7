"""A whole checkpoint with a trained adapter in its own one's place, to be served."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generator.pigeon.checkpoint import PIGEON
from schemas.errors import InputError


def write_checkpoint(checkpoint: Path, adapter: Path, out: Path) -> None:
    """Write `out`: the checkpoint's files, linked where the disk allows it, and the adapter's parts.

    Raises:
        InputError: `out` is there already, or the disk is full.
    """
    if out.exists():
        raise InputError(f"{out}: is there already; give another folder")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, partial, copy_function=_linked, ignore=_without_adapter(checkpoint))
        for part in sorted(path for path in adapter.iterdir() if path.is_dir()):
            shutil.copytree(part, partial / PIGEON / part.name)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free some space and run it again"
        ) from error
    partial.rename(out)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _without_adapter(checkpoint: Path) -> Callable[[Any, list[str]], list[str]]:
    def ignored(folder: Any, names: list[str]) -> list[str]:
        # Cards say what the checkpoint's own adapter can do.
        top = Path(folder) == checkpoint
        return [name for name in names if top and (name == PIGEON or name.endswith(".md"))]

    return ignored
