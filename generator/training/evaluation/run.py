"""The whole evaluation: choose samples, draw every row, measure, put intervals on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from generator.datasets.fetch import versions_key
from generator.datasets.icons import ICON_SIZE
from generator.pigeon.checkpoint import load_model
from generator.training.evaluation.bootstrap import Bootstrap, Estimate
from generator.training.evaluation.extractors import NAMES, Extractor, ImageArrays, Own, extractor
from generator.training.evaluation.measure import Judge, Measured
from generator.training.evaluation.rows import BATCH, OTHER, PIGEON, Grid, Row, baselines, sized
from generator.training.nano.gallery import Gallery
from generator.training.nano.samples import ALPHAS, Sample, samples
from generator.training.nano.world import World
from schemas.errors import InputError

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""
ALL_BASELINES = ("no-personalization", "random-mask", "reference-copied", "random-history", "redrawn", "truth")


@dataclass(frozen=True)
class Request:
    """What `pigeon evaluate` was asked for."""

    checkpoint: Path
    count: int = 100
    held_out: bool = True
    extractors: Sequence[str] = ("own", "efficientnet", "pixels")
    baselines: Sequence[str] = ALL_BASELINES
    alphas: Sequence[float] = ALPHAS
    compare: Path | None = None
    seed: int = 7


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
    """`grids`: names of the rows that are the scorer's choice over an α_r grid, each with its rows per ratio."""

    request: Request
    extractors: Sequence[Extractor]
    rows: dict[str, RowReport]
    differences: list[Difference]
    grids: dict[str, list[str]]
    samples: Sequence[Sample]
    images: dict[str, ImageArrays]  # row -> (n, S, S, 3)
    concepts: tuple[int, int]  # that films show, all
    looks: tuple[int, int]  # styles, palettes
    seconds: dict[str, float]  # per step


def check(request: Request, cache: Path) -> None:
    """Raises InputError for what can be known to be wrong before anything is loaded."""
    if request.count < 1:
        raise InputError(f"count: {request.count} is too few; draw 1 or more")
    if not request.alphas or any(not 0 <= alpha <= 1 for alpha in request.alphas):
        raise InputError(f"ratio: {list(request.alphas)} must be one or more numbers between 0 and 1")
    if len(set(request.alphas)) < len(request.alphas):
        raise InputError(f"ratio: {list(request.alphas)} names one twice")
    for name in request.baselines:
        if name not in ALL_BASELINES:
            raise InputError(f"baselines: unknown name {name!r}; one of {', '.join(ALL_BASELINES)}, or all, or none")
    for name in request.extractors:
        if name not in NAMES:
            raise InputError(f"extractor: unknown name {name!r}; one of {', '.join(NAMES)}")
    for path in (cache / f"icons-{versions_key()}-{ICON_SIZE}.json", cache / "ml-100k"):
        if not path.exists():
            raise InputError(
                f"{path} is missing: `pigeon train stage text` fetches the data; if it is elsewhere, set PIGEON_STATE_DIR"
            )


def evaluate(request: Request, cache: Path, progress: Progress) -> Evaluation:
    """Draw, measure, estimate; deterministic but for float rounding.

    Raises:
        InputError: a field of the request is wrong, or the data is not there.
        ModelError: a checkpoint is missing, incomplete or has no scorer.
    """
    check(request, cache)
    clock = Clock()
    model = load_model(request.checkpoint)
    own = Own(model)
    extractors = [own if name == own.name else extractor(name, model) for name in dict.fromkeys(request.extractors)]
    grids = [Grid(PIGEON, "Pigeon", model, request.alphas)]
    if request.compare is not None:
        grids.append(Grid(OTHER, f"Pigeon of {request.compare.name}", load_model(request.compare), request.alphas))
    world = World(cache)
    chosen = samples(world, cache, request.count, request.seed, held_out=request.held_out, alphas=tuple(request.alphas))
    middle = request.alphas[len(request.alphas) // 2]
    known = baselines(world, model, middle, request.seed)
    wanted = [known[name] for name in dict.fromkeys(request.baselines)]

    with clock("draw"):
        images = draw(chosen, grids, wanted, progress)
    gallery = Gallery(world, cache / "evaluation")
    with clock("gallery"):
        slabs = sorted({(style, palette) for _, style, palette in (s.target.tolist() for s in chosen)})
        missing = gallery.missing(extractors, slabs)
        counted = Counted(progress, "Encode real drawings", len(missing) * len(world.concepts))
        gallery.fill(missing, counted)
    with clock("measure"):
        judge = Judge(world, gallery, extractors, own)
        measured = judge.measure(chosen, images, Counted(progress, "Measure", len(chosen)))
    titles = {row.name: row.title for row in wanted}
    alphas: dict[str, list[str]] = {}
    for grid in grids:
        alphas[grid.name] = [grid.row_name(alpha) for alpha in request.alphas]
        best = measured.choose(grid.name, alphas[grid.name])
        among = np.stack([images[row] for row in alphas[grid.name]])
        images[grid.name] = among[best, np.arange(len(chosen))]
        titles |= {grid.name: f"{grid.title}, best of grid"}
        titles |= {grid.row_name(alpha): f"{grid.title}, α_r {alpha:g}" for alpha in request.alphas}
    bootstrap = Bootstrap(len(chosen), request.seed)
    order = [*alphas, *(name for names in alphas.values() for name in names), *(row.name for row in wanted)]
    rows = {name: _reported(name, titles[name], measured, bootstrap) for name in order}
    pairs = [(PIGEON, OTHER)] if request.compare is not None else []
    if "random-mask" in titles:
        pairs.append((grids[0].row_name(middle), "random-mask"))
    if "no-personalization" in titles and 0 in request.alphas:
        pairs.append((grids[0].row_name(0), "no-personalization"))
    return Evaluation(
        request,
        extractors,
        rows,
        [_difference(left, right, measured, bootstrap) for left, right in pairs],
        alphas,
        chosen,
        images,
        (int(world.shown.sum()), len(world.concepts)),
        (len(world.styles), len(world.palettes)),
        clock.seconds,
    )


def draw(
    chosen: Sequence[Sample], grids: Sequence[Grid], wanted: Sequence[Row], progress: Progress
) -> dict[str, ImageArrays]:
    """-> pictures (n, S, S, 3) by row, at the side of the real drawings."""
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
    """Turns "so many more" into a progress of (what, done, in all)."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0

    def __call__(self, more: int) -> None:
        self._done += more
        self._progress(self._what, self._done, self._total)


class Clock:
    """`with clock("draw")`: wall-clock seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - start
