"""The build of a Triton repository from a checkpoint; the result is put in place in one step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.pigeon.config import PigeonConfig
from generator.serving import adapters
from generator.serving.replacement import finish_replace, locked, replace
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
from generator.serving.targets import SOURCE, CpuTarget, Spec, Target, graph_path
from generator.serving.tensor_hash import content_hash
from generator.serving.versions import Versions, checkpoint_versions
from schemas.errors import InputError, ModelError

if TYPE_CHECKING:
    from generator.pigeon.model import PigeonModel
    from generator.pigeon.placement import Placement

LIBRARIES = ("torch", "transformers", "diffusers", "peft", "onnx", "onnxscript", "onnxruntime")
# Models that read the checkpoint's configuration, and those of them that read texts.
CONFIGURED = {"answers", "image_scorer", "pictures", "pigeon", adapters.PERSONALIZER}
READING = {"answers", "image_scorer", "pigeon"}


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
    target: Target | None = None,
    report: Callable[[str], None] = lambda line: None,
    placement: Placement | None = None,
) -> Built:
    """Export, compare, write, and replace `repository`; nothing is done when no input has changed.

    target: the cpu target by default.
    placement: where PyTorch traces and computes what graphs are compared with; in float32 everywhere.

    Raises:
        InputError: `repository` is one of another target, which a server may be serving.
        ModelError: the checkpoint is not whole or not of this preset, or a graph disagrees with PyTorch.
        LockHeld: another build of this repository is under way.
    """
    target = target or CpuTarget()
    repository.parent.mkdir(parents=True, exist_ok=True)
    with locked(repository):
        finish_replace(repository)
        _refuse_other_target(repository, target)
        hashes = tree_hashes(checkpoint)
        key = _build_key(hashes, preset, target)
        if (current := _current(repository, preset, key)) is not None:
            return Built(current, rebuilt=False)
        staging = repository.with_name(f"{repository.name}.building")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            manifest = _write(checkpoint, preset, staging, hashes, key, report, placement, target)
            kept, dropped = _carry_adapters(repository, staging, manifest.adapter_base)
            written = manifest.model_dump_json(indent=2, exclude_none=True)  # on CPUs no word of GPUs
            (staging / MANIFEST).write_text(written + "\n", encoding="utf-8")
            replace(repository, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Built(manifest, rebuilt=True, kept_adapters=kept, dropped_adapters=dropped)


def _refuse_other_target(repository: Path, target: Target) -> None:
    try:
        found = read_manifest(repository).target
    except ModelError:
        return  # nothing that can be served
    if found != target.name:
        raise InputError(
            f"model repository {repository}: is of target {found}, and would be replaced by one of target {target.name}; "
            "give another folder with --output, or delete this one"
        )


def _build_key(hashes: dict[str, str], preset: str, target: Target) -> str:
    sources = [
        *sorted((SOURCE / "pigeon").glob("*.py")),
        *sorted((SOURCE / "serving" / "backends").glob("*.py")),
        *(
            SOURCE / "serving" / name
            for name in (
                "agreement.py",
                "build.py",
                "configs.py",
                "export.py",
                "repository.py",
                "targets.py",
                "tensor_hash.py",
                "versions.py",
            )
        ),
        *target.sources(),
    ]
    code = {path.relative_to(SOURCE).as_posix(): file_hash(path) for path in sources}
    return combined_hash([hashes, code, _libraries(), preset, *target.key])


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
    target: Target,
) -> RepositoryManifest:
    from transformers.utils.logging import disable_progress_bar

    from generator.pigeon.checkpoint import load_model
    from generator.serving.export import export

    disable_progress_bar()  # type: ignore[no-untyped-call]
    pigeon = load_model(checkpoint, placement=target.placement(placement))
    config = pigeon.config
    if config.name != preset:
        raise ModelError(
            f"checkpoint {checkpoint}: is a {config.name}, the settings say preset {preset}; change PIGEON_MODELS__PRESET"
        )
    agreement: dict[str, AgreementEntry] = {}
    for network in target.networks(pigeon, checkpoint, placement):
        path = staging / graph_path(network)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = export(network, path)
        agreement[network.title] = AgreementEntry(
            max_abs_diff=found.max_abs_diff, scale=found.scale, flipped_share=found.flipped_share
        )
        report(
            f"{network.title:<22} max |ONNX - PyTorch| = {found.max_abs_diff:.1e} at values up to {found.scale:.3g}"
            + (f", decisions differing {found.flipped_share:.2%}" if found.decisions else "")
        )
    versions = target.versions(checkpoint_versions(hashes, pigeon))
    parameters = {
        BUILD_PARAMETER: key,
        TOKENIZER_PARAMETER: versions.tokenizer_version,
        DRAWING_PARAMETER: versions.drawing_version,
        WEIGHTS_PARAMETER: versions.base_weights,
    }
    entries = {}
    for spec in target.specs(config, pigeon.diffusion.latent_shape):
        _write_model(staging / spec.name, target.pbtxt(spec, parameters, key), target.python_files(spec))
        _write_configuration(staging / spec.name / "1", spec.name, checkpoint, pigeon, versions)
        target.write_further(spec, staging / spec.name, checkpoint, pigeon, versions)
        entries[spec.name] = _entry(staging / spec.name, spec)
    return RepositoryManifest(
        build=key,
        preset=preset,
        target=target.name,
        precision=target.precision,
        runtime=target.runtime,
        checkpoint_hash=combined_hash(hashes),
        adapter_base=versions.adapter_base,
        tokenizer_version=versions.tokenizer_version,
        drawing_version=versions.drawing_version,
        base_weights=versions.base_weights,
        libraries=_libraries(),
        gpu=target.gpu,
        models=entries,
        agreement=agreement,
    )


def _write_model(folder: Path, pbtxt: str, files: Mapping[str, str]) -> None:
    """config.pbtxt and version 1's Python files beside the graphs that are there already."""
    one = folder / "1"
    one.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(pbtxt, encoding="utf-8")
    for name, text in files.items():
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_text(text, encoding="utf-8")


def _write_configuration(one: Path, model: str, checkpoint: Path, pigeon: PigeonModel, versions: Versions) -> None:
    """What a model reads of the checkpoint when it starts."""
    if model in CONFIGURED:
        (one / "config.json").write_text(
            json.dumps(_backend_config(pigeon.config, pigeon, checkpoint), indent=2) + "\n", encoding="utf-8"
        )
    if model in READING:
        shutil.copyfile(checkpoint / "language_model" / "tokenizer.json", one / "tokenizer.json")
    if model == adapters.PERSONALIZER:
        lora = pigeon.personalizer.lora()
        matrices = {"lora_a": lora.a.detach().cpu().numpy(), "lora_b": lora.b.detach().cpu().numpy()}
        info = {"base": versions.adapter_base, "sha256": content_hash(matrices)}
        adapters.write_adapter(one, matrices, info)


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


def _entry(folder: Path, spec: Spec) -> ModelEntry:
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
