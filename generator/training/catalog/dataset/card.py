"""What is for people in a data set's folder: the card with counts and reasons, and a contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.training.catalog.dataset.manifest import SPLITS, DatasetManifest, read_manifest
from generator.training.catalog.dataset.reader import Dataset

SHEET_WINDOWS = 12
"""Windows on the contact sheet, a line each: history, then the reference behind a gap."""
TILE, GAP = 96, 12
"""Pixels of a picture on a sheet, and between groups."""
Tiles = list[npt.NDArray[np.uint8]]

SPLIT_RULE = {
    "users": "Users are divided 8:1:1 by a stable hash; no user is in two splits.",
    "both": (
        "Users are divided 8:1:1 by a stable hash, and time at the moment before which 8 of 10 windows end: "
        "training windows end before it, held-out users' windows after it."
    ),
}


def write_card(folder: Path, manifest: DatasetManifest) -> None:
    """Write card.md."""
    (folder / "card.md").write_text(card(manifest), encoding="utf-8")


def card(manifest: DatasetManifest) -> str:
    """The card as Markdown."""
    counts = manifest.counts
    lines = [
        f"# Data set {manifest.dataset_id}",
        "",
        f"Sliding windows of {manifest.history + 1} interactions: {manifest.history} items of history, and the next one, the reference.",
        f"Pictures are {manifest.image_size}x{manifest.image_size}, for the visual tokenizer {manifest.tokenizer} ({manifest.preset}).",
        f"Read at {manifest.read_at:%Y-%m-%d %H:%M} UTC."
        + (f"\nReplaces {manifest.supersedes}, of which erased users were taken out." if manifest.supersedes else ""),
        SPLIT_RULE[manifest.split_by],
        "",
        "| split | windows | users |",
        "|---|---|---|",
        *(
            f"| {split} | {counts[f'{split}_windows']:,} | {counts.get(f'{split}_users', 'as given')} |"
            for split in SPLITS
        ),
        "",
        f"{counts['items']:,} items with {counts['images']:,} different pictures.",
        "",
        "| left out | count |",
        "|---|---|",
        *(f"| {reason} | {count:,} |" for reason, count in manifest.left_out.items()),
        "",
    ]
    if manifest.redrawn:
        lines += [redrawn_line(manifest), ""]
    return "\n".join(lines)


def redrawn_line(manifest: DatasetManifest) -> str:
    """What the redraw check found, in a sentence."""
    found = manifest.redrawn
    if found is None:
        return "The checkpoint was not asked to redraw the pictures."
    return (
        f"Redrawn from their codes by the checkpoint: {found.recognised:.0%} of {found.images} pictures are nearest to their own original, "
        f"similarity {found.similarity:.1f} ({found.extractor}), SSIM {found.ssim:.3f}."
    )


def write_sheet(folder: Path) -> None:
    """Write contact-sheet.webp: the first test users' last windows."""
    dataset = Dataset(folder, read_manifest(folder))
    chosen = dataset.last_windows("test")[:SHEET_WINDOWS]
    hashes = {dataset.items[n].image for window in chosen for n in (*window.history, window.reference)}
    images = dataset.images_of(hashes)
    lines = [
        [[images[dataset.items[n].image] for n in window.history], [images[dataset.items[window.reference].image]]]
        for window in chosen
    ]
    sheet(lines).save(folder / "contact-sheet.webp", "WEBP", quality=85, method=6)


def sheet(lines: list[list[Tiles]]) -> Image.Image:
    """Pictures in lines, each of groups with a gap between."""
    across = max(sum(len(group) * TILE for group in line) + GAP * (len(line) - 1) for line in lines)
    page = Image.new("RGB", (across, TILE * len(lines)), "white")
    for number, line in enumerate(lines):
        left = 0
        for group in line:
            for tile in group:
                shown = Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.LANCZOS)
                page.paste(shown, (left, number * TILE))
                left += TILE
            left += GAP
    return page
