"""Commands of this part; registered by generator/cli.py."""

from __future__ import annotations

import typer


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
