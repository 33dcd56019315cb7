"""Pictures of an evaluation: the α_r sweep as a plot, and a contact sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from generator.pigeon.pipeline import ImageArray
from generator.training.evaluation.extractors import Extractor, ImageArrays, Own, Pixels
from generator.training.evaluation.rows import PIGEON
from generator.training.evaluation.run import Evaluation

SHEET_ROWS = 16
"""Number of users on a contact sheet."""
GAP, HEAD = 6, 14
"""Pixels between groups of pictures, and of the line of titles above them."""
SHEET_BYTES = 150_000
"""Size of a contact sheet, at most, in bytes: it is kept with the figures and shown in their card."""


def plot_alphas(evaluation: Evaluation, folder: Path) -> None:
    """Plot the α_r sweep as folder/alpha.svg and alpha.png: a point per α_r, a panel per extractor.

    Likeness to the history is drawn over likeness to the reference.
    """
    from matplotlib.figure import Figure

    seen: Sequence[Extractor] = [e for e in evaluation.extractors if e.name != Pixels.name] or evaluation.extractors
    figure = Figure(figsize=(5.2 * len(seen), 4.2), layout="constrained")
    for axes, extractor in zip(figure.subplots(1, len(seen), squeeze=False)[0], seen, strict=True):
        for grid, names in evaluation.grids.items():
            rows = [evaluation.rows[name].estimates for name in names]
            across, up = ([row[f"{extractor.name}.{what}"] for row in rows] for what in ("reference", "history"))
            axes.errorbar(
                [e.mean for e in across],
                [e.mean for e in up],
                xerr=[[e.mean - e.low for e in across], [e.high - e.mean for e in across]],
                yerr=[[e.mean - e.low for e in up], [e.high - e.mean for e in up]],
                marker="o",
                capsize=2,
                linewidth=1,
                label=evaluation.rows[grid].title.split(",")[0],
            )
            for alpha, x, y in zip(evaluation.request.alphas, across, up, strict=True):
                axes.annotate(f"{alpha:g}", (x.mean, y.mean), xytext=(4, 4), textcoords="offset points")
        title = "own scorer (CIS)" if extractor.name == Own.name else extractor.title
        axes.set_title(f"{title}: one point per α_r, 95 % intervals", fontsize=9)
        axes.set_xlabel("semantics: 100·cosine with the reference")
        axes.set_ylabel("personalization: 100·cosine with the history")
        axes.legend(fontsize=8)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"alpha.{kind}", dpi=120)


def contact_sheet(evaluation: Evaluation, path: Path, rows: int = SHEET_ROWS) -> None:
    """Write a contact sheet as WebP, a line per sample.

    history | reference | a candidate per α_r | their best and the baselines' images | the true drawing
    """
    chosen = evaluation.samples[:rows]
    own = evaluation.grids[PIGEON]
    others = [name for name in evaluation.grids if name != PIGEON]
    drawn = [
        name for name in (*others, "no-personalization", "random-mask", "redrawn", "truth") if name in evaluation.images
    ]
    groups = [
        ("history", np.stack([[item.image for item in sample.task.history] for sample in chosen])),
        ("reference", np.stack([[sample.task.reference.image] for sample in chosen])),
        *(
            (f"mask {alpha:g}", _column(evaluation, name, len(chosen)))
            for alpha, name in zip(evaluation.request.alphas, own, strict=True)
        ),
        ("best", _column(evaluation, PIGEON, len(chosen))),
        *((name, _column(evaluation, name, len(chosen))) for name in drawn),
    ]
    side = chosen[0].task.reference.image.shape[0]
    width = sum(side * images.shape[1] + GAP for _, images in groups) - GAP
    sheet = Image.new("RGB", (width, HEAD + side * len(chosen)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=9)
    left = 0
    for head, images in groups:
        pen.text((left, 1), SHORT.get(head, head), fill="black", font=font)
        block: ImageArray = np.concatenate([np.concatenate(list(line), axis=1) for line in images], axis=0)
        sheet.paste(Image.fromarray(block), (left, HEAD))
        left += block.shape[1] + GAP
    path.write_bytes(webp(sheet))


def webp(image: Image.Image, limit: int = SHEET_BYTES) -> bytes:
    """The image as WebP, as good as fits into `limit` bytes; at quality 10 whatever its size."""
    found = b""
    for quality in range(95, 5, -5):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=6)
        found = buffer.getvalue()
        if len(found) <= limit:
            break
    return found


SHORT = {"no-personalization": "no history", "random-mask": "rand. mask"}
"""Titles that fit over a picture of 64 pixels."""


def _column(evaluation: Evaluation, row: str, count: int) -> ImageArrays:
    """(count, 1, S, S, 3)."""
    images: ImageArrays = evaluation.images[row][:count, None]
    return images
