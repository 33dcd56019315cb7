"""What models.pipeline names on disk: checked before any weights are read, and hashed.

No torch: `pigeon doctor` looks here as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.serving.repository import combined_hash, file_hash, tree_hashes
from schemas.errors import InputError
from schemas.settings_models import PipelineSettings

CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
INDEX = "model_index.json"
UNUSED = frozenset({"safety_checker", "image_encoder", "feature_extractor"})
"""Parts of a pipeline that draw nothing here: the night has a judge of its own, and the encoder is named apart."""
REVISION = 1
"""Raised when the code comes to answer or draw otherwise from the same files and settings."""


@dataclass(frozen=True)
class Folders:
    """The folders and files of one pipeline, all there."""

    pipeline: Path
    ip_adapter: Path
    image_encoder: Path
    scorer: Path
    parts: tuple[str, ...]
    """Folders of the pipeline that take part in drawing."""
    kind: str
    """One of CLASSES."""


@dataclass(frozen=True)
class PipelineVersions:
    """What the pipeline's parts are known by, as `api.ServedPigeon` has them."""

    tokenizer_version: str
    drawing_version: str
    base_weights: str


def check_folders(settings: PipelineSettings) -> Folders:
    """What the settings name.

    Raises:
        InputError: a setting is empty, or names something else; the message says which and what belongs there.
    """
    pipeline = _folder("folder", settings.folder, INDEX, "a pipeline that diffusers' save_pretrained wrote")
    index = _json(pipeline / INDEX)
    kind = str(index.get("_class_name"))
    if kind not in CLASSES:
        raise InputError(f"{_name('folder')} {pipeline}: is a {kind}; {' or '.join(CLASSES)} is drawn with")
    named = [name for name, value in index.items() if isinstance(value, list) and value[0] and name not in UNUSED]
    parts = tuple(sorted(name for name in named if (pipeline / name).is_dir()))
    if missing := sorted({*named} - {*parts} | {"unet", "vae", "scheduler"} - {*parts}):
        raise InputError(f"{_name('folder')} {pipeline}: {missing[0]}/ is missing; copy the whole folder")
    encoder = settings.image_encoder or pipeline / "image_encoder"
    return Folders(
        pipeline,
        _adapter(settings.ip_adapter),
        _clip("image_encoder", encoder, "the CLIP vision model that the IP-Adapter was trained with"),
        _clip("scorer", settings.scorer, "a CLIP model with its tokenizer"),
        parts,
        kind,
    )


def versions_of(folders: Folders, settings: PipelineSettings, precision: str) -> PipelineVersions:
    """Hash all weights; a large pipeline takes as long as it takes to read."""
    tokenizer = combined_hash([REVISION, tree_hashes(folders.image_encoder), tree_hashes(folders.scorer)])
    drawing = [
        tokenizer,  # a picture is stored with its embedding by the scorer
        {name: tree_hashes(folders.pipeline / name) for name in folders.parts},
        file_hash(folders.ip_adapter),
        settings.model_dump(mode="json", include={"scale", "negative", "steps", "guidance", "side"}),
        [folders.kind, precision],
    ]
    answering = settings.model_dump(mode="json", include={"least_history", "text", "noises"})
    return PipelineVersions(
        tokenizer, combined_hash([REVISION, *drawing]), combined_hash([REVISION, tokenizer, answering])
    )


def _name(setting: str) -> str:
    return f"models.pipeline.{setting}"


def _folder(setting: str, folder: Path | None, file: str, what: str) -> Path:
    if folder is None:
        raise InputError(
            f"{_name(setting)}: is empty; set PIGEON_MODELS__PIPELINE__{setting.upper()} to the folder of {what}"
        )
    if not (folder / file).is_file():
        raise InputError(f"{_name(setting)} {folder}: no {file} there; give the folder of {what}")
    return folder


def _clip(setting: str, folder: Path | None, what: str) -> Path:
    found = _folder(setting, folder, "config.json", what)
    kind = _json(found / "config.json").get("model_type")
    allowed = {"clip"} if setting == "scorer" else {"clip", "clip_vision_model"}
    if kind not in allowed:
        raise InputError(f"{_name(setting)} {found}: its model_type is {kind}; give the folder of {what}")
    return found


def _adapter(path: Path | None) -> Path:
    if path is None:
        raise InputError(
            f"{_name('ip_adapter')}: is empty; set PIGEON_MODELS__PIPELINE__IP_ADAPTER to the IP-Adapter's .safetensors file"
        )
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"{_name('ip_adapter')} {path}: is no .safetensors file; give the IP-Adapter's weights")
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no JSON object")
    return found
