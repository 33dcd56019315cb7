"""The paper's protocol on a data set: held-out users, their next item, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from generator.pigeon.checkpoint import load_adapter, load_model
from generator.pigeon.model import PigeonModel
from generator.pigeon.placement import Placement
from generator.training.catalog.dataset.codes import image_codes
from generator.training.catalog.dataset.manifest import check_fits
from generator.training.catalog.dataset.reader import Dataset
from generator.training.catalog.folders import ClipFolder, DinoFolder
from generator.training.catalog.held_out import HeldOut, ReferencesAsDrawings, choose, masked_likelihood
from generator.training.evaluation.bootstrap import Bootstrap, Estimate, Values
from generator.training.evaluation.extractors import Extractor, ImageArrays, Own, as_pixels, extractor
from generator.training.evaluation.metrics import Vectors, cosines, feature_distance, frechet_distance, ms_ssim, ssim
from generator.training.evaluation.rows import PIGEON, Grid, Row, baselines, sized
from generator.training.evaluation.run import ALPHAS, Clock, Progress, RowReport, check_names, draw
from schemas.errors import InputError

UNALIGNED = "unaligned"
CATALOG_BASELINES = ("reference-copied", "random-history", "no-personalization", "random-mask", "redrawn")
TITLES = {"redrawn": "reconstruction of the reference"}
LIKELIHOOD_SEED = 5


@dataclass(frozen=True)
class CatalogRequest:
    """What is to be evaluated, as `pigeon evaluate --dataset` is asked."""

    checkpoint: Path
    adapter: Path | None = None
    """A trained adapter; the checkpoint's own then is a row beside it."""
    count: int = 60
    extractors: Sequence[str] = ("own", "efficientnet", "pixels")
    clip: Path | None = None
    dino: Path | None = None
    baselines: Sequence[str] = CATALOG_BASELINES
    alphas: Sequence[float] = ALPHAS
    seed: int = 7
    placement: Placement = field(default_factory=Placement)


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of held-out next items' masked codes, nats per code."""

    rows: Mapping[str, Estimate]
    """By what is before the codes: model and history."""
    differences: Mapping[str, Estimate]
    """Paired differences."""


@dataclass(frozen=True)
class CatalogEvaluation:
    """What an evaluation on a data set found."""

    request: CatalogRequest
    dataset_id: str
    extractors: Sequence[Extractor]
    text: str | None
    """Title of the extractor of texts; None where there is none, and CS is not measured."""
    rows: dict[str, RowReport]
    grids: dict[str, list[str]]
    differences: dict[str, dict[str, Estimate]]
    """Differences of the aligned model's rows from the unaligned one's, by row and figure."""
    likelihood: Likelihood
    chosen: Sequence[HeldOut]
    images: dict[str, ImageArrays]
    not_run: Sequence[str]
    """Metrics that need weights which were not given."""
    seconds: dict[str, float] = field(default_factory=dict)


class TextExtractor(Protocol):
    """An extractor with texts and pictures in one space."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    def texts(self, texts: Sequence[str]) -> Vectors: ...


def check(request: CatalogRequest) -> None:
    """Check what can be known to be wrong before anything is loaded.

    Raises:
        InputError: a field of the request is wrong.
    """
    if request.count < 2:
        raise InputError(f"count: {request.count} is too few; draw for 2 users or more")
    check_names(request.alphas, request.baselines, CATALOG_BASELINES, request.extractors)


def evaluate_catalog(request: CatalogRequest, dataset: Dataset, cache: Path, progress: Progress) -> CatalogEvaluation:
    """Draw, measure and estimate for held-out users of a data set.

    Raises:
        InputError: a field of the request is wrong, or the data set is for another tokenizer.
        ModelError: checkpoint or adapter cannot be loaded.
    """
    check(request)
    clock = Clock()
    models = _models(request)
    model = models[PIGEON]
    config = model.config
    check_fits(dataset.manifest, request.checkpoint, config.history, config.tokenizer.vision.image_size)
    codes = image_codes(dataset, model, cache, progress)
    chosen = choose(dataset, request.count, request.seed, request.alphas)
    extractors, text = _extractors(request, model)
    grids = [Grid(name, _title(name, request), one, request.alphas) for name, one in models.items()]
    middle = request.alphas[len(request.alphas) // 2]
    known = baselines(ReferencesAsDrawings(chosen), model, middle, request.seed)
    wanted = [known[name] for name in dict.fromkeys(request.baselines)]
    with clock("likelihood"):
        bootstrap = Bootstrap(len(chosen), request.seed)
        scores = {
            f"{name} {whose}": masked_likelihood(one, dataset, codes, chosen, shift=shift, seed=LIKELIHOOD_SEED)
            for name, one in models.items()
            for shift, whose in ((0, "own"), (1, "other"))
        }
    with clock("draw"):
        images = draw(chosen, grids, wanted, progress)
    with clock("measure"):
        values, features, truths = measure(chosen, images, extractors, text)
    swept = {grid.name: [grid.row_name(alpha) for alpha in grid.alphas] for grid in grids}
    titles = _all_titles(grids, wanted)
    rows = {
        name: RowReport(
            name,
            titles[name],
            {figure: bootstrap.mean(numbers) for figure, numbers in values[name].items()},
            {e.name: frechet_distance(features[e.name][name], truths[e.name]) for e in extractors},
        )
        for name in images
    }
    return CatalogEvaluation(
        request,
        dataset.manifest.dataset_id,
        extractors,
        None if text is None else text.title,
        rows,
        swept,
        _differences(swept, values, bootstrap),
        _likelihood(scores, bootstrap),
        chosen,
        images,
        _not_run(request),
        clock.seconds,
    )


def _models(request: CatalogRequest) -> dict[str, PigeonModel]:
    """The aligned model and, where an adapter is given, the checkpoint without it."""
    model = load_model(request.checkpoint, placement=request.placement)
    if request.adapter is None:
        return {PIGEON: model}
    load_adapter(model.personalizer, request.adapter)
    return {PIGEON: model, UNALIGNED: load_model(request.checkpoint, placement=request.placement)}


def _title(name: str, request: CatalogRequest) -> str:
    if name == UNALIGNED:
        return "checkpoint's own adapter"
    return "Pigeon" if request.adapter is None else "aligned adapter"


def _all_titles(grids: Sequence[Grid], wanted: Sequence[Row]) -> dict[str, str]:
    titles = {row.name: TITLES.get(row.name, row.title) for row in wanted}
    for grid in grids:
        titles |= {grid.row_name(alpha): f"{grid.title}, α_r {alpha:g}" for alpha in grid.alphas}
    return titles


def _extractors(request: CatalogRequest, model: PigeonModel) -> tuple[list[Extractor], TextExtractor | None]:
    """Extractors, and the one that knows texts: CLIP where it is given, else the own scorer."""
    names = [name for name in dict.fromkeys(request.extractors) if name != Own.name or model.scorer is not None]
    found: list[Extractor] = [extractor(name, model) for name in names]
    if request.clip:
        found.append(ClipFolder(request.clip))
    if request.dino:
        found.append(DinoFolder(request.dino))
    clip = next((one for one in found if isinstance(one, ClipFolder)), None)
    own = next((one for one in found if isinstance(one, Own)), None)
    return found, clip or own


def _not_run(request: CatalogRequest) -> list[str]:
    missing = [
        "LPIPS (its VGG and its learned weights are not part of this project; the feature distance of EfficientNet is)"
    ]
    missing.append("FID (Inception's weights are not; Fréchet distances are of the extractors named)")
    if request.clip is None:
        missing.append("CS and CIS by CLIP (--clip FOLDER)")
    if request.dino is None:
        missing.append("DIS by DINOv2 (--dino FOLDER)")
    return missing


Figures = dict[str, dict[str, Values]]


def measure(
    chosen: Sequence[HeldOut],
    images: Mapping[str, ImageArrays],
    extractors: Sequence[Extractor],
    text: TextExtractor | None,
) -> tuple[Figures, dict[str, dict[str, Vectors]], dict[str, Vectors]]:
    """Figures per row and sample, features per extractor and row, and the references' features.

    Figures, with X an extractor's name: `X.reference`, `X.history` (100·cosine), `X.distance` (feature distance from the history),
    `cs.reference`, `cs.history`, `ssim.history`, `ms_ssim.history`. Against the history: the mean over its pictures.
    """
    values: Figures = {row: {} for row in images}
    features: dict[str, dict[str, list[Vectors]]] = {e.name: {row: [] for row in images} for e in extractors}
    truths: dict[str, list[Vectors]] = {e.name: [] for e in extractors}
    for number, sample in enumerate(chosen):
        ours = np.stack([row[number] for row in images.values()])  # (R, S, S, 3)
        past = np.stack([item.image for item in sample.task.history])
        figures = _of_images(ours, past)
        for one in extractors:
            encoded = one.encode(np.concatenate([ours, sample.task.reference.image[None], past]))
            own, reference, history = np.split(encoded.vectors, [len(ours), len(ours) + 1])
            figures[f"{one.name}.reference"] = cosines(own, reference)[:, 0].astype(np.float64)
            figures[f"{one.name}.history"] = cosines(own, history).mean(axis=1).astype(np.float64)
            if encoded.maps:
                figures[f"{one.name}.distance"] = _distances(encoded.maps, len(ours), len(past))
            if text is not None and one.name == text.name:
                words = text.texts([i.description or i.title for i in (sample.task.reference, *sample.task.history)])
                fit = cosines(own, words).astype(np.float64)
                figures |= {"cs.reference": fit[:, 0], "cs.history": fit[:, 1:].mean(axis=1)}
            truths[one.name].append(reference[0])
            for place, row in enumerate(images):
                features[one.name][row].append(own[place])
        for figure, numbers in figures.items():
            for row, value in zip(images, numbers.tolist(), strict=True):
                values[row].setdefault(figure, np.zeros(len(chosen)))[number] = value
    return (
        values,
        {name: {row: np.stack(of) for row, of in rows.items()} for name, rows in features.items()},
        {name: np.stack(of) for name, of in truths.items()},
    )


def _of_images(ours: ImageArrays, past: ImageArrays) -> dict[str, Values]:
    left = as_pixels(ours).repeat_interleave(len(past), dim=0)
    right = as_pixels(sized(past, ours.shape[1])).repeat(len(ours), 1, 1, 1)
    return {
        "ssim.history": ssim(left, right).view(len(ours), -1).mean(dim=1).double().numpy(),
        "ms_ssim.history": ms_ssim(left, right).view(len(ours), -1).mean(dim=1).double().numpy(),
    }


def _distances(maps: Sequence[Tensor], rows: int, items: int) -> Values:
    ours = [layer[:rows].repeat_interleave(items, dim=0) for layer in maps]
    past = [layer[rows + 1 :].repeat(rows, 1, 1, 1) for layer in maps]
    out: Values = feature_distance(ours, past).view(rows, items).mean(dim=1).double().numpy()
    return out


def _differences(swept: dict[str, list[str]], values: Figures, bootstrap: Bootstrap) -> dict[str, dict[str, Estimate]]:
    if UNALIGNED not in swept:
        return {}
    return {
        ours: {f: bootstrap.difference(values[ours][f], values[theirs][f]) for f in values[ours]}
        for ours, theirs in zip(swept[PIGEON], swept[UNALIGNED], strict=True)
    }


def _likelihood(scores: Mapping[str, Values], bootstrap: Bootstrap) -> Likelihood:
    differences = {
        "own history − another user's": bootstrap.difference(scores[f"{PIGEON} own"], scores[f"{PIGEON} other"])
    }
    if f"{UNALIGNED} own" in scores:
        differences["aligned − not aligned"] = bootstrap.difference(scores[f"{PIGEON} own"], scores[f"{UNALIGNED} own"])
        differences["own − another's, not aligned"] = bootstrap.difference(
            scores[f"{UNALIGNED} own"], scores[f"{UNALIGNED} other"]
        )
    return Likelihood({name: bootstrap.mean(numbers) for name, numbers in scores.items()}, differences)
