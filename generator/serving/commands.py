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
        str, typer.Option(help="onnx (served on CPUs), or tensorrt: its graphs compiled ahead of time as well.")
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="Repository folder; by default the one that Triton serves.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What runs LLaMA: onnxruntime, a graph like the others, or vllm, a process of its own.")
    ] = "onnxruntime",
    compute_capability: Annotated[
        str, typer.Option(help="GPU generations for --target tensorrt: 89, or several as 80,86,89.")
    ] = "89",
) -> None:
    """Write a complete Triton model repository from a checkpoint; unchanged input builds nothing.

    --engine vllm writes personalizer/engine, which `python -m generator.serving.engine` serves to Triton at triton.engine_socket.
    --target tensorrt compiles its graphs into the folder tensorrt beside it and names each that does not compile (exit code 7).
    """
    from generator.pigeon.placement import Placement
    from generator.serving import tensorrt
    from generator.serving.build import build_repository
    from generator.serving.engine_folder import EngineChoice, engine_socket
    from generator.serving.repository import checkpoint_folder, repository_folder
    from schemas.settings import load_settings

    settings = load_settings()
    chosen = {name: value for name, value in (("checkpoint", checkpoint), ("preset", preset)) if value is not None}
    if chosen:
        settings = load_settings(models={**settings.models.model_dump(), **chosen})
    if engine not in {"onnxruntime", "vllm"}:
        raise InputError(f"--engine {engine}: must be onnxruntime or vllm")
    if target not in {"onnx", "tensorrt"}:
        raise InputError(f"--target {target}: must be onnx or tensorrt")
    if target == "tensorrt":  # before the export, so that a missing extra costs no minute
        tensorrt.import_tensorrt()
    capabilities = tensorrt.parse_compute_capabilities(compute_capability)
    folder = output or repository_folder(settings)
    device = settings.compute.device
    placement = None if device == "cpu" else Placement.of(device, "fp32")
    built = build_repository(
        checkpoint_folder(settings),
        settings.models.preset,
        folder,
        report=typer.echo,
        placement=placement,
        engine=EngineChoice(engine_socket(settings)) if engine == "vllm" else None,
    )
    if built.dropped_adapters:
        numbers = ", ".join(str(number) for number in built.dropped_adapters)
        typer.echo(f"adapters {numbers} belong to another checkpoint and were left out")
    state = "built" if built.rebuilt else "unchanged"
    typer.echo(f"model repository {folder}: {state}, build {built.manifest.build}, {len(built.manifest.models)} models")
    if target == "tensorrt":
        plans = folder.with_name("tensorrt")
        compiled = tensorrt.compile_repository(folder, plans, capabilities, report=typer.echo)
        typer.echo(f"{plans}: {compiled.claim}")
        if failed := [graph.graph for graph in compiled.graphs if graph.plan is None]:
            raise PartialFailure(
                f"--target tensorrt: {', '.join(failed)} did not compile; {plans}/report.json says why"
            )


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
    from generator.serving.repository import MODELS, checkpoint_folder
    from schemas.settings import load_settings

    settings = load_settings()
    with TritonPigeon(settings) as model:
        manifest = model.load_repository(checkpoint_folder(settings))
    typer.echo(f"Triton at {settings.triton.url}: {len(MODELS)} models of build {manifest.build} loaded")
