"""The night's report, rendered and stored: one self-contained HTML file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from generator.nightly import runs
from generator.nightly.figures import cost_words, duration_words
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import EVERYBODY, Ledger
from generator.nightly.report.charts import Line, histogram, lines
from generator.nightly.report.nights import COLUMNS, NightLine, charts_of, funnel_of, read_last_nights, table_of
from generator.nightly.report.samples import ReportPoster, Samples, read_samples
from generator.nightly.report.thumbs import SMALL_WIDTH, Thumbs
from generator.nightly.rows import CandidateRow
from generator.nightly.sessions import Session, sessions_of, total_of
from generator.nightly.tally import Tally
from generator.safety.judge import UNSAFE
from generator.storage.objects import Store
from generator.worth import read_worth
from schemas.errors import PigeonError
from schemas.manifest import report_key
from schemas.settings import Settings
from schemas.tables import NightRun

log = logging.getLogger("pigeon.night")

STAGES = {
    "plan": "plan: who gets what, from what",
    "tokens": "tokens of catalogue pictures",
    "answer": "answers of the personalizer",
    "draw": "drawing and storing pictures",
    "safety": "safety verdicts",
    "finish": "judging, composing and storing posters",
    "manifest": "manifest",
}
LINES = (
    ("cs", "CS: like the item's text", "a"),
    ("cis_reference", "CIS: like the item's picture", "b"),
    ("cis_history", "CIS: like the user's history", "c"),
)
WHY = {
    "blank": "one colour, or nearly",
    "corrupt": "the model gave no proper image",
    "off_reference": "not like the item's text (night.min_reference_score)",
    "near_duplicate_of_reference": "nearly the item's own picture",
    "near_duplicate_of_kept_variant": "nearly a variant that was kept already",
    UNSAFE: "the safety model's score is too high (safety.threshold); not stored, so not shown here",
}


@dataclass(frozen=True)
class ReportContext:
    """What a report is made from."""

    settings: Settings
    store: Store
    ledger: Ledger
    images: CatalogImages


@dataclass(frozen=True)
class _Card:
    """A poster with its pictures as data URIs."""

    poster: ReportPoster
    image: str
    reference: str | None = None
    history: tuple[tuple[str, str | None], ...] = ()
    """Title and picture of each item of the history."""


@dataclass(frozen=True)
class _Refused:
    """A reason with how often it came, what it means, and examples."""

    name: str
    why: str
    count: int
    images: list[str]


def write_report(
    context: ReportContext, run: NightRun, figures: dict[str, Any], echo: Callable[[str], None] = lambda line: None
) -> str | None:
    """Render the report, store it and return its key; None when it cannot be made, which `echo` is told.

    A night is not lost for its report.

    Raises:
        ServerUnavailable, InputError: Postgres or S3 is away or set wrongly.
    """
    try:
        page = render(context, run, figures)
    except PigeonError:
        raise
    except Exception as error:
        log.warning("night: the report failed", exc_info=True)
        echo(f"no report of {run.run_id}: {type(error).__name__}: {error}; no poster is touched by that")
        return None
    key = report_key(run.logical_date.isoformat(), run.run_id)
    context.store.put(key, page.encode(), "text/html; charset=utf-8")
    return key


def render(context: ReportContext, run: NightRun, figures: dict[str, Any]) -> str:
    """The HTML text."""
    sessions = sessions_of(figures)
    total, seconds = total_of(sessions)
    examples = {key for one in total.refusals.values() for key in one.pictures}
    samples = read_samples(context.ledger, run.run_id, examples)
    thumbs = Thumbs(context.store, context.images)
    nights = [
        *(read_last_nights(context.ledger, run) if run.scope == EVERYBODY else ()),
        NightLine.of(run.logical_date.isoformat(), figures),
    ]
    environment = Environment(
        loader=PackageLoader("generator.nightly.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        run=run,
        is_night=run.scope == EVERYBODY,
        facts=[
            ("chosen by", _chosen_by(run)),
            *_facts(figures, total, seconds, context.settings.night.price_per_hour),
        ],
        worth=_worth(context, run) if run.scope == EVERYBODY else "",
        funnel=funnel_of(figures),
        nights=table_of(nights) if len(nights) > 1 else [],
        columns=list(COLUMNS.values()),
        night_charts=charts_of(nights) if len(nights) > 1 else [],
        best=_cards(samples.best, thumbs, with_inputs=True),
        worst=_cards(samples.worst, thumbs, with_inputs=True),
        sheet=_cards(samples.sheet, thumbs, with_inputs=False),
        reasons=_task_reasons(figures["reasons"]),
        refused=_refused(total, samples, thumbs),
        skips=figures["skips"],
        stages=_stages(total),
        sessions=_sessions(sessions, total, seconds),
        others=runs.read_others(context.ledger, run),
        plots=_plots(samples.candidates),
        synthetic=any(poster.synthetic for poster in samples.sheet),
    )


def _chosen_by(run: NightRun) -> str:
    policy = str(run.settings.get("recipe", {}).get("policy", "model"))
    model_id = run.settings.get("click_model")
    return f"{policy}, click model {model_id[:12]}" if model_id else policy


def _worth(context: ReportContext, run: NightRun) -> str:
    """What drawn posters were worth until this night began, or what is missing to tell."""
    try:
        with context.ledger.reading() as session:
            return read_worth(session, context.settings.clicks, run.started_at).words
    except PigeonError as error:  # a log that takes too long to read is no reason to lose the night
        log.warning("night: the report lacks what drawn posters are worth: %s", error)
        return f"not known this time: {error}"


def _facts(
    figures: dict[str, Any], total: Tally, seconds: float, price_per_hour: float | None
) -> list[tuple[str, str]]:
    """The numbers at the top."""
    facts = [
        ("posters drawn", f"{figures['posters_drawn']:,}"),
        ("carried over unchanged", f"{figures['posters_carried']:,}"),
        ("withheld", f"{figures['posters_withheld']:,}"),
        ("pictures drawn", f"{total.pictures_drawn:,}"),
        ("pictures reused", f"{total.pictures_reused:,}"),
        ("pictures per poster kept", f"{total.pictures_drawn_per_poster:.2f}"),
        ("distinct answers per task", f"{total.distinct_answers_per_task:.2f}"),
        ("posters chosen to learn from", f"{total.explored:,}"),
        ("time drawing", duration_words(seconds)),
        ("tasks per second", f"{total.finished / seconds:.2f}" if seconds else "–"),
        ("MiB uploaded", f"{total.uploaded_bytes / 2**20:.1f}"),
    ]
    if history := figures.get("history"):
        facts.append(("clicked posters in histories", f"{history['drawn']:,} of {history['pictures']:,}"))
    if total.model_retries:
        facts.append(("model calls repeated", f"{total.model_retries:,}"))
    if price_per_hour is not None:
        facts.append(("cost of drawing", cost_words(seconds, price_per_hour).partition(" ")[0]))
    return facts


def _cards(posters: Iterable[ReportPoster], thumbs: Thumbs, *, with_inputs: bool) -> list[_Card]:
    found = []
    for poster in posters:
        image = thumbs.stored(poster.image_key)
        if image is None:
            continue
        if not with_inputs:
            found.append(_Card(poster, image))
            continue
        history = tuple((one.title, thumbs.of(one)) for one in poster.history)
        found.append(_Card(poster, image, thumbs.catalog(poster.reference.sha256), history))
    return found


def _task_reasons(reasons: dict[str, int]) -> list[tuple[str, str, int]]:
    """Status, reason and count of the tasks without posters."""
    parts = ((*reason.partition(": ")[::2], count) for reason, count in reasons.items())
    return [(status, reason, count) for status, reason, count in parts]


def _refused(total: Tally, samples: Samples, thumbs: Thumbs) -> list[_Refused]:
    ordered = sorted(total.refusals.items(), key=lambda one: -one[1].count)
    found = []
    for reason, refusals in ordered:
        files = (samples.files.get(key) for key in refusals.pictures)
        images = [image for key in files if (image := thumbs.stored(key, SMALL_WIDTH))]
        found.append(_Refused(reason.replace("_", " "), WHY.get(reason, ""), refusals.count, images))
    return found


def _stages(total: Tally) -> list[tuple[str, str, float]]:
    """Name, time and share of the longest stage in percent, in the order of the work."""
    known = {name: total.stage_seconds[name] for name in STAGES if name in total.stage_seconds}
    longest = max(known.values(), default=0.0) or 1.0
    return [(STAGES[name], duration_words(seconds), 100 * seconds / longest) for name, seconds in known.items()]


def _sessions(sessions: Sequence[Session], total: Tally, seconds: float) -> list[tuple[str, ...]]:
    """A row for each session, and one for their sum where there are several."""
    rows = [_session_row(one.kind, one.started_at, one.ended, one.tally, one.seconds) for one in sessions]
    if len(sessions) > 1:
        rows.append(_session_row("together", "", "", total, seconds))
    return rows


def _session_row(kind: str, started_at: str, ended: str, tally: Tally, seconds: float) -> tuple[str, ...]:
    counts = (tally.finished, tally.done, tally.refused, tally.failed, tally.posters, tally.pictures_drawn)
    rate = f"{tally.finished / seconds:.2f}" if seconds else "–"
    # A session that never ended is one of a process that was killed.
    how = "killed" if ended == "running" else ended
    return (
        kind,
        started_at[:19].replace("T", " "),
        how,
        *(f"{one:,}" for one in counts),
        duration_words(seconds),
        rate,
    )


def _plots(candidates: Sequence[CandidateRow]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Title, chart and legend: the trade-off that α makes, and scores of pictures kept and not kept."""
    if not candidates:
        return []
    alphas = sorted({row.alpha for row in candidates})
    trade = [
        Line(name, colour, tuple((alpha, _mean(candidates, field, alpha)) for alpha in alphas))
        for field, name, colour in LINES
    ]
    kept = [row.score for row in candidates if not row.refused]
    rest = [row.score for row in candidates if row.refused]
    return [
        (
            "Reference or taste: mean of 100 × cosine",
            lines(trade, "α: share of the reference's tokens masked", "Scores by α"),
            [(line.colour, line.name) for line in trade],
        ),
        (
            "Scores of all pictures considered",
            histogram(kept, rest, "score", "Scores of pictures, kept and not kept"),
            [("a", f"kept ({len(kept):,})"), ("b", f"not kept ({len(rest):,})")],
        ),
    ]


def _mean(rows: Sequence[CandidateRow], field: str, alpha: float) -> float:
    values: list[float] = [getattr(row, field) for row in rows if row.alpha == alpha]
    return sum(values) / len(values)
