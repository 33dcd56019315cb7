"""Tables, JSON and contact sheet of an evaluation on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from generator.training.catalog.dataset.card import sheet
from generator.training.catalog.evaluation import UNALIGNED, CatalogEvaluation
from generator.training.evaluation.bootstrap import Estimate
from generator.training.evaluation.extractors import Extractor, Own
from generator.training.evaluation.report import Figure, Text, history_figures, reference_figures
from generator.training.evaluation.rows import PIGEON
from generator.training.evaluation.run import RowReport

FORMAT_VERSION = 1
SHEET_USERS = 12
BEFORE = {
    f"{PIGEON} own": "own history",
    f"{PIGEON} other": "another user's history",
    f"{UNALIGNED} own": "own history, checkpoint's own adapter",
    f"{UNALIGNED} other": "another user's history, checkpoint's own adapter",
}


def tables(found: CatalogEvaluation) -> list[Text]:
    """Likeness to reference and history, the aligned model's differences, and the likelihood."""
    rows = list(found.rows.values())
    with_text = found.text is not None
    reference = [f for f in reference_figures(found.extractors) if with_text or f.key != "cs.reference"]
    history = [f for f in history_figures(found.extractors, rows[0]) if with_text or f.key != "cs.history"]
    out = [
        _reference(found, reference, rows),
        _table("Likeness to the history", "Mean over its pictures.", history, rows),
    ]
    if found.differences:
        out.append(_difference_table(found, [*reference, *history]))
    out.append(_likelihood(found))
    return out


def markdown(found: CatalogEvaluation) -> str:
    """The report as Markdown."""
    head = (
        f"{len(found.chosen)} held-out users of data set {found.dataset_id} (seed {found.request.seed}), each one's last test window.\n"
        "± is half of a 95 % bootstrap interval over users.\n"
        + ("" if found.text is None else f"CS is by {found.text}.\n")
        + f"Not run: {'; '.join(found.not_run)}.\n"
    )
    return "\n".join([head, *(table.markdown() for table in tables(found))])


def as_json(found: CatalogEvaluation) -> dict[str, Any]:
    """The report as JSON, by the names of `evaluation.measure`."""
    request = found.request
    return {
        "format_version": FORMAT_VERSION,
        "dataset": found.dataset_id,
        "checkpoint": str(request.checkpoint),
        "adapter": None if request.adapter is None else str(request.adapter),
        "users": len(found.chosen),
        "seed": request.seed,
        "ratios": list(request.alphas),
        "extractors": {e.name: {"title": e.title, "key": e.key} for e in found.extractors},
        "rows": {
            name: {"title": row.title, "figures": _estimates(row.estimates), "frechet_distance": row.frechet}
            for name, row in found.rows.items()
        },
        "differences": {name: _estimates(figures) for name, figures in found.differences.items()},
        "log_likelihood": _estimates(dict(found.likelihood.rows)),
        "log_likelihood_differences": _estimates(dict(found.likelihood.differences)),
        "not_run": list(found.not_run),
        "seconds": {step: round(seconds, 1) for step, seconds in found.seconds.items()},
    }


def contact_sheet(found: CatalogEvaluation, path: Path) -> None:
    """Write a sheet, a line per user.

    history | reference | a picture per α_r of each model | the baselines' pictures
    """
    groups = [*found.grids.values(), [name for name in found.rows if "@" not in name]]
    lines = [
        [
            [item.image for item in sample.task.history],
            [sample.task.reference.image],
            *([found.images[name][number] for name in names] for names in groups),
        ]
        for number, sample in enumerate(found.chosen[:SHEET_USERS])
    ]
    sheet(lines).save(path, "WEBP", quality=80, method=6)


def _estimates(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in estimates.items()}


def _reference(found: CatalogEvaluation, figures: Sequence[Figure], rows: Sequence[RowReport]) -> Text:
    note = (
        "100·cosine. Fréchet distances are between extractor features of the row and of the references; "
        f"{len(found.chosen)} pictures bias them upwards, so they compare rows of this table only. "
        "Official pictures are the same for everybody, so this table rewards copying."
    )
    table = _table("Likeness to the reference", note, figures, rows)
    heads = [*table.heads, *(f"Fréchet ({e.title}) ↓" for e in found.extractors)]
    cells = [
        [*line, *(f"{row.frechet[e.name]:.3f}" for e in found.extractors)]
        for line, row in zip(table.rows, rows, strict=True)
    ]
    return Text(table.title, note, heads, cells)


def _difference_table(found: CatalogEvaluation, figures: Sequence[Figure]) -> Text:
    lines = [
        [
            _head(figure, found.extractors),
            *(figure.cell(row[figure.key], signed=True) for row in found.differences.values()),
        ]
        for figure in figures
    ]
    heads = ["figure", *(found.rows[name].title for name in found.differences)]
    return Text("Aligned − the checkpoint's own adapter", "Paired over users.", heads, lines)


def _head(figure: Figure, extractors: Sequence[Extractor]) -> str:
    where = figure.key.rpartition(".")[2]
    names = {e.name: e.title for e in extractors}
    who = figure.key.partition(".")[0]
    return f"{where}: {names[who]}" if who in names and who != Own.name else f"{where}: {figure.head}"


def _likelihood(found: CatalogEvaluation) -> Text:
    cell = Figure("", "", 3).cell
    lines = [[BEFORE[name], cell(estimate)] for name, estimate in found.likelihood.rows.items()]
    lines += [[name, cell(estimate, signed=True)] for name, estimate in found.likelihood.differences.items()]
    note = "Of the next item's masked codes behind stage 1's masks; differences are paired over users."
    return Text("Log-likelihood of the next item, nats per code", note, ["behind", "log-likelihood"], lines)


def _table(title: str, note: str, figures: Sequence[Figure], rows: Sequence[RowReport]) -> Text:
    lines = [[row.title, *(figure.cell(row.estimates[figure.key]) for figure in figures)] for row in rows]
    return Text(title, note, ["drawn", *(figure.head for figure in figures)], lines)
