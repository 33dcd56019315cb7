"""The build of a Triton repository from a checkpoint; the result is put in place in one step."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import generator
from generator.pigeon.config import PigeonConfig
from generator.serving import adapters
from generator.serving.configs import ModelSpec, forwarded, model_specs
from generator.serving.engine_folder import FOLDER, EngineChoice, write_engine_folder
from generator.serving.repository import (
    BUILD_PARAMETER,
    DRAWING_PARAMETER,
    MANIFEST,
    TOKENIZER_PARAMETER,
    WEIGHTS_PARAMETER,
    AgreementEntry,
    ModelEntry,
    RepositoryManifest,
    TensorShape,
    check_repository,
    combined_hash,
    file_hash,
    read_manifest,
    tree_hashes,
)
from generator.serving.tensor_hash import content_hash
from generator.serving.versions import checkpoint_versions
from schemas.errors import LockHeld, ModelError

if TYPE_CHECKING:
    from generator.pigeon.model import PigeonModel
    from generator.pigeon.placement import Placement

Target = Literal["onnx", "tensorrt"]
LIBRARIES = ("torch", "transformers", "diffusers", "peft", "onnx", "onnxscript", "onnxruntime")
# What a backend may import; copied under the same names, so that one import line works here and there.
PIGEON_FILES = ("prompt.py", "sampling.py", "ddim.py", "lcm.py")
BACKEND_FILES = (
    "answers.py",
    "generation.py",
    "graph.py",
    "masks.py",
    "pictures.py",
    "previews.py",
    "task.py",
    "triton.py",
)
# Models that read the checkpoint's configuration, and those of them that read texts.
CONFIGURED = {"answers", "image_scorer", "pictures", "pigeon", adapters.PERSONALIZER}
READING = {"answers", "image_scorer", "pigeon"}
SOURCE = Path(generator.__file__).parent


@dataclass(frozen=True)
class Built:
    """What a build did."""

    manifest: RepositoryManifest
    rebuilt: bool
    kept_adapters: tuple[int, ...] = ()
    dropped_adapters: tuple[int, ...] = ()


def build_repository(
    checkpoint: Path,
    preset: str,
    repository: Path,
    *,
    report: Callable[[str], None] = lambda line: None,
    placement: Placement | None = None,
    engine: EngineChoice | None = None,
) -> Built:
    """Export, compare, write, and replace `repository`; nothing is done when no input has changed.

    placement: where PyTorch traces and computes what graphs are compared with; in float32 everywhere.
    engine: what runs LLaMA in the place of a graph of its own.

    Raises:
        ModelError: the checkpoint is not whole or not of this preset, or a graph disagrees with PyTorch.
        LockHeld: another build of this repository is under way.
    """
    repository.parent.mkdir(parents=True, exist_ok=True)
    with _lock(repository):
        _finish_replace(repository)
        hashes = tree_hashes(checkpoint)
        key = _build_key(hashes, preset, engine)
        if (current := _current(repository, preset, key)) is not None:
            return Built(current, rebuilt=False)
        staging = repository.with_name(f"{repository.name}.building")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            manifest = _write(checkpoint, preset, staging, hashes, key, report, placement, engine)
            kept, dropped = _carry_adapters(repository, staging, manifest.adapter_base)
            (staging / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            _replace(repository, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Built(manifest, rebuilt=True, kept_adapters=kept, dropped_adapters=dropped)


def _build_key(hashes: dict[str, str], preset: str, engine: EngineChoice | None) -> str:
    sources = [
        *sorted((SOURCE / "pigeon").glob("*.py")),
        *sorted((SOURCE / "serving" / "backends").glob("*.py")),
        *(
            SOURCE / "serving" / name
            for name in ("build.py", "configs.py", "export.py", "repository.py", "tensor_hash.py", "versions.py")
        ),
    ]
    if engine is not None:
        sources += [SOURCE / "serving" / "engine_folder.py", *sorted((SOURCE / "serving" / "engine").glob("*.py"))]
    code = {path.relative_to(SOURCE).as_posix(): file_hash(path) for path in sources}
    return combined_hash([hashes, code, _libraries(), preset, *([] if engine is None else [engine.parameters])])


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def _current(repository: Path, preset: str, key: str) -> RepositoryManifest | None:
    """The manifest of what is there, if it is whole and what would be built."""
    try:
        if read_manifest(repository).build != key:
            return None
        return check_repository(repository, preset)
    except ModelError:
        return None


def _write(
    checkpoint: Path,
    preset: str,
    staging: Path,
    hashes: dict[str, str],
    key: str,
    report: Callable[[str], None],
    placement: Placement | None,
    engine: EngineChoice | None,
) -> RepositoryManifest:
    from transformers.utils.logging import disable_progress_bar

    from generator.pigeon.checkpoint import load_model
    from generator.serving.export import export, networks

    disable_progress_bar()  # type: ignore[no-untyped-call]
    pigeon = load_model(checkpoint, placement=placement and placement.learning)
    config = pigeon.config
    if config.name != preset:
        raise ModelError(
            f"checkpoint {checkpoint}: is a {config.name}, the settings say preset {preset}; change PIGEON_MODELS__PRESET"
        )
    agreement: dict[str, AgreementEntry] = {}
    for network in networks(pigeon):
        if engine is not None and network.model == adapters.PERSONALIZER:
            continue
        folder = staging / network.model / ("graph" if network.model == adapters.PERSONALIZER else "1")
        folder.mkdir(parents=True, exist_ok=True)
        found = export(network, folder / network.file)
        agreement[network.title] = AgreementEntry(
            max_abs_diff=found.max_abs_diff, scale=found.scale, flipped_share=found.flipped_share
        )
        report(
            f"{network.title:<22} max |ONNX - PyTorch| = {found.max_abs_diff:.1e} at values up to {found.scale:.3g}"
            + (f", decisions differing {found.flipped_share:.2%}" if found.decisions else "")
        )
    versions = checkpoint_versions(hashes, pigeon)
    parameters = {
        BUILD_PARAMETER: key,
        TOKENIZER_PARAMETER: versions.tokenizer_version,
        DRAWING_PARAMETER: versions.drawing_version,
        WEIGHTS_PARAMETER: versions.base_weights,
    }
    entries = {}
    for spec in model_specs(config, pigeon.diffusion.latent_shape):
        if engine is not None and spec.name == adapters.PERSONALIZER:
            spec = forwarded(spec, engine.parameters)  # noqa: PLW2901 -- the same model, answered by the engine
            write_engine_folder(staging / spec.name / FOLDER, checkpoint, pigeon, versions.adapter_base)
        _write_model(staging / spec.name, spec, checkpoint, pigeon, parameters, versions.adapter_base)
        entries[spec.name] = _entry(staging / spec.name, spec)
    return RepositoryManifest(
        build=key,
        preset=preset,
        target="onnx",
        runtime="Triton's Python backend with ONNX Runtime, CPUExecutionProvider"
        + (f"; {engine.runtime}" if engine else ""),
        checkpoint_hash=combined_hash(hashes),
        adapter_base=versions.adapter_base,
        tokenizer_version=versions.tokenizer_version,
        drawing_version=versions.drawing_version,
        base_weights=versions.base_weights,
        libraries=_libraries(),
        models=entries,
        agreement=agreement,
    )


def _write_model(
    folder: Path,
    spec: ModelSpec,
    checkpoint: Path,
    pigeon: PigeonModel,
    parameters: dict[str, str],
    base: str,
) -> None:
    """config.pbtxt and version 1's Python files beside the graphs that are there already."""
    one = folder / "1"
    one.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(spec.pbtxt(parameters), encoding="utf-8")
    shutil.copyfile(SOURCE / "serving" / "backends" / spec.backend_file, one / "model.py")
    for package, names in (("pigeon", PIGEON_FILES), ("serving/backends", (*BACKEND_FILES, *spec.further_files))):
        target = one / "generator" / package
        target.mkdir(parents=True)
        for name in names:
            shutil.copyfile(SOURCE / package / name, target / name)
    for package in ("", "pigeon", "serving", "serving/backends"):
        shutil.copyfile(SOURCE / package / "__init__.py", one / "generator" / package / "__init__.py")
    if spec.name in CONFIGURED:
        (one / "config.json").write_text(
            json.dumps(_backend_config(pigeon.config, pigeon, checkpoint), indent=2) + "\n", encoding="utf-8"
        )
    if spec.name in READING:
        shutil.copyfile(checkpoint / "language_model" / "tokenizer.json", one / "tokenizer.json")
    if spec.name == adapters.PERSONALIZER:
        lora = pigeon.personalizer.lora()
        matrices = {"lora_a": lora.a.detach().cpu().numpy(), "lora_b": lora.b.detach().cpu().numpy()}
        adapters.write_adapter(one, matrices, {"base": base, "sha256": content_hash(matrices)})


def _backend_config(config: PigeonConfig, pigeon: PigeonModel, checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's configuration and what the backends need beyond it."""
    return {
        **config.model_dump(mode="json"),
        "scheduler": pigeon.diffusion.scheduler,
        "latent_shape": list(pigeon.diffusion.latent_shape),
        "preview_kind": config.preview_kind,
        "served_parts": {
            name: adapters.part_hash(checkpoint / "pigeon" / name) for name in ("mask_generator", "adapter")
        },
    }


def _entry(folder: Path, spec: ModelSpec) -> ModelEntry:
    return ModelEntry(
        files=tree_hashes(folder),
        inputs=tuple(TensorShape(name=t.name, type=t.type, dims=t.dims) for t in spec.inputs),
        outputs=tuple(TensorShape(name=t.name, type=t.type, dims=t.dims) for t in spec.outputs),
    )


def _carry_adapters(old: Path, new: Path, base: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Carry over installed adapters of the same base, with this build's code; others do not fit."""
    kept, dropped = [], []
    source, target = old / adapters.PERSONALIZER, new / adapters.PERSONALIZER
    for folder in sorted(source.iterdir()) if source.is_dir() else []:
        info = folder / adapters.ADAPTER_INFO
        if not folder.name.isdigit() or folder.name == "1" or not info.is_file():
            continue
        if json.loads(info.read_text(encoding="utf-8"))["base"] != base:
            dropped.append(int(folder.name))
            continue
        shutil.copytree(target / "1", target / folder.name, ignore=shutil.ignore_patterns("adapter.*"))
        for name in (adapters.ADAPTER_FILE, adapters.ADAPTER_INFO):
            shutil.copyfile(folder / name, target / folder.name / name)
        kept.append(int(folder.name))
    return tuple(kept), tuple(dropped)


def _replace(repository: Path, staging: Path) -> None:
    """Put the new repository under the old one's name; `_finish_replace` mends a crash in between."""
    old = _old(repository)
    if repository.exists():
        repository.rename(old)
    staging.rename(repository)
    shutil.rmtree(old, ignore_errors=True)


def _finish_replace(repository: Path) -> None:
    """Bring back or remove the old repository, with its adapters, after a crash inside `_replace`."""
    old = _old(repository)
    if old.exists() and not (repository / MANIFEST).is_file():
        shutil.rmtree(repository, ignore_errors=True)
        old.rename(repository)
    shutil.rmtree(old, ignore_errors=True)


def _old(repository: Path) -> Path:
    return repository.with_name(f"{repository.name}.old")


@contextmanager
def _lock(repository: Path) -> Iterator[None]:
    path = repository.with_name(f"{repository.name}.lock")
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeld(f"model repository {repository}: another build is under way ({path})") from None
        file.write(str(os.getpid()))
        file.flush()
        yield
