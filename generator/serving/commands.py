"""Commands `pigeon models build`, `check` and `load`; registered by generator/cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import InputError, PartialFailure, PigeonError


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon models`."""
    models.command()(build)
    models.command()(check)
    models.command()(load)


def build(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; by default models.checkpoint, else the nano weights.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="nano or lavit-7b; by default models.preset.")] = None,
    target: Annotated[
        str, typer.Option(help="cpu, as `pigeon up` serves it; or gpu: float16, for NVIDIA's Triton image.")
    ] = "cpu",
    output: Annotated[
        Path | None,
        typer.Option(help="Repository folder; by default the one that Triton serves, with -gpu behind it for gpu."),
    ] = None,
    compute_capability: Annotated[
        str, typer.Option(help="For gpu: GPU generations that it is for, such as 90, or several as 80,86,89.")
    ] = "80,86,89,90,100,120",
    compile_graphs: Annotated[
        bool, typer.Option("--compile", help="For gpu: compile each graph with TensorRT-RTX as a check; no GPU needed.")
    ] = False,
) -> None:
    """Write a complete Triton model repository from a checkpoint; unchanged input builds nothing.

    --compile names each graph that does not compile (exit code 7); a GPU host builds its own engines when it starts.
    """
    from generator.pigeon.placement import Placement
    from generator.serving.build import build_repository
    from generator.serving.gpu import tensorrt
    from generator.serving.gpu.release import parse_compute_capabilities
    from generator.serving.gpu.target import GpuTarget
    from generator.serving.repository import checkpoint_folder, repository_folder
    from generator.serving.targets import CpuTarget
    from schemas.settings import load_settings

    settings = load_settings()
    chosen = {name: value for name, value in (("checkpoint", checkpoint), ("preset", preset)) if value is not None}
    if chosen:
        settings = load_settings(models={**settings.models.model_dump(), **chosen})
    if target not in {"cpu", "gpu"}:
        raise InputError(f"--target {target}: must be cpu or gpu")
    if compile_graphs and target == "cpu":
        raise InputError("--compile: only graphs of --target gpu are compiled")
    if compile_graphs:  # before the export, so that a missing extra costs no minute
        tensorrt.import_tensorrt()
    capabilities = parse_compute_capabilities(compute_capability)
    served = repository_folder(settings)
    folder = output or (served if target == "cpu" else served.with_name(f"{served.name}-gpu"))
    device = settings.compute.device
    built = build_repository(
        checkpoint_folder(settings),
        settings.models.preset,
        folder,
        target=CpuTarget() if target == "cpu" else GpuTarget(capabilities),
        report=typer.echo,
        placement=None if device == "cpu" else Placement.of(device, "fp32"),
    )
    if built.dropped_adapters:
        numbers = ", ".join(str(number) for number in built.dropped_adapters)
        typer.echo(f"adapters {numbers} belong to another checkpoint and were left out")
    state = "built" if built.rebuilt else "unchanged"
    typer.echo(f"model repository {folder}: {state}, build {built.manifest.build}, {len(built.manifest.models)} models")
    if compile_graphs:
        compiled = tensorrt.compile_repository(folder, capabilities, report=typer.echo)
        typer.echo(compiled.claim)
        if failed := [graph.model for graph in compiled.graphs if graph.reason]:
            raise PartialFailure(f"--compile: {', '.join(failed)} did not compile, for the reasons above")


def check() -> None:
    """Check that the model repository is complete and fits the settings, and whether Triton serves it."""
    from generator.serving.client import TritonPigeon
    from generator.serving.repository import check_repository, checkpoint_folder, repository_folder
    from schemas.settings import load_settings

    settings = load_settings()
    folder = repository_folder(settings)
    manifest = check_repository(folder, settings.models.preset, checkpoint_folder(settings))
    typer.echo(f"model repository {folder}: complete, build {manifest.build}, {manifest.runtime}")
    with TritonPigeon(settings) as model:
        try:
            model.check_served(manifest)
        except PigeonError as error:
            raise type(error)(f"the repository is good, but {error}") from error
        versions = ", ".join(str(number) for number in model.loaded_versions("personalizer"))
        unused = [state for state in model.servers() if state.problem]
        used = ", ".join(state.address for state in model.servers() if not state.problem)
    typer.echo(f"Triton at {used}: serves this build, adapters {versions}")
    if unused:
        raise PartialFailure("; ".join(f"not used: {state.address}: {state.problem}" for state in unused))


def load() -> None:
    """Have a running Triton load the model repository."""
    from generator.serving.client import TritonPigeon
    from generator.serving.repository import checkpoint_folder
    from schemas.settings import load_settings

    settings = load_settings()
    with TritonPigeon(settings) as model:
        manifest = model.load_repository(checkpoint_folder(settings))
    typer.echo(f"Triton at {settings.triton.url}: {len(manifest.models)} models of build {manifest.build} loaded")
