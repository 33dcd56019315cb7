"""`pigeon fonts`: fonts of the scripts that the default one lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

fonts = typer.Typer(help="Fonts for titles of any script.", no_args_is_help=True)


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon`."""
    app.add_typer(fonts, name="fonts")


@fonts.command("fetch")
def fetch(
    scripts: Annotated[list[str] | None, typer.Argument(help="Such as arabic, japanese. All when left out.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to. <state_dir>/fonts when left out.")] = None,
) -> None:
    """Download Noto fonts (OFL-1.1) through npm, and say which setting takes them."""
    from generator.datasets.fetch import FONT_PACKAGES, fetch_fonts
    from schemas.settings import load_settings

    target = folder or load_settings().state_dir / "fonts"
    files = fetch_fonts(target, scripts or list(FONT_PACKAGES), lambda what, done, total: None)
    for file in files:
        typer.echo(f"fonts: {file}")
    typer.echo(f"fonts: {len(files)} there; use them with PIGEON_NIGHT__FONTS='[\"{target}\"]'")
