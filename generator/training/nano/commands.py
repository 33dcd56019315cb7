"""`pigeon train` and `pigeon evaluate`; registered by generator/cli.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.training.catalog.commands import DATASET_HELP, align, evaluate_dataset
from generator.training.catalog.progress import progress_bars

if TYPE_CHECKING:
    from generator.pigeon.placement import Placement
    from generator.training.nano.stages.recipe import NanoRun

EXTRACTORS = ("own", "efficientnet", "pixels")
"""Names of all extractors, as `evaluation.extractors` has them; that module imports torch."""

train = typer.Typer(
    help="Align a checkpoint to your data set, or train the nano model from openly licensed pictures, stage by stage.",
    no_args_is_help=True,
)

Start = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoint that training goes on from, for what no stage has trained; its critic, imputer and retouch, too. "
        "Default: random weights."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, or auto: the first GPU. Default: the setting compute.device.")
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision", help="auto, fp32, bf16 or fp16. Default: the setting compute.precision.", show_default=False
    ),
]
Seconds = Annotated[float | None, typer.Option(help="Wall-clock budget of the stage, all resumed runs together.")]


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
    train.command()(align)
    app.add_typer(train, name="train")
    app.command()(evaluate)


@train.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(
            help="text, vae, tokenizer, caches, critic, imputer, retouch, decoder, language, scorer, diffusion, distil, polish, "
            "alignment, preference, in this order; or all."
        ),
    ],
    seconds: Seconds = None,
    threads: Annotated[int, typer.Option(help="Threads; two processes of one each are faster than one of two.")] = 1,
    start: Start = None,
    device: Device = None,
    precision: PrecisionName = None,
) -> None:
    """Train one stage, or resume it; a finished one ends at once."""
    import logging

    import torch

    _require_stages()
    from generator.training.nano.stages.recipe import STAGES, run_stage

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    run = _run(start, _placement(device, precision))
    for step in STAGES if name == "all" else (name,):
        run_stage(step, run, seconds)
        typer.echo(f"Stage {step} is done: {run.root / step}")


@train.command()
def export(
    output: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("deploy/models/nano"),
    start: Start = None,
) -> None:
    """Write what is trained so far as a checkpoint (fp16 safetensors)."""
    _require_stages()
    from generator.training.nano.stages.recipe import export as write

    write(_run(start), output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    typer.echo(f"Wrote {output}: {size / 1e6:.1f} MB")


def _require_stages() -> None:
    """Raises InputError where nano's stages are not installed; wheels are without them."""
    from importlib.util import find_spec

    from schemas.errors import InputError

    if find_spec("generator.training.nano.stages") is None:
        raise InputError(
            "nano's stages are in a checkout of the repository, not in the wheel: pip install -e '.[train]' there"
        )


def _placement(device: str | None, precision: str | None) -> Placement:
    """The options' placement, and the settings' for what they leave out."""
    from generator.pigeon.placement import Placement
    from schemas.settings import load_settings

    compute = load_settings().compute
    return Placement.of(device or compute.device, precision or compute.precision)


def _run(start: Path | None, placement: Placement | None = None) -> NanoRun:
    from generator.pigeon.placement import Placement
    from generator.pigeon.presets import preset
    from generator.training.nano.stages.recipe import NanoRun
    from schemas.settings import load_settings

    state = load_settings().state_dir
    return NanoRun(state / "training" / "nano", state / "cache", preset("nano"), start, placement or Placement())


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
        Path, typer.Option(help="Folder for evaluation.json, evaluation.md, contact-sheet.webp, alpha.svg, alpha.png.")
    ] = Path("evaluation"),
    seed: Annotated[int, typer.Option(help="Of the users, their pictures and the intervals.")] = 7,
    device: Device = None,
    precision: PrecisionName = None,
    dataset: Annotated[
        str | None, typer.Option(help=f"{DATASET_HELP} Its held-out users, in the place of simulated ones.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="With --dataset: a trained adapter, beside the checkpoint's own.")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="With --dataset: a CLIP folder of transformers, for CS and CIS.")
    ] = None,
    dino: Annotated[Path | None, typer.Option(help="With --dataset: a DINOv2 folder of transformers, for DIS.")] = None,
) -> None:
    """Draw for simulated users whose taste is known, or for a data set's held-out users, and measure it.

    Simulated: style, concept, likeness, baselines, α_r sweep. --dataset: likeness to reference and history, the likelihood of the
    next item behind the own and another user's history; --trained and --compare do not go with it.

    The first run encodes thousands of real drawings, which are kept under the state folder; later ones are quicker.
    """
    import json

    from rich.console import Console

    from generator.training.evaluation.plots import contact_sheet, plot_alphas
    from generator.training.evaluation.report import as_json, markdown, tables
    from generator.training.evaluation.run import ALL_BASELINES, ALPHAS, Request
    from generator.training.evaluation.run import evaluate as run
    from generator.training.nano.samples import IconSamples
    from schemas.errors import InputError
    from schemas.settings import load_settings

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output: {output} cannot be made a folder ({error.strerror})") from error
    if dataset is not None:
        if compare is not None or not held_out:
            raise InputError("--trained and --compare do not go with --dataset")
        evaluate_dataset(
            dataset,
            checkpoint,
            adapter,
            count,
            extractor or EXTRACTORS,
            clip,
            dino,
            baselines,
            alpha or ALPHAS,
            output,
            seed,
            _placement(device, precision),
        )
        return
    if adapter or clip or dino:
        raise InputError("--adapter, --clip and --dino go with --dataset")
    chosen: Sequence[str] = [name.strip() for name in baselines.split(",")]
    if baselines in ("all", "none"):
        chosen = ALL_BASELINES if baselines == "all" else ()
    request = Request(
        checkpoint,
        count,
        held_out,
        tuple(extractor or EXTRACTORS),
        tuple(chosen),
        tuple(alpha or ALPHAS),
        compare,
        seed,
        _placement(device, precision),
    )
    with progress_bars() as progress:
        cache = load_settings().state_dir / "cache"
        found = run(request, IconSamples(cache), cache / "evaluation", progress)
    console = Console()
    for table in tables(found):
        console.print(table.rich())
    (output / "evaluation.json").write_text(json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n")
    (output / "evaluation.md").write_text(markdown(found))
    contact_sheet(found, output / "contact-sheet.webp")
    plot_alphas(found, output)
    spent = ", ".join(f"{step} {seconds / count:.2f}" for step, seconds in found.seconds.items())
    typer.echo(f"Seconds per sample: {spent}. Written to {output}")
