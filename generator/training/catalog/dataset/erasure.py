"""The end of an erased user's windows.

A new version without the user takes the data set's place, and the old one's bytes go.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from generator.training.catalog.dataset.build import finish
from generator.training.catalog.dataset.files import microseconds
from generator.training.catalog.dataset.manifest import (
    SPLITS,
    TRAINING,
    DatasetManifest,
    Split,
    entries,
    read_manifest,
)
from generator.training.catalog.dataset.reader import Dataset
from generator.training.catalog.dataset.shards import WindowWriter, read_rows
from generator.training.catalog.dataset.windows import Window
from schemas.errors import Refused


def users_of(folder: Path, among: Collection[str]) -> set[str]:
    """Which of some users a data set has windows of."""
    dataset = Dataset(folder, read_manifest(folder))
    return {str(row["user_id"]) for split in SPLITS for row in dataset.rows(split, ["user_id"])} & set(among)


def without_users(folder: Path, users: Collection[str], read_at: datetime | None = None) -> DatasetManifest:
    """Replace a data set's folder by one without some users' windows; returns its manifest.

    The new folder is complete before the old one goes; a death before that leaves the old one, and another call begins again.

    Raises:
        Refused: no window would be left of a split.
    """
    old = read_manifest(folder)
    partial = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for entry in old.files:
        if not entry.path.startswith("windows/"):
            (partial / entry.path).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / entry.path, partial / entry.path)
    if (folder / "redrawn.webp").is_file():
        shutil.copyfile(folder / "redrawn.webp", partial / "redrawn.webp")
    rows, counts = _rewritten(Dataset(folder, old), partial, users)
    rows |= {entry.path: entry.rows for entry in old.files if not entry.path.startswith("windows/")}
    if not all(counts[f"{split}_windows"] for split in SPLITS):
        shutil.rmtree(partial)
        raise Refused(
            f"{folder}: without the erased users a split has no windows; delete the data set and build another"
        )
    manifest = old.model_copy(
        update={
            "files": entries(partial, rows),
            "counts": {**old.counts, **counts},
            "supersedes": old.dataset_id,
            "read_at": read_at or old.read_at,
        }
    )
    return finish(partial, folder, manifest)


def _rewritten(dataset: Dataset, target: Path, users: Collection[str]) -> tuple[dict[str, int], dict[str, int]]:
    writer, seen = WindowWriter(target), {split: set[str]() for split in SPLITS}
    for split, window in _windows(dataset):
        if window.user_id not in users:
            writer.add(split, window)
            seen[split].add(window.user_id)
    rows = writer.close()
    counts = {
        f"{split}_windows": sum(n for p, n in rows.items() if p.startswith(f"windows/{split}-")) for split in SPLITS
    }
    if "train_users" in dataset.manifest.counts:
        counts |= {f"{split}_users": len(seen[split]) for split in SPLITS}
    return rows, counts


def _windows(dataset: Dataset) -> Iterator[tuple[Split, Window]]:
    for split in SPLITS:
        for path in dataset.manifest.paths(f"windows/{split}-"):
            for row in read_rows(dataset.folder / path):
                yield split, _window(row)


def _window(row: dict[str, Any]) -> Window:
    codes = None if row["target_codes"] is None else tuple(row["target_codes"])
    return Window(
        row["user_id"],
        microseconds(row["occurred_at"]),
        tuple(row["history"]),
        row["reference"],
        codes,
        row["target_image"],
    )


def trained_on(dataset_id: str, trainings: Path) -> list[Path]:
    """Folders of trainings below a folder that learned from a data set."""
    paths = sorted(trainings.rglob(TRAINING)) if trainings.is_dir() else []
    return [path.parent for path in paths if json.loads(path.read_text(encoding="utf-8")).get("dataset") == dataset_id]
