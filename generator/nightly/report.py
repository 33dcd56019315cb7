"""The night's report, one self-contained HTML file: contact sheet, score plots, failures, figures."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import func, select

from generator.nightly.ledger import Ledger
from generator.nightly.rows import CandidateRow
from generator.storage.objects import Store
from schemas.manifest import report_key
from schemas.tables import NightRun, NightTask, Poster

SHEET_POSTERS = 48
PLOTTED_TASKS = 5000


@dataclass(frozen=True)
class _Data:
    posters: list[tuple[Poster, str]]
    """With their titles."""
    candidates: list[CandidateRow]
    drawn: int


def write_report(store: Store, ledger: Ledger, run: NightRun, figures: dict[str, Any]) -> str:
    """Render the report, store it and return its key."""
    key = report_key(run.logical_date.isoformat(), run.run_id)
    store.put(key, render(store, run, figures, _read(ledger, run.run_id)).encode(), "text/html; charset=utf-8")
    return key


def _read(ledger: Ledger, run_id: str) -> _Data:
    drawn = (
        (NightTask.user_id == Poster.user_id)
        & (NightTask.item_id == Poster.item_id)
        & (NightTask.input_fingerprint == Poster.input_fingerprint)
        & (NightTask.weights == Poster.weights)
        & (NightTask.run_id == run_id)
        & (NightTask.status == "done")
        & Poster.withheld.is_(None)
    )
    with ledger.reading() as session:
        # A stable sample: by hash, whole tasks together.
        rows = session.execute(
            select(Poster, NightTask.prompt["reference"]["title"].astext)
            .join(NightTask, drawn)
            .order_by(func.md5(Poster.user_id), Poster.user_id, Poster.item_id, Poster.variant)
            .limit(SHEET_POSTERS)
        ).all()
        count = session.scalar(select(func.count()).select_from(Poster).join(NightTask, drawn)) or 0
        candidates = session.scalars(
            select(NightTask.candidates)
            .where(NightTask.run_id == run_id, NightTask.status.in_(("done", "refused")))
            .order_by(NightTask.user_id, NightTask.item_id)
            .limit(PLOTTED_TASKS)
        )
        return _Data(
            [(poster, title) for poster, title in rows],
            [CandidateRow.parse(row) for task in candidates for row in task],
            count,
        )


def render(store: Store, run: NightRun, figures: dict[str, Any], data: _Data) -> str:
    """The HTML text; the posters' files are read from the store."""
    sheet = []
    for poster, title in data.posters:
        stored = store.get(poster.image_key)
        if stored:
            image = base64.b64encode(stored.body).decode()
            sheet.append(
                {**{k: v for k, v in poster.__dict__.items() if not k.startswith("_")}, "title": title, "image": image}
            )
    left_out = Counter(row.refused for row in data.candidates if row.refused)
    environment = Environment(
        loader=PackageLoader("generator.nightly", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        run=run,
        facts=[("chosen by", _chosen_by(run)), *_facts(figures)],
        sheet=sheet,
        drawn=data.drawn,
        plots=_plots(data.candidates),
        reasons=figures["reasons"],
        skips=figures["skips"],
        left_out=left_out.most_common(),
        synthetic=any(poster.synthetic for poster, _ in data.posters),
    )


def _chosen_by(run: NightRun) -> str:
    policy = str(run.settings.get("recipe", {}).get("policy", "model"))
    model_id = run.settings.get("click_model")
    return f"{policy}, click model {model_id[:12]}" if model_id else policy


def _facts(figures: dict[str, Any]) -> list[tuple[str, str]]:
    tasks = figures["tasks"]
    facts = [
        ("tasks", f"{sum(tasks.values()):,}"),
        ("refused", f"{tasks.get('refused', 0):,}"),
        ("failed", f"{tasks.get('failed', 0):,}"),
        ("posters drawn", f"{figures['posters_drawn']:,}"),
        ("carried over", f"{figures['posters_carried']:,}"),
        ("withheld", f"{figures['posters_withheld']:,}"),
        ("skipped by the plan", f"{sum(figures['skips'].values()):,}"),
    ]
    session = figures.get("last_session")
    if session:
        facts += [
            ("seconds", f"{session['seconds']:,.1f}"),
            ("tasks per second", f"{session['tasks_per_second']:.2f}"),
            ("model seconds per task", f"{session['draw_seconds_per_task']:.2f}"),
            ("distinct answers per task", f"{session['distinct_answers_per_task']:.2f}"),
            ("pictures drawn", f"{session['pictures_drawn']:,}"),
            ("pictures reused", f"{session['pictures_reused']:,}"),
            ("pictures drawn per poster kept", f"{session['pictures_drawn_per_poster']:.2f}"),
            ("posters chosen to learn from", f"{session.get('posters_explored', 0):,}"),
            ("compositions made", f"{session['compositions_made']:,}"),
            ("compositions reused", f"{session['compositions_reused']:,}"),
            ("pictures tokenized", f"{session['pictures_tokenized']:,}"),
            ("model calls repeated", f"{session['model_retries']:,}"),
            ("MiB uploaded", f"{session['uploaded_bytes'] / 2**20:.1f}"),
        ]
    return facts


def _plots(candidates: list[CandidateRow]) -> list[str]:
    """SVGs: the trade-off that α makes, and the scores of what was kept and what was not."""
    candidates = [row for row in candidates if math.isfinite(row.score)]
    if not candidates:
        return []
    from matplotlib.figure import Figure

    alphas = sorted({row.alpha for row in candidates})
    trade = Figure(figsize=(5, 3.4), layout="constrained")
    axes = trade.subplots()
    for name, label, colour in (
        ("cs", "CS (reference text)", "#c2410c"),
        ("cis_reference", "CIS (reference picture)", "#0369a1"),
        ("cis_history", "CIS (history)", "#7a3cff"),
    ):
        means = [_mean([getattr(row, name) for row in candidates if row.alpha == alpha]) for alpha in alphas]
        axes.plot(alphas, means, marker="o", color=colour, label=label)
    axes.set(
        xlabel="α: share of the reference's tokens masked", ylabel="100 × cosine, mean", title="Reference or taste"
    )
    axes.legend(fontsize=8, frameon=False)

    scores = Figure(figsize=(5, 3.4), layout="constrained")
    axes = scores.subplots()
    kept = [row.score for row in candidates if not row.refused]
    rest = [row.score for row in candidates if row.refused]
    low, high = min(kept + rest), max(kept + rest)
    axes.hist(
        [kept, rest],
        bins=24,
        range=(low, high + 1e-6),
        stacked=True,
        color=["#7a3cff", "#d6d3d1"],
        label=["kept", "not kept"],
    )
    axes.set(xlabel="score", ylabel="pictures", title="Scores of all pictures considered")
    axes.legend(fontsize=8, frameon=False)
    return [_svg(trade), _svg(scores)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "pigeon", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
