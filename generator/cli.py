"""The `pigeon` command: the one place that knows every part.

Each part brings its commands in a light `commands.py` (heavy imports inside the functions), registered here.
Errors that a user can act on end in one line on stderr and the exit code that schemas/errors.py names.
So does a part that is not installed: the base install has no typer, so this module imports it inside functions only.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from schemas.errors import InputError, PigeonError

if TYPE_CHECKING:
    import typer

    from generator.web.outside import Outside

# In the order that --help shows them. Each has `register(app, models)`.
PARTS = (
    "deploy.local.commands",
    "deploy.local.demo.commands",
    "deploy.local.fonts",
    "migrations.commands",
    "consumers.commands",
    "generator.nightly.commands",
    "generator.upkeep.commands",
    "generator.serving.commands",
    "generator.feedback.commands",
    "generator.feedback.clicks.commands",
    "generator.training.catalog.commands",
    "generator.feedback.simulation.commands",
    "generator.training.nano.commands",
)
# Whose probes `pigeon doctor` asks. Each has `PROBES`.
DOCTORS = (
    "consumers.doctor",
    "migrations.doctor",
    "generator.storage.doctor",
    "generator.serving.doctor",
    "generator.nightly.doctor",
)
OWN_PACKAGES = ("consumers", "deploy", "generator", "migrations", "schemas")

# The extra of pyproject.toml that brings what a command imports; the longest entry that the command line starts with.
EXTRAS: dict[tuple[str, ...], str] = {
    (): "consumers",  # `pigeon settings` and --help: the smallest one with a command line
    ("up",): "local",
    ("down",): "local",
    ("status",): "local",
    ("demo",): "demo",
    ("night",): "night",
    ("schedule",): "night",
    ("fonts",): "night",
    ("models",): "night",
    ("models", "build"): "serving",
    ("models", "check"): "serving",
    ("models", "load"): "serving",
    ("retrain",): "train",
    ("loop",): "loop",
    ("simulate",): "loop",
    ("train",): "train",
    ("dataset",): "train",
    ("evaluate",): "evaluate",
    ("serve",): "web",
}

# Where the extra `lavit` is installed, these warn at every import of kernels and types that a machine without CUDA lacks.
TALKATIVE = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


class PartMissing(InputError):
    """A command of a part whose packages are not installed; the message names the extra that brings them."""


def build_app() -> typer.Typer:
    """Every command, also of parts that are not installed; those end in PartMissing when they run.

    Raises:
        ModuleNotFoundError: typer is not installed.
    """
    import typer

    app = typer.Typer(
        name="pigeon",
        help="Personalized posters, every night, from what people click.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    models = typer.Typer(help="Model repository and model versions.", no_args_is_help=True)
    app.add_typer(models, name="models")

    @app.callback()
    def options(debug: bool = typer.Option(False, "--debug", help="Show stack traces.")) -> None:
        _set_up_logging(debug)

    @app.command()
    def settings() -> None:
        """Print the effective settings, secrets masked."""
        from schemas.settings import load_settings

        typer.echo(load_settings().model_dump_json(indent=2))

    from deploy.doctor.commands import add_doctor

    add_doctor(app, DOCTORS)
    for part in PARTS:
        importlib.import_module(part).register(app, models)
    importlib.import_module("generator.web.commands").register(app, models, consumers_for_the_web)
    return app


def consumers_for_the_web() -> Outside:
    """What `pigeon serve` asks of the consumers, which generator.web must not import."""
    from consumers import dead_letters
    from consumers.kafka.acknowledged import AcknowledgedSender
    from consumers.loop import probes
    from generator.web.outside import Outside

    return Outside(
        open_sender=AcknowledgedSender,
        kafka_problem=probes.kafka,
        list_letters=dead_letters.listed,
        most_counted=dead_letters.COUNTED,
        open_letters=dead_letters.open_letters,
        read_letters=dead_letters.read,
        find_letter=dead_letters.find,
        replay_letters=dead_letters.replay,
        drop_letters=dead_letters.drop,
    )


def _set_up_logging(debug: bool) -> None:
    if debug:
        os.environ["_PIGEON_DEBUG"] = "1"
        logging.basicConfig(level=logging.DEBUG)
        return
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def part_missing(error: ModuleNotFoundError, arguments: Sequence[str]) -> PartMissing | None:
    """What to tell the user about a missing module.

    None when it is one of ours, which is a mistake in the code."""
    module = (error.name or "").partition(".")[0]
    if not module or module in OWN_PACKAGES:
        return None
    words = tuple(word for word in arguments if not word.startswith("-"))
    known = max((words[:length] for length in range(3) if words[:length] in EXTRAS), key=len)
    return PartMissing(f"this command needs {module}: pip install 'pigeon-posters[{EXTRAS[known]}]'")


def main() -> None:
    """Entry point: run a command, turn user-level errors into one line and an exit code."""
    try:
        _run()
    except PigeonError as error:
        if os.environ.get("_PIGEON_DEBUG"):
            raise
        sys.stderr.write(f"pigeon: {error}\n")
        sys.exit(error.exit_code)


def _run() -> None:
    try:
        build_app()()
    except ModuleNotFoundError as error:
        if missing := part_missing(error, sys.argv[1:]):
            raise missing from error
        raise


if __name__ == "__main__":
    main()
