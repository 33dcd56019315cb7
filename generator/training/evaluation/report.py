"""Reports of an evaluation: tables for a terminal and for a model card, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from generator.training.evaluation.bootstrap import Estimate
from generator.training.evaluation.extractors import Extractor, Own
from generator.training.evaluation.rows import PIGEON
from generator.training.evaluation.run import Evaluation, RowReport

FORMAT_VERSION = 1
TRADED = ("reference", "history")


@dataclass(frozen=True)
class Figure:
    """A column of a table.

    `key` is as `measure.Measured` names it; `digits` behind the point, or none for a share in percent.
    """

    key: str
    head: str
    digits: int | None = None

    def cell(self, estimate: Estimate, *, signed: bool = False) -> str:
        scale, digits, unit = (100, 0, " %") if self.digits is None else (1, self.digits, "")
        if signed and unit:
            unit = " pts"
        plus = "+" if signed else ""
        return f"{scale * estimate.mean:{plus}.{digits}f} ±{scale * estimate.margin:.{digits}f}{unit}"


@dataclass(frozen=True)
class Text:
    """A table of words: a title, a sentence on how to read it, column heads, rows of cells."""

    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [f"**{self.title}.** {self.note}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (self.heads, ["---"] * len(self.heads), *self.rows)]
        return "\n".join(lines) + "\n"

    def rich(self) -> Table:
        table = Table(title=self.title, caption=self.note, title_justify="left", caption_justify="left", padding=(0, 0))
        for number, head in enumerate(self.heads):
            table.add_column(head, justify="right" if number else "left", no_wrap=not number)
        for row in self.rows:
            table.add_row(*row)
        return table


def truth_figures(extractor: Extractor) -> list[Figure]:
    names = {
        "style": "style",
        "palette": "palette",
        "concept@1": "concept first",
        "concept@5": "concept in 5",
        "all@1": "of all first",
        "all@5": "of all in 5",
    }
    return [Figure(f"{extractor.name}.{name}", head) for name, head in names.items()]


def reference_figures(extractors: Sequence[Extractor]) -> list[Figure]:
    return [Figure("cs.reference", "CS ↑", 1), *(Figure(f"{e.name}.reference", _likeness(e), 1) for e in extractors)]


def history_figures(extractors: Sequence[Extractor], row: RowReport) -> list[Figure]:
    """row: any, to see which extractors have a feature distance."""
    apart = [Figure(f"{e.name}.distance", f"feature distance ({e.title}) ↓", 3) for e in extractors]
    return [
        Figure("cs.history", "CS ↑", 1),
        *(Figure(f"{e.name}.history", _likeness(e), 1) for e in extractors),
        *(figure for figure in apart if figure.key in row.estimates),
        Figure("ssim.history", "SSIM ↑", 3),
        Figure("ms_ssim.history", "MS-SSIM ↑", 3),
    ]


def tables(evaluation: Evaluation) -> list[Text]:
    """Known truth by each extractor, likeness to reference and to history, the α_r sweep, differences."""
    extractors, rows = evaluation.extractors, evaluation.rows
    swept = [rows[name] for names in evaluation.grids.values() for name in names]
    main = [row for row in rows.values() if row not in swept]
    history = history_figures(extractors, rows[PIGEON])
    out = [_known_truth(evaluation, extractor, main) for extractor in extractors]
    out.append(_reference(evaluation, main))
    out.append(_table("Likeness to the history", "Mean over its five pictures.", history, main))
    pairs = [Figure(f"{e.name}.{what}", f"{what}: {_likeness(e)}", 1) for e in extractors for what in TRADED]
    out.append(
        _table("The α_r sweep", "Semantics (the reference) against personalization (the history).", pairs, swept)
    )
    if evaluation.differences:
        figures = [
            *(Figure(f.key, f"{f.head} ({e.title})") for e in extractors for f in truth_figures(e)),
            *(Figure(f.key, f"reference: {f.head}", f.digits) for f in reference_figures(extractors)),
            *(Figure(f.key, f"history: {f.head}", f.digits) for f in history),
        ]
        out.append(_differences(evaluation, figures))
    return out


def markdown(evaluation: Evaluation) -> str:
    """The report as Markdown, which a model card can take as it is."""
    request = evaluation.request
    pairs = "held-out" if request.held_out else "trained"
    head = (
        f"{request.count} simulated users (seed {request.seed}), {pairs} (concept, style) pairs of the concepts that films show.\n"
        f"{evaluation.about}\n"
        "± is half of a 95 % bootstrap interval over users (for none or all of n, which it gives as ±0, it is up to 3/n).\n"
        "The own scorer also selects the candidates, so its figures flatter the model; the other extractors are independent of it.\n"
    )
    return "\n".join([head, *(table.markdown() for table in tables(evaluation))])


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The report as JSON: everything that was measured, by the names of `measure.Measured`."""
    request = evaluation.request
    return {
        "format_version": FORMAT_VERSION,
        "checkpoint": str(request.checkpoint),
        "compare": None if request.compare is None else str(request.compare),
        "count": request.count,
        "distinct_pairs": len({sample.target[:2] for sample in evaluation.samples}),
        "pairs": "held-out" if request.held_out else "trained",
        "seed": request.seed,
        "ratios": list(request.alphas),
        "concepts_shown": evaluation.concepts[0],
        "concepts": evaluation.concepts[1],
        "extractors": {e.name: {"title": e.title, "key": e.key} for e in evaluation.extractors},
        "chance": chance(evaluation),
        "rows": {
            name: {
                "title": row.title,
                "figures": {key: asdict(estimate) for key, estimate in row.estimates.items()},
                "frechet_distance": row.frechet,
            }
            for name, row in evaluation.rows.items()
        },
        "differences": [
            {"row": d.name, "minus": d.minus, "figures": {key: asdict(e) for key, e in d.estimates.items()}}
            for d in evaluation.differences
        ],
        "seconds": {step: round(seconds, 1) for step, seconds in evaluation.seconds.items()},
    }


def chance(evaluation: Evaluation) -> dict[str, float]:
    """Share that a blind guess gets right, in the order of `truth_figures`."""
    styles, palettes = evaluation.looks
    shown, every = evaluation.concepts
    return {
        "style": 1 / styles,
        "palette": 1 / palettes,
        "concept@1": 1 / shown,
        "concept@5": min(1.0, 5 / shown),
        "all@1": 1 / every,
        "all@5": min(1.0, 5 / every),
    }


def _known_truth(evaluation: Evaluation, extractor: Extractor, rows: Sequence[RowReport]) -> Text:
    styles, palettes = evaluation.looks
    shown, every = evaluation.concepts
    note = (
        f"Share whose nearest real drawing is right: of the concept in {styles} styles, on {palettes} palettes; "
        f"in the style among {shown} concepts that films show, and among all {every}."
    )
    table = _table(f"Known truth by {extractor.title}", note, truth_figures(extractor), rows)
    guess = ["chance", *(f"{100 * share:.1f} %" for share in chance(evaluation).values())]
    return Text(table.title, note, table.heads, [*table.rows, guess])


def _reference(evaluation: Evaluation, rows: Sequence[RowReport]) -> Text:
    """The table of likeness to the reference, with the Fréchet distances, which are of whole rows."""
    extractors = evaluation.extractors
    note = (
        "CS, CIS and similarities are 100·cosine. Fréchet distances are between extractor features of the row and of the true drawings; "
        f"{evaluation.request.count} pictures bias them upwards, so they compare rows of this table and nothing else."
    )
    table = _table("Likeness to the reference, and fidelity", note, reference_figures(extractors), rows)
    heads = [*table.heads, *(f"Fréchet distance ({e.title}) ↓" for e in extractors)]
    cells = [
        [*line, *(f"{row.frechet[e.name]:.3f}" for e in extractors)] for line, row in zip(table.rows, rows, strict=True)
    ]
    return Text(table.title, note, heads, cells)


def _differences(evaluation: Evaluation, figures: Sequence[Figure]) -> Text:
    titles = [f"{evaluation.rows[d.name].title} − {evaluation.rows[d.minus].title}" for d in evaluation.differences]
    lines = [
        [figure.head, *(figure.cell(d.estimates[figure.key], signed=True) for d in evaluation.differences)]
        for figure in figures
    ]
    note = "Of the same users, so their intervals are narrower than those of the rows."
    return Text("Differences", note, ["figure", *titles], lines)


def _table(title: str, note: str, figures: Sequence[Figure], rows: Sequence[RowReport]) -> Text:
    lines = [[row.title, *(figure.cell(row.estimates[figure.key]) for figure in figures)] for row in rows]
    return Text(title, note, ["drawn", *(figure.head for figure in figures)], lines)


def _likeness(extractor: Extractor) -> str:
    return "CIS ↑" if extractor.name == Own.name else f"similarity ({extractor.title}) ↑"
