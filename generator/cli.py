"""The `pigeon` command: the one place that knows every part.

Each part brings its commands in a light `commands.py` (heavy imports inside the functions), registered here.
Errors that a user can act on end in one line on stderr and the exit code that schemas/errors.py names.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Annotated

import typer

from schemas.errors import PigeonError

app = typer.Typer(
    name="pigeon",
    help="Personalized posters, every night, from what people click.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models = typer.Typer(help="Model repository and model versions.", no_args_is_help=True)
app.add_typer(models, name="models")

# In the order that --help shows them. Each has `register(app, models)`.
PARTS = (
    "deploy.local.commands",
    "deploy.local.demo.commands",
    "migrations.commands",
    "consumers.commands",
    "generator.nightly.commands",
    "generator.serving.commands",
    "generator.feedback.commands",
    "generator.training.nano.commands",
)

# Where the extra `lavit` is installed, these warn at every import of kernels and types that a machine without CUDA lacks.
TALKATIVE = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show stack traces.")] = False) -> None:
    if debug:
        os.environ["_PIGEON_DEBUG"] = "1"
        logging.basicConfig(level=logging.DEBUG)
        return
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


@app.command()
def settings() -> None:
    """Print the effective settings, secrets masked."""
    from schemas.settings import load_settings

    typer.echo(load_settings().model_dump_json(indent=2))


for _part in PARTS:
    importlib.import_module(_part).register(app, models)


def main() -> None:
    """Entry point: run a command, turn user-level errors into one line and an exit code."""
    try:
        app()
    except PigeonError as error:
        if os.environ.get("_PIGEON_DEBUG"):
            raise
        typer.echo(f"pigeon: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
