"""Commands of this part; registered by generator/cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from generator.training.nano.recipe import NanoRun

train = typer.Typer(help="Train the nano model from openly licensed pictures, stage by stage.", no_args_is_help=True)

Start = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoint that training goes on from, for what no stage has trained; its critic, imputer and retouch, too. "
        "Default: random weights."
    ),
]
Seconds = Annotated[float | None, typer.Option(help="Wall-clock budget of the stage, all resumed runs together.")]


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
    app.add_typer(train, name="train")


@train.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(
            help="text, vae, tokenizer, caches, critic, imputer, retouch, decoder, language, scorer, diffusion, polish, alignment, "
            "preference, in this order; or all."
        ),
    ],
    seconds: Seconds = None,
    threads: Annotated[int, typer.Option(help="Threads; two processes of one each are faster than one of two.")] = 1,
    start: Start = None,
) -> None:
    """Train one stage, or resume it; a finished one ends at once."""
    import logging

    import torch

    from generator.training.nano.recipe import STAGES, run_stage

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    run = _run(start)
    for step in STAGES if name == "all" else (name,):
        run_stage(step, run, seconds)
        typer.echo(f"Stage {step} is done: {run.root / step}")


@train.command()
def export(
    output: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("deploy/models/nano"),
    start: Start = None,
) -> None:
    """Write what is trained so far as a checkpoint (fp16 safetensors)."""
    from generator.training.nano.recipe import export as write

    write(_run(start), output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    typer.echo(f"Wrote {output}: {size / 1e6:.1f} MB")


def _run(start: Path | None) -> NanoRun:
    from generator.pigeon.presets import preset
    from generator.training.nano.recipe import NanoRun
    from schemas.settings import load_settings

    state = load_settings().state_dir
    return NanoRun(state / "training" / "nano", state / "cache", preset("nano"), start)
