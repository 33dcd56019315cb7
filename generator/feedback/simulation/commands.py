"""`pigeon simulate`; registered by generator/cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add the simulation to `pigeon`."""
    app.command()(simulate)


def simulate(
    nights: Annotated[int, typer.Option(min=2, help="Nights of each world.")] = 10,
    retrains: Annotated[int, typer.Option(min=0, help="Retrains of the learning arms, evenly spread.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Worlds of each strength.")] = 5,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first world.")] = 0,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            min=0, help="Standard deviation of what palettes and styles do for everybody, log-odds; repeatable."
        ),
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Arm to run, see above; repeatable, all by default.")] = None,
    users: Annotated[int, typer.Option(min=10, help="Users of each world.")] = 330,
    showings: Annotated[int, typer.Option(min=1, help="Posters that a user sees per night.")] = 4,
    items: Annotated[int, typer.Option(min=10, help="Items of each world.")] = 200,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results; default <state_dir>/simulation. It is continued.")
    ] = None,
) -> None:
    """Simulate the loop on users whose taste is known: what it gains, by night and arm, with intervals.

    The product's own: policies and reader's shares, click model with its judgement, ranking of pairs, off-policy value,
    diversity, gate, the rule by which clicked posters enter histories, and their settings. Simulated: users, clicks, a model that
    answers with palettes and styles, and a DPO that shifts them. No pictures, no servers.

    Arms, on the same random numbers: official, frozen, frozen_history (what lifts are over), loop, loop_unexplored, oracle.
    Strengths are 0.4, 0.2 and 0 by default. A killed run continues with the same command.
    """
    from generator.feedback.simulation.arms import ARMS
    from generator.feedback.simulation.run import deciding, simulate
    from generator.feedback.simulation.store import Plan
    from schemas.settings import load_settings

    settings = load_settings()
    plan = Plan(
        mode="codes",
        nights=nights,
        retrains=retrains,
        seeds=tuple(range(first_seed, first_seed + seeds)),
        strengths=tuple(strength or (0.4, 0.2, 0.0)),
        arms=tuple(arm or ARMS),
        users=users,
        showings=showings,
        items=items,
        settings=deciding(settings),
    )
    folder = out or settings.state_dir / "simulation"
    simulate(plan, folder, settings, lambda line: typer.echo(line, err=True))
    typer.echo((folder / "table.md").read_text(encoding="utf-8"))
    typer.echo(f"figures.json, table.md and plot.svg are in {folder}")
