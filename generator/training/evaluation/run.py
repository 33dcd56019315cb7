"""The whole evaluation: choose samples, draw every row, measure, put intervals on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from generator.pigeon.checkpoint import load_model
from generator.pigeon.model import PigeonModel
from generator.pigeon.placement import Placement
from generator.training.evaluation.bootstrap import Bootstrap, Estimate
from generator.training.evaluation.extractors import NAMES, Extractor, ImageArrays, Own, extractor
from generator.training.evaluation.gallery import Gallery
from generator.training.evaluation.measure import Judge, Measured
from generator.training.evaluation.rows import BATCH, OTHER, PIGEON, Grid, Row, baselines, sized
from generator.training.evaluation.samples import Sample, Samples
from schemas.errors import InputError

Progress = Callable[[str, int, int], None]
"""Callback that takes (what is being done, units done, units in all)."""
ALPHAS = (0.0, 0.3, 0.6, 0.9)
"""Grid of masking ratios, where none is asked for."""
ALL_BASELINES = ("no-personalization", "random-mask", "reference-copied", "random-history", "redrawn", "truth")


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, as `pigeon evaluate` is asked."""

    checkpoint: Path
    count: int = 100
    held_out: bool = True
    extractors: Sequence[str] = ("own", "efficientnet", "pixels")
    baselines: Sequence[str] = ALL_BASELINES
    alphas: Sequence[float] = ALPHAS
    compare: Path | None = None
    seed: int = 7
    placement: Placement = field(default_factory=Placement)


@dataclass(frozen=True)
class RowReport:
    name: str
    title: str
    estimates: dict[str, Estimate]
    frechet: dict[str, float]


@dataclass(frozen=True)
class Difference:
    """Row `name` minus row `minus`, of the same samples."""

    name: str
    minus: str
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    `grids`: names of the rows that are the scorer's choice over an α_r grid, each with its rows per ratio.
    """

    request: Request
    extractors: Sequence[Extractor]
    rows: dict[str, RowReport]
    differences: list[Difference]
    grids: dict[str, list[str]]
    samples: Sequence[Sample]
    images: dict[str, ImageArrays]  # row -> (n, S, S, 3)
    concepts: tuple[int, int]  # that films show, all
    looks: tuple[int, int]  # styles, palettes
    about: str  # as `Samples` has it
    seconds: dict[str, float]  # per step


def check(request: Request) -> None:
    """Check what can be known to be wrong before anything is loaded.

    Raises:
        InputError: a field of the request is wrong.
    """
    if request.count < 1:
        raise InputError(f"count: {request.count} is too few; draw 1 or more")
    check_names(request.alphas, request.baselines, ALL_BASELINES, request.extractors)


def check_names(
    alphas: Sequence[float], baselines: Sequence[str], known_baselines: Sequence[str], extractors: Sequence[str]
) -> None:
    """Check what names rows and extractors.

    Raises:
        InputError: a ratio is none or is named twice, or there is no such baseline or extractor.
    """
    if not alphas or any(not 0 <= alpha <= 1 for alpha in alphas):
        raise InputError(f"ratio: {list(alphas)} must be one or more numbers between 0 and 1")
    if len(set(alphas)) < len(alphas):
        raise InputError(f"ratio: {list(alphas)} names one twice")
    for name in baselines:
        if name not in known_baselines:
            raise InputError(f"baselines: unknown name {name!r}; one of {', '.join(known_baselines)}, or all, or none")
    for name in extractors:
        if name not in NAMES:
            raise InputError(f"extractor: unknown name {name!r}; one of {', '.join(NAMES)}")


def evaluate(request: Request, samples: Samples, folder: Path, progress: Progress) -> Evaluation:
    """Draw, measure and estimate; deterministic but for float rounding.

    folder: where vectors of real drawings are kept from one evaluation to the next.

    Raises:
        InputError: a field of the request is wrong, or the samples' data is not there.
        ModelError: a checkpoint is missing, incomplete or has no scorer.
    """
    check(request)
    samples.check()
    clock = Clock()
    model = load_model(request.checkpoint, placement=request.placement)
    own = Own(model)
    extractors = [own if name == own.name else extractor(name, model) for name in dict.fromkeys(request.extractors)]
    grids = _grids(request, model)
    chosen = samples.choose(request.count, request.seed, request.alphas, held_out=request.held_out)
    middle = request.alphas[len(request.alphas) // 2]
    known = baselines(samples, model, middle, request.seed)
    wanted = [known[name] for name in dict.fromkeys(request.baselines)]

    with clock("draw"):
        images = draw(chosen, grids, wanted, progress)
    gallery = Gallery(samples, folder)
    with clock("gallery"):
        missing = gallery.missing(
            extractors, sorted({(sample.target.style, sample.target.palette) for sample in chosen})
        )
        counted = Counted(progress, "Encode real drawings", len(missing) * len(samples.concepts))
        gallery.fill(missing, counted)
    with clock("measure"):
        judge = Judge(samples, gallery, extractors, own)
        measured = judge.measure(chosen, images, Counted(progress, "Measure", len(chosen)))
    titles = {row.name: row.title for row in wanted}
    for grid in grids:
        titles |= _choose_best(grid, measured, images)
    bootstrap = Bootstrap(len(chosen), request.seed)
    swept = {grid.name: [grid.row_name(alpha) for alpha in grid.alphas] for grid in grids}
    order = [*swept, *(name for names in swept.values() for name in names), *(row.name for row in wanted)]
    return Evaluation(
        request,
        extractors,
        {name: _reported(name, titles[name], measured, bootstrap) for name in order},
        [_difference(left, right, measured, bootstrap) for left, right in _compared(request, grids[0], middle)],
        swept,
        chosen,
        images,
        (len(samples.shown), len(samples.concepts)),
        (len(samples.styles), len(samples.palettes)),
        samples.about,
        clock.seconds,
    )


def _grids(request: Request, model: PigeonModel) -> list[Grid]:
    """The checkpoint's grid and, where another checkpoint is to be compared, that one's."""
    grids = [Grid(PIGEON, "Pigeon", model, request.alphas)]
    if request.compare is not None:
        other = load_model(request.compare, placement=request.placement)
        grids.append(Grid(OTHER, f"Pigeon of {request.compare.name}", other, request.alphas))
    return grids


def _choose_best(grid: Grid, measured: Measured, images: dict[str, ImageArrays]) -> dict[str, str]:
    """Add the row of the scorer's choice over the grid to `measured` and `images`.

    Returns the titles of the grid's rows, by name.
    """
    names = [grid.row_name(alpha) for alpha in grid.alphas]
    best = measured.choose(grid.name, names)
    images[grid.name] = np.stack([images[name] for name in names])[best, np.arange(len(best))]
    titles = {name: f"{grid.title}, α_r {alpha:g}" for name, alpha in zip(names, grid.alphas, strict=True)}
    return titles | {grid.name: f"{grid.title}, best of grid"}


def _compared(request: Request, grid: Grid, middle: float) -> list[tuple[str, str]]:
    """Pairs of rows whose difference is reported, as far as both were drawn."""
    pairs = [(PIGEON, OTHER)] if request.compare is not None else []
    if "random-mask" in request.baselines:
        pairs.append((grid.row_name(middle), "random-mask"))
    if "no-personalization" in request.baselines and 0 in request.alphas:
        pairs.append((grid.row_name(0), "no-personalization"))
    return pairs


def draw(
    chosen: Sequence[Sample], grids: Sequence[Grid], wanted: Sequence[Row], progress: Progress
) -> dict[str, ImageArrays]:
    """Draw all rows: images (n, S, S, 3) by row name, at the side of the real drawings."""
    side = chosen[0].task.reference.image.shape[0]
    parts: dict[str, list[ImageArrays]] = {}
    for start in range(0, len(chosen), BATCH):
        progress("Draw", start, len(chosen))
        part = chosen[start : start + BATCH]
        for grid in grids:
            for name, images in grid.draw(part).items():
                parts.setdefault(name, []).append(sized(images, side))
        for row in wanted:
            parts.setdefault(row.name, []).append(sized(row.draw(part), side))
    progress("Draw", len(chosen), len(chosen))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _reported(name: str, title: str, measured: Measured, bootstrap: Bootstrap) -> RowReport:
    estimates = {figure: bootstrap.mean(values) for figure, values in measured.values[name].items()}
    return RowReport(name, title, estimates, measured.frechet(name))


def _difference(left: str, right: str, measured: Measured, bootstrap: Bootstrap) -> Difference:
    ours, theirs = measured.values[left], measured.values[right]
    return Difference(left, right, {f: bootstrap.difference(ours[f], theirs[f]) for f in ours})


class Counted:
    """A progress callback of (what, done, in all) as one that takes how many more are done."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0

    def __call__(self, more: int) -> None:
        self._done += more
        self._progress(self._what, self._done, self._total)


class Clock:
    """Wall-clock seconds by step, measured by `with clock("draw")`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - start
