"""The Triton model repository on disk: its manifest, and whether it fits; imports no torch.

<repository>/
  manifest.json                 what is here, hashed; written last, so a repository without it is not complete
  <model>/config.pbtxt
  <model>/1/model.py, model.onnx, generator/...   the backend and the files of ours that it imports
  personalizer/graph/model.onnx                   shared by all versions
  personalizer/<n>/adapter.npz, adapter.json      version n = adapter n
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import generator
from schemas.errors import ModelError, Refused
from schemas.settings import Settings

MANIFEST = "manifest.json"
BUILD_PARAMETER = "build"
TOKENIZER_PARAMETER = "tokenizer_version"
DRAWING_PARAMETER = "drawing_version"
WEIGHTS_PARAMETER = "base_weights"
BATCH_PARAMETER = "picture_batch"
"""Parameter of the model `pictures`: how many it draws in one UNet call. Without it 1, as on CPUs, where bytes are promised."""
MODELS = (
    "visual_tokenizer",
    "image_scorer",
    "mask_generator",
    "token_decoder",
    "personalizer",
    "unet",
    "vae_decoder",
    "answers",
    "pictures",
    "pigeon",
)
"""In the order in which they are loaded: `answers`, `pictures` and `pigeon`, which call the others, are last."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorShape(_Frozen):
    """An input or output of a Triton model; -1 varies."""

    name: str
    type: str
    dims: tuple[int, ...]


class ModelEntry(_Frozen):
    """One Triton model."""

    files: dict[str, str]
    """Path below the model's folder -> SHA-256. Adapters that were installed later are not among them."""
    inputs: tuple[TensorShape, ...]
    outputs: tuple[TensorShape, ...]


class AgreementEntry(_Frozen):
    """How far a graph was from PyTorch when it was built."""

    max_abs_diff: float
    scale: float
    flipped_share: float


class GpuHost(_Frozen):
    """The hosts that a repository of the gpu target is for; `gpu.host` says how each is compared."""

    compute_capabilities: tuple[str, ...]
    triton: str
    tensorrt: str
    onnxruntime: str
    driver: str
    image: str


class RepositoryManifest(_Frozen):
    """manifest.json."""

    format_version: Literal[1] = 1
    build: str
    """Hash of all that went in: checkpoint, code, library versions, target."""
    preset: str
    target: Literal["onnx", "gpu"]
    """`onnx` is the cpu target."""
    precision: Literal["float32", "float16"] = "float32"
    runtime: str
    """What runs the graphs, and on what."""
    checkpoint_hash: str
    adapter_base: str
    """Hash of what an adapter is trained for; an adapter for another base does not fit."""
    tokenizer_version: str
    drawing_version: str = ""
    """Hash of what turns codes into pixels. Empty in a repository of a release that had none; it cannot be served."""
    base_weights: str = ""
    """Hash of what decides over answers and their previews, without a retrained adapter. Empty likewise."""
    libraries: dict[str, str]
    gpu: GpuHost | None = None
    """None on CPUs."""
    models: dict[str, ModelEntry]
    """In the order of loading."""
    agreement: dict[str, AgreementEntry]


def default_checkpoint() -> Path:
    """The nano weights of the checkout that this code runs from; an installed wheel has none beside it."""
    return Path(generator.__file__).resolve().parent.parent / "deploy" / "models" / "nano"


def checkpoint_folder(settings: Settings) -> Path:
    """The checkpoint that the settings name.

    Raises:
        ModelError: a preset other than nano without a checkpoint of its own, nano outside a checkout, or no such folder.
        Refused: the preset is a pipeline, which is no checkpoint of Pigeon.
    """
    if settings.models.preset == "pipeline":
        raise Refused(
            "models.preset is pipeline: it draws nights, and is neither trained nor served by Triton; for Pigeon set "
            "PIGEON_MODELS__PRESET to nano or lavit-7b"
        )
    folder = settings.models.checkpoint
    if folder is None:
        if settings.models.preset != "nano":
            raise ModelError(
                f"models.checkpoint: preset {settings.models.preset} has no weights of its own; "
                "set PIGEON_MODELS__CHECKPOINT to the folder of yours"
            )
        folder = default_checkpoint()
        if not folder.is_dir():
            raise ModelError(
                "models.checkpoint: the package does not hold nano's weights; "
                "set PIGEON_MODELS__CHECKPOINT to deploy/models/nano of a checkout, or install the checkout: pip install -e CHECKOUT"
            )
    if not (folder / "config.json").is_file():
        raise ModelError(f"checkpoint {folder}: no config.json there; set PIGEON_MODELS__CHECKPOINT to a checkpoint")
    return folder


def repository_folder(settings: Settings) -> Path:
    """The folder that Triton serves."""
    return settings.triton.model_repository or settings.state_dir / "models"


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_hashes(folder: Path) -> dict[str, str]:
    """Path below `folder` (POSIX) -> SHA-256, of every file but what only documents it.

    Texts, pictures and an evaluation are left out.
    """
    files = [(path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        relative.as_posix(): file_hash(path)
        for relative, path in files
        if relative.parts[0] != "evaluation" and path.suffix not in {".md", ".pyc", ".png", ".webp", ".svg"}
    }


def combined_hash(parts: object) -> str:
    """Sixteen hexadecimal digits of anything that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def below(hashes: dict[str, str], prefixes: Iterable[str]) -> dict[str, str]:
    """The entries whose path starts with one of `prefixes`."""
    return {path: value for path, value in hashes.items() if path.startswith(tuple(prefixes))}


def read_manifest(repository: Path) -> RepositoryManifest:
    """The manifest of a repository.

    Raises:
        ModelError: no manifest, or not one of this version.
    """
    path = repository / MANIFEST
    try:
        return RepositoryManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"model repository {repository}: no {MANIFEST}, so it is empty or incomplete; run `pigeon models build`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"model repository {repository}: {MANIFEST}: {field}: {first['msg']}; run `pigeon models build`"
        ) from None


def check_repository(repository: Path, preset: str, checkpoint: Path | None = None) -> RepositoryManifest:
    """Check that a repository is complete, unchanged since its build and fits preset and checkpoint.

    Raises:
        ModelError: it is not; the message names the first thing that is wrong.
    """
    manifest = read_manifest(repository)
    if manifest.preset != preset:
        raise ModelError(
            f"model repository {repository}: built for preset {manifest.preset}, the settings say {preset}; "
            "run `pigeon models build` or change PIGEON_MODELS__PRESET"
        )
    if not manifest.drawing_version or not manifest.base_weights:
        raise ModelError(
            f"model repository {repository}: built by an earlier release, without drawing_version and base_weights; "
            "run `pigeon models build`"
        )
    if missing := [name for name in MODELS if name not in manifest.models]:
        raise ModelError(f"model repository {repository}: no model {', '.join(missing)}; run `pigeon models build`")
    for name, entry in manifest.models.items():
        for relative, expected in entry.files.items():
            path = repository / name / relative
            if not path.is_file():
                raise ModelError(
                    f"model repository {repository}: {name}/{relative} is missing; run `pigeon models build`"
                )
            if file_hash(path) != expected:
                raise ModelError(
                    f"model repository {repository}: {name}/{relative} was changed after the build; "
                    "run `pigeon models build`"
                )
    if checkpoint is not None and combined_hash(tree_hashes(checkpoint)) != manifest.checkpoint_hash:
        raise ModelError(
            f"model repository {repository}: built from another checkpoint than {checkpoint}; run `pigeon models build`"
        )
    return manifest
