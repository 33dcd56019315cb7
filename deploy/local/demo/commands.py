"""`pigeon demo`, `pigeon demo data`, `pigeon demo feedback`; registered by generator/cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Of the simulated users.")]


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add the demo's commands to `pigeon`."""
    group = typer.Typer(help="The whole loop on MovieLens-100k, on embedded servers.", invoke_without_command=True)
    group.callback()(demo)
    group.command("data")(data)
    group.command("feedback")(feedback)
    app.add_typer(group, name="demo")


def demo(
    context: typer.Context,
    users: Annotated[int, typer.Option(min=2, max=900, help="Users of the first night.")] = 80,
    seed: Seed = 7,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the servers running, with the console beside them.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="First delete the embedded servers' data of this folder.")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Where the page goes; default <state_dir>/demo.html")] = None,
) -> None:
    """Run the whole loop on real clicks and write a page about it.

    Clicks through Kafka into Postgres, a night through Triton, posters in S3, feedback, a DPO retrain."""
    if context.invoked_subcommand:
        return
    from deploy.local.demo.run import run

    path = run(users=users, seed=seed, keep=keep, fresh=fresh, page=page)
    typer.secho(f"The page: {path.resolve()}", bold=True)


def data() -> None:
    """Build the demo's catalogue, clicks, recommendations and posters into <state_dir>/cache/demo."""
    from deploy.local.demo.data import build
    from deploy.local.demo.progress import bar
    from schemas.settings import load_settings

    with bar() as progress:
        built = build(load_settings(), progress)
    typer.echo(f"{built.items} films, {built.click_count} clicks of {built.user_count} users in {built.catalog.parent}")


def feedback(
    date: Annotated[str, typer.Option(help="Logical date of the night whose posters are shown, YYYY-MM-DD.")],
    seed: Seed = 7,
) -> None:
    """Send the feedback of simulated users who click by taste.

    They look at a night's posters; their events go to posters.feedback.v1."""
    from deploy.local.demo.simulator import simulate
    from schemas.settings import load_settings

    typer.echo(simulate(load_settings(), date, seed))
