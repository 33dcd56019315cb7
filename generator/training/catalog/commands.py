"""`pigeon dataset ...`, and what `pigeon train align` and `pigeon evaluate --dataset` do.

No torch is imported until they run.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.training.catalog.progress import progress_bars

if TYPE_CHECKING:
    from generator.pigeon.placement import Placement
    from generator.training.catalog.dataset.build import BuildConfig, Redraw, Source
    from generator.training.catalog.dataset.manifest import DatasetManifest, Redrawn
    from generator.training.catalog.dataset.reader import Dataset
    from schemas.settings import Settings

DATASET_HELP = "A data set: its folder, or the first digits of its id in the bucket."
RECOGNISED = 0.5
"""Share of redrawn pictures that must be nearest to their own original; below it the build warns."""

Name = Annotated[str, typer.Argument(metavar="DATASET", help=DATASET_HELP)]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", help="Checkpoint folder; default: models.checkpoint, or nano's.")
]


class SplitBy(StrEnum):
    """What is held out."""

    both = "both"
    users = "users"


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add `pigeon dataset`."""
    group = typer.Typer(
        help="Your catalogue and clicks as an immutable data set, for `pigeon train align`.", no_args_is_help=True
    )
    group.command()(build)
    group.command()(show)
    group.command()(erase)
    app.add_typer(group, name="dataset")


def build(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: the bucket, under datasets/<id>/.")
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option(help="Catalogue file (.csv, .jsonl, .parquet) in the place of Postgres.")
    ] = None,
    clicks: Annotated[
        Path | None, typer.Option(help="Clicks file, with --catalog; fields as of user.interactions.v1.")
    ] = None,
    windows: Annotated[
        Path | None,
        typer.Option(
            help="In the place of --clicks: windows with user_id, occurred_at, history, reference, and target_codes or "
            "target_image where the answer is not the reference itself."
        ),
    ] = None,
    without: Annotated[
        Path | None, typer.Option("--without-users", help="File of user ids, a line each, to leave out (files only).")
    ] = None,
    checkpoint: CheckpointOption = None,
    split: Annotated[
        SplitBy, typer.Option(help="both: held-out users, and later times; users: held-out users alone.")
    ] = SplitBy.both,
    min_windows: Annotated[int, typer.Option(min=1, help="Training windows below which nothing is built.")] = 100,
    redraw: Annotated[
        bool, typer.Option("--redraw/--no-redraw", help="Redraw 64 pictures by the checkpoint and compare.")
    ] = True,
    min_recognised: Annotated[
        float, typer.Option(min=0, max=1, help="Warn when fewer of the redrawn pictures are nearest to their original.")
    ] = RECOGNISED,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what a killed build has read.")] = False,
) -> None:
    """Build a data set from Postgres and the catalogue, or from files without any server.

    A build that was killed goes on where it was when it is run again.
    """
    from generator.serving.repository import checkpoint_folder
    from generator.training.catalog.dataset.build import Build
    from generator.training.catalog.dataset.card import redrawn_line
    from schemas.fetch import Fetcher
    from schemas.settings import load_settings

    settings = load_settings()
    folder = checkpoint or checkpoint_folder(settings)
    config = _build_config(folder, settings, split, min_windows)
    source = _source(settings, catalog, clicks, windows, without, config.history)
    built = settings.state_dir / "dataset" / "built"
    if out is None:
        shutil.rmtree(built, ignore_errors=True)
    with progress_bars() as progress:
        made = Build(
            source,
            config,
            Fetcher(settings, files=catalog is not None),
            settings.state_dir / "dataset",
            progress,
            _redraw(folder) if redraw else None,
            fresh,
        )
        manifest = made.run(out or built)
    if out is None:
        _store(settings, built)
    _say(manifest)
    typer.echo(redrawn_line(manifest))
    if manifest.redrawn and manifest.redrawn.recognised < min_recognised:
        typer.secho(
            f"Warning: only {manifest.redrawn.recognised:.0%} of the redrawn pictures are nearest to their original (--min-recognised "
            f"{min_recognised:.0%}): this checkpoint cannot say much of this catalogue. Look at redrawn.webp first.",
            fg="yellow",
            err=True,
        )


def show(name: Name) -> None:
    """Print a data set's card; every file is compared with its hash."""
    from generator.training.catalog.dataset.card import card

    typer.echo(card(open_dataset(name).manifest))


def erase(
    name: Annotated[
        str | None, typer.Argument(metavar="[DATASET]", help=f"{DATASET_HELP} Default: all in the bucket.")
    ] = None,
    user: Annotated[
        list[str] | None,
        typer.Option(help="User id; may be repeated. Default: who was erased in Postgres since it was read."),
    ] = None,
    trainings: Annotated[
        Path | None, typer.Option(help="Folder under which trainings are looked for that learned from them.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only name them.")] = False,
) -> None:
    """Replace data sets by versions without erased users; name what was trained on them."""
    from generator.training.catalog.dataset.replace import replace_all

    settings = _settings()
    for line in replace_all(settings, name, user, trainings or settings.state_dir, dry_run=dry_run):
        typer.echo(line)


def align(
    dataset: Annotated[str, typer.Option(help=DATASET_HELP)],
    out: Annotated[Path, typer.Option("--out", help="Folder of the training; a training that is there is resumed.")],
    checkpoint: CheckpointOption = None,
    start: Annotated[
        Path | None, typer.Option(help="Adapter to begin from, in the place of the checkpoint's own.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps at most.")] = 2_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows a step.")] = 16,
    part_rows: Annotated[
        int | None, typer.Option(min=1, help="Windows at once (gradient accumulation); changes memory, not the result.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak; lavit-7b: 1e-5.")] = 4e-4,
    warmup_steps: Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")] = 20,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between two validations.")] = 200,
    validation_windows: Annotated[int, typer.Option(min=1, help="Windows that a validation reads, at most.")] = 512,
    patience: Annotated[int, typer.Option(min=1, help="Validations without a better one before it stops.")] = 5,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice, keep fewer.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the order of windows and the masks.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the CPU.")] = 1,
    write_to: Annotated[
        Path | None,
        typer.Option("--write-checkpoint", help="Folder for the whole checkpoint with what was learned, to be served."),
    ] = None,
) -> None:
    """Align a checkpoint to a data set (stage 1): LoRA, mask generator and reference adapter learn.

    Under `accelerate launch -m generator.cli train align ...` several processes share each batch.
    """
    import torch

    from generator.pigeon.placement import Placement
    from generator.serving.repository import checkpoint_folder
    from generator.training.catalog.aligner import AlignConfig
    from generator.training.catalog.aligner import align as run
    from generator.training.catalog.whole import write_checkpoint
    from schemas.errors import InputError

    if write_to is not None and write_to.exists():
        raise InputError(f"--write-checkpoint: {write_to} is there already; give another folder")
    torch.set_num_threads(threads)
    settings = _settings()
    folder = checkpoint or checkpoint_folder(settings)
    config = AlignConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        seed=seed,
        part_rows=part_rows,
        validate_every=validate_every,
        validation_windows=validation_windows,
        patience=patience,
        checkpointing=gradient_checkpointing,
    )
    with progress_bars() as progress:
        found = run(
            open_dataset(dataset),
            folder,
            out,
            config,
            cache=settings.state_dir / "cache" / "datasets",
            progress=progress,
            start=start,
            placement=Placement.of(settings.compute.device, settings.compute.precision),
        )
    typer.echo(
        f"Validation loss {found.first:.4f} -> {found.best:.4f} nats per code at step {found.best_step}"
        + (f"; stopped at step {found.steps} for want of progress" if found.stopped else "")
    )
    typer.echo(f"The adapter: {found.adapter}")
    if write_to is not None:
        write_checkpoint(folder, found.adapter, write_to)
        typer.echo(f"The checkpoint with it: {write_to}; PIGEON_MODELS__CHECKPOINT={write_to} pigeon models build")


def open_dataset(name: str) -> Dataset:
    """A data set by folder, or by the first digits of its id in the bucket.

    Raises:
        InputError: there is none, or it was changed.
    """
    from generator.training.catalog.dataset.reader import Dataset

    if Path(name).is_dir():
        return Dataset.open(Path(name))
    from generator.storage.objects import Store
    from generator.training.catalog.dataset.storage import fetch

    settings = _settings()
    return Dataset.open(fetch(Store(settings.s3), name, settings.state_dir / "cache" / "datasets" / "fetched"))


def _settings() -> Settings:
    from schemas.settings import load_settings

    return load_settings()


def _build_config(checkpoint: Path, settings: Settings, split: SplitBy, min_windows: int) -> BuildConfig:
    from generator.pigeon.config import PigeonConfig
    from generator.pigeon.presets import preset
    from generator.training.catalog.dataset.build import BuildConfig
    from generator.training.catalog.dataset.manifest import tokenizer_version
    from schemas.errors import ModelError

    path = checkpoint / "config.json"
    try:
        config = PigeonConfig.from_json(path) if path.is_file() else preset(settings.models.preset)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return BuildConfig(
        preset=config.name,
        tokenizer=tokenizer_version(checkpoint),
        image_size=config.tokenizer.vision.image_size,
        history=config.history,
        split_by=split.value,
        min_windows=min_windows,
    )


def _source(
    settings: Settings,
    catalog: Path | None,
    clicks: Path | None,
    windows: Path | None,
    without: Path | None,
    history: int,
) -> Source:
    from schemas.errors import InputError

    if catalog is None:
        if clicks or windows or without:
            raise InputError("--clicks, --windows and --without-users go with --catalog; without it Postgres is read")
        from generator.storage.postgres import connect
        from generator.training.catalog.dataset.database import DatabaseSource

        return DatabaseSource(connect(settings.database), settings.consumer.positive_kinds)
    if (clicks is None) == (windows is None):
        raise InputError("--catalog goes with either --clicks or --windows")
    from generator.training.catalog.dataset.build import FileSource

    erased = tuple(sorted(set(without.read_text(encoding="utf-8").split("\n")) - {""})) if without else ()
    return FileSource(catalog, clicks, windows, settings.consumer.positive_kinds, history, erased)


def _redraw(checkpoint: Path) -> Redraw:
    def run(folder: Path) -> Redrawn:
        from generator.pigeon.checkpoint import load_model
        from generator.training.catalog.redraw import redraw

        return redraw(folder, load_model(checkpoint))

    return run


def _store(settings: Settings, folder: Path) -> None:
    from generator.storage.objects import Store
    from generator.training.catalog.dataset.storage import upload

    upload(Store(settings.s3), folder)
    shutil.rmtree(folder)


def _say(manifest: DatasetManifest) -> None:
    counts = manifest.counts
    typer.echo(
        f"Data set {manifest.dataset_id}: {counts['train_windows']} windows to train on, {counts['validation_windows']} to validate, "
        f"{counts['test_windows']} to test; {counts['items']} items, {counts['images']} pictures"
    )
    for reason, count in manifest.left_out.items():
        typer.echo(f"  left out: {reason}: {count}")


def evaluate_dataset(
    dataset: str,
    checkpoint: Path,
    adapter: Path | None,
    count: int,
    extractors: Sequence[str],
    clip: Path | None,
    dino: Path | None,
    baselines: str,
    alphas: Sequence[float],
    output: Path,
    seed: int,
    placement: Placement,
) -> None:
    """What `pigeon evaluate --dataset` does; its options' checks are in `catalog.evaluation`."""
    import json

    from rich.console import Console

    from generator.training.catalog.evaluation import CATALOG_BASELINES, CatalogRequest, evaluate_catalog
    from generator.training.catalog.report import as_json, contact_sheet, markdown, tables

    named = tuple(name.strip() for name in baselines.split(","))
    if baselines in ("all", "none"):
        named = CATALOG_BASELINES if baselines == "all" else ()
    request = CatalogRequest(
        checkpoint, adapter, count, tuple(extractors), clip, dino, named, tuple(alphas), seed, placement
    )
    with progress_bars() as progress:
        found = evaluate_catalog(request, open_dataset(dataset), _settings().state_dir / "cache" / "datasets", progress)
    console = Console()
    for table in tables(found):
        console.print(table.rich())
    (output / "evaluation.json").write_text(json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n")
    (output / "evaluation.md").write_text(markdown(found))
    contact_sheet(found, output / "contact-sheet.webp")
    typer.echo(f"Not run: {'; '.join(found.not_run)}")
    typer.echo(f"Written to {output}")
