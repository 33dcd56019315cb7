"""The demo from end to end: the commands a user would type, in order, and a page about what they did."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import typer

from deploy.local.demo.steps import Steps, tell
from schemas.runtime.stop_signals import stop_signals
from schemas.settings import load_settings

EVENING_USERS = 4
"""Users of the second night, drawn by the champion as it is after the retrain."""

SIMULATION = ("--users", "100", "--nights", "8", "--retrains", "2", "--seeds", "2", "--strength", "0.4")
"""Options of the simulated loop: a few CPU seconds, and too few seeds to conclude from; the page says so."""


def run(*, users: int, seed: int, keep: bool, fresh: bool, page: Path | None) -> Path:
    """Run the whole loop and return the path of the page.

    Raises:
        StepFailed: a command failed; the servers are stopped all the same unless `keep`.
    """
    from deploy.local.demo import console
    from deploy.local.demo import page as pages
    from deploy.local.demo.data import build
    from deploy.local.demo.progress import bar
    from deploy.local.demo.simulator import ASSUMPTIONS

    # One day's feedback is all that is learned from, so readers explore much.
    steps = Steps(total=17 + fresh, settings={"PIGEON_NIGHT__EXPLORATION": "0.5"})
    target = page or load_settings().state_dir / "demo.html"
    with _terminated_like_interrupted():
        try:
            if fresh:
                steps.run("down", "--purge")
            settings = load_settings()
            steps.announce("pigeon demo data")
            with bar() as progress:
                data = build(settings, progress)
            found = f"{data.items} films, {data.click_count} clicks of {data.user_count} users, posters drawn by us"
            tell(found)
            steps.finish(found)
            steps.run("models", "build")
            steps.run("up", "--detach")
            settings = load_settings()
            steps.run("db", "upgrade")
            steps.run("catalog", "import", str(data.catalog))
            steps.run("clicks", "import", str(data.clicks))
            steps.run("recommendations", "import", str(data.recommendations))
            steps.run("consume", "--until-idle", "2")
            first, second = data.night, data.night + timedelta(days=1)
            chosen = list(data.tastes)[:users]
            steps.run("night", "run", "--date", first.isoformat(), "--users", ",".join(chosen), "--publish")
            steps.run("night", "run", "--date", first.isoformat(), "--users", ",".join(chosen), "--publish")
            steps.run("demo", "feedback", "--date", first.isoformat(), "--seed", str(seed))
            steps.run("consume", "--until-idle", "2")
            # Fewer pairs than a product should ask for: the demo has few users. 8 is the gate's (or the minimum's) refusal:
            # an outcome of the loop, shown on the page, not a failure of the demo.
            steps.run(
                "retrain", "--date", second.isoformat(), "--min-pairs", "20", "--promote", "champion", allowed=(0, 8)
            )
            steps.run("models", "list")
            steps.run(
                "night", "run", "--date", second.isoformat(), "--users", ",".join(chosen[:EVENING_USERS]), "--publish"
            )
            simulation = settings.state_dir / "demo-simulation"
            steps.settings = {}
            steps.run("simulate", *SIMULATION, "--out", str(simulation))
            pages.write(target, settings, data, (first, second), steps.done, ASSUMPTIONS, simulation)
            if keep:
                for line in console.start(settings.state_dir):
                    typer.secho(line, bold=line.startswith("console"))
        finally:
            if keep:
                typer.echo("servers are left running; `pigeon down` stops them, and the console")
            else:
                steps.run("down")
    return target


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the demo like Ctrl-C does, so that the servers are stopped."""

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with stop_signals(interrupt, numbers=(signal.SIGTERM,)):
        yield
