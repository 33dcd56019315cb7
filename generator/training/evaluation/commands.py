"""`pigeon evaluate`; registered by generator/cli.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from generator.training.evaluation.run import Progress

EVERY = ("own", "efficientnet", "pixels")


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's command to `pigeon`."""
    app.command()(evaluate)


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")] = Path("deploy/models/nano"),
    count: Annotated[int, typer.Option(help="Simulated users; each pair comes once before any comes twice.")] = 100,
    held_out: Annotated[
        bool, typer.Option("--held-out/--trained", help="(concept, style) pairs that training never drew, or drew.")
    ] = True,
    extractor: Annotated[
        list[str] | None, typer.Option(help="own, efficientnet or pixels; may be repeated. Default: all.")
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="all, none, or some, separated by commas: no-personalization, random-mask, reference-copied, "
            "random-history, redrawn, truth."
        ),
    ] = "all",
    alpha: Annotated[
        list[float] | None, typer.Option("--ratio", help="α_r; may be repeated. Default: 0, 0.3, 0.6, 0.9.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="Another checkpoint, on the same users: stage 1, say.")] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for evaluation.json, evaluation.md, contact-sheet.png, alpha.svg, alpha.png.")
    ] = Path("evaluation"),
    seed: Annotated[int, typer.Option(help="Of the users, their pictures and the intervals.")] = 7,
) -> None:
    """Draw for simulated users whose taste is known, and measure it: style, concept, likeness, baselines, α_r sweep.

    The first run encodes thousands of real drawings, which are kept under the state folder; later ones are quicker.
    """
    import json

    from rich.console import Console

    from generator.training.evaluation.plots import contact_sheet, plot_alphas
    from generator.training.evaluation.report import as_json, markdown, tables
    from generator.training.evaluation.run import ALL_BASELINES, Request
    from generator.training.evaluation.run import evaluate as run
    from generator.training.nano.samples import ALPHAS
    from schemas.errors import InputError
    from schemas.settings import load_settings

    chosen: Sequence[str] = [name.strip() for name in baselines.split(",")]
    if baselines in ("all", "none"):
        chosen = ALL_BASELINES if baselines == "all" else ()
    request = Request(
        checkpoint, count, held_out, tuple(extractor or EVERY), tuple(chosen), tuple(alpha or ALPHAS), compare, seed
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output: {output} cannot be made a folder ({error.strerror})") from error
    with _progress() as progress:
        found = run(request, load_settings().state_dir / "cache", progress)
    console = Console()
    for table in tables(found):
        console.print(table.rich())
    (output / "evaluation.json").write_text(json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n")
    (output / "evaluation.md").write_text(markdown(found))
    contact_sheet(found, output / "contact-sheet.png")
    plot_alphas(found, output)
    spent = ", ".join(f"{step} {seconds / count:.2f}" for step, seconds in found.seconds.items())
    typer.echo(f"Seconds per sample: {spent}. Written to {output}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar per step on a terminal's standard error, a line per tenth elsewhere."""
    import sys

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        known: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bar.add_task(what, total=total)
            bar.update(known[what], completed=done)

        yield show


def _lines() -> Callable[[str, int, int], None]:
    said: dict[str, int] = {}

    def say(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if said.get(what) != tenth:
            said[what] = tenth
            typer.echo(f"{what}: {done} of {total}", err=True)

    return say
