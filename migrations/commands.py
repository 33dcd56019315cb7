"""`pigeon db`: migrations, drift check and the upkeep of partitions."""

from __future__ import annotations

from typing import Annotated

import typer

db = typer.Typer(help="Database migrations and upkeep.", no_args_is_help=True)


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
    app.add_typer(db, name="db")


@db.command()
def upgrade(revision: Annotated[str, typer.Argument(help="Revision, +N, or head.")] = "head") -> None:
    """Bring the database to the newest revision."""
    from migrations import database
    from schemas.settings import load_settings

    before, after = database.upgrade(load_settings().database, revision)
    typer.echo(f"database: {before} -> {after}" if before != after else f"database: already at {after}")


@db.command()
def downgrade(revision: Annotated[str, typer.Argument(help="Revision, -N, or base (drops every table).")]) -> None:
    """Take the database back to an older revision."""
    from migrations import database
    from schemas.settings import load_settings

    before, after = database.downgrade(load_settings().database, revision)
    typer.echo(f"database: {before} -> {after}" if before != after else f"database: already at {after}")


@db.command()
def check() -> None:
    """Fail when the database is not at head or differs from the models."""
    from migrations import database
    from schemas.settings import load_settings

    typer.echo(f"database: at {database.check(load_settings().database)}, no drift")


@db.command()
def upkeep(
    retention_months: Annotated[
        int | None, typer.Option(min=1, help="Drop months older than this; schedule.retention_months when left out.")
    ] = None,
) -> None:
    """Make the coming months' partitions of interactions, drop those past retention."""
    from consumers import partitions
    from schemas.settings import load_settings

    settings = load_settings()
    made, dropped = partitions.upkeep(
        settings.database,
        settings.schedule.partitions_ahead_months,
        retention_months or settings.schedule.retention_months,
    )
    typer.echo(f"partitions: {len(made)} made{_names(made)}, {len(dropped)} dropped{_names(dropped)}")


def _names(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
