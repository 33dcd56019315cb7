"""Commands `pigeon models build`, `check`, `load`, `push` and `pull`; registered by generator/cli.py."""

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
    models.command()(push)
    models.command()(pull)


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
    engine: Annotated[
        str, typer.Option(help="What runs LLaMA: onnxruntime, a graph like the others, or vllm, a process of its own.")
    ] = "onnxruntime",
    compute_capability: Annotated[
        str, typer.Option(help="For gpu: GPU generations that it is for, such as 90, or several as 80,86,89.")
    ] = "80,86,89,90,100,120",
    compile_graphs: Annotated[
        bool, typer.Option("--compile", help="For gpu: compile each graph with TensorRT-RTX as a check; no GPU needed.")
    ] = False,
) -> None:
    """Write a complete Triton model repository from a checkpoint; unchanged input builds nothing.

    --compile names each graph that does not compile (exit code 7); a GPU host builds its own engines when it starts.
    --engine vllm writes personalizer/engine, which `python -m generator.serving.engine` serves to Triton at triton.engine_socket.
    """
    from generator.pigeon.placement import Placement
    from generator.serving.build import build_repository
    from generator.serving.engine_folder import EngineTarget, engine_socket
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
    if engine not in {"onnxruntime", "vllm"}:
        raise InputError(f"--engine {engine}: must be onnxruntime or vllm")
    if engine == "vllm" and target == "gpu":
        raise InputError("--engine vllm: is built with --target cpu only; the gpu target runs LLaMA as a graph")
    if compile_graphs and target == "cpu":
        raise InputError("--compile: only graphs of --target gpu are compiled")
    if compile_graphs:  # before the export, so that a missing extra costs no minute
        tensorrt.import_tensorrt()
    capabilities = parse_compute_capabilities(compute_capability)
    served = repository_folder(settings)
    folder = output or (served if target == "cpu" else served.with_name(f"{served.name}-gpu"))
    device = settings.compute.device
    on_cpus = EngineTarget(engine_socket(settings)) if engine == "vllm" else CpuTarget()
    built = build_repository(
        checkpoint_folder(settings),
        settings.models.preset,
        folder,
        target=on_cpus if target == "cpu" else GpuTarget(capabilities),
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


def push(
    again: Annotated[
        bool,
        typer.Option("--again", help="Send every file, also those that are there: for a bucket with damaged ones."),
    ] = False,
) -> None:
    """Publish the model repository with its adapters in S3, under its hash.

    It becomes the release that servers should have: `pigeon models pull` on each server's host fetches it.
    What is there already is not sent again.
    """
    from generator.serving import release
    from generator.serving.repository import repository_folder
    from generator.storage.objects import Store
    from schemas.settings import load_settings

    settings = load_settings()
    store = Store(settings.s3)
    store.check(writes=True)
    folder, preset = repository_folder(settings), settings.models.preset
    made, sent = release.push(store, folder, preset, again=again, report=typer.echo)
    typer.echo(
        f"{store.uri(release.release_key(made.sha256))}: build {made.build}, {len(made.files)} files, "
        f"adapters {', '.join(map(str, made.adapters))}; {sent} bytes sent"
    )


def pull(
    release: Annotated[
        str | None, typer.Option(help="Hash of a release; by default the one that was pushed last.")
    ] = None,
    then_load: Annotated[
        bool, typer.Option("--load", help="Then have the servers of triton.url load it, one after the other.")
    ] = False,
) -> None:
    """Fetch a release from S3 into this host's model repository, whole and verified.

    A pull that broke off goes on.
    """
    from generator.serving.client import TritonPigeon
    from generator.serving.pull import pull as pull_release
    from generator.serving.repository import repository_folder
    from generator.storage.objects import Store
    from schemas.settings import load_settings

    settings = load_settings()
    store = Store(settings.s3)
    store.check()
    folder = repository_folder(settings)
    pulled = pull_release(store, folder, settings.models.preset, release)
    if pulled.dropped_adapters:
        numbers = ", ".join(map(str, pulled.dropped_adapters))
        typer.echo(f"adapters {numbers} are not in the release and were taken out")
    state = f"{pulled.fetched_bytes} bytes fetched" if pulled.changed else "unchanged"
    typer.echo(f"model repository {folder}: release {pulled.release.sha256}, build {pulled.release.build}, {state}")
    if then_load:
        with TritonPigeon(settings) as model:
            model.load_repository()
        typer.echo(f"Triton at {settings.triton.url}: build {pulled.release.build} loaded")
