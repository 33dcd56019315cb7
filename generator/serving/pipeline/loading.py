"""Weights from the folders of models.pipeline, refused where they do not fit each other."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_logging

from generator.pigeon.placement import Placement
from generator.serving.pipeline.folders import INDEX, Folders
from schemas.errors import ModelError

PROJECTION = "image_proj.proj.weight"
"""Tensor of a plain IP-Adapter: (4 x the UNet's cross-attention width, width of the image embeddings)."""
HALF = "fp16"
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Parts of a pipeline that have weights."""


def silence() -> None:
    """Keep the libraries' bars and hints out of a night's output; what matters in them is an error here."""
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)  # without annotations
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()


def load_encoder(folder: Path, placement: Placement) -> CLIPVisionModelWithProjection:
    """The IP-Adapter's image encoder, in float32.

    Raises:
        ModelError: weights are missing or damaged.
    """
    with _readable("image_encoder", folder):
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    _refuse_missing("image_encoder", folder, loaded[1])
    encoder: CLIPVisionModelWithProjection = loaded[0].to(placement.device("scorer")).eval()
    return encoder


def load_scorer(folder: Path, placement: Placement) -> tuple[CLIPModel, CLIPTokenizer]:
    """The scorer, in float32, with its text tokenizer.

    Raises:
        ModelError: weights or tokenizer are missing or damaged.
    """
    with _readable("scorer", folder):
        loaded: Any = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        kind: Any = CLIPTokenizer  # without annotations
        tokenizer: CLIPTokenizer = kind.from_pretrained(folder, local_files_only=True)
    _refuse_missing("scorer", folder, loaded[1])
    scorer: CLIPModel = loaded[0].to(placement.device("scorer")).eval()
    return scorer, tokenizer


def load_diffusion(folders: Folders, encoder: CLIPVisionModelWithProjection, scale: float, placement: Placement) -> Any:
    """The pipeline with its IP-Adapter, in the placement's precision.

    Raises:
        ModelError: a part is missing or damaged, or IP-Adapter, encoder and UNet are not for each other.
    """
    _check_adapter(folders, int(encoder.config.projection_dim))
    # What judges pictures is the night's, and the encoder is asked by us alone.
    without: dict[str, Any] = {"image_encoder": None, "feature_extractor": None}
    if folders.kind == "StableDiffusionPipeline":
        without |= {"safety_checker": None, "requires_safety_checker": False}
    else:
        without |= {"add_watermarker": False}  # else a package that happens to be installed would change the pixels
    networks = _load_networks(folders, placement)
    kind: Any = DiffusionPipeline  # without annotations
    with _readable("folder", folders.pipeline):
        pipeline = kind.from_pretrained(folders.pipeline, local_files_only=True, **without, **networks)
    with _readable("ip_adapter", folders.ip_adapter):
        pipeline.load_ip_adapter(
            str(folders.ip_adapter.parent),
            subfolder="",
            weight_name=folders.ip_adapter.name,
            image_encoder_folder=None,
            local_files_only=True,
        )
    pipeline.set_ip_adapter_scale(scale)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(placement.device("diffusion"))


def _load_networks(folders: Folders, placement: Placement) -> dict[str, Any]:
    """One by one, because a pipeline as a whole fills what a file lacks with random numbers and goes on."""
    index = json.loads((folders.pipeline / INDEX).read_bytes())
    loaded = {}
    for name in (name for name in NETWORKS if name in folders.parts):
        library, kind = index[name]
        folder = folders.pipeline / name
        if library not in {"diffusers", "transformers"}:
            raise ModelError(
                f"models.pipeline.folder {folder}: its class is of {library}; diffusers and transformers are loaded"
            )
        with _readable("folder", folder):
            loaded[name], found = getattr(importlib.import_module(library), kind).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=_variant(folder),
                dtype=placement.dtype,
                output_loading_info=True,
            )
        _refuse_missing("folder", folder, found)
    return loaded


def _check_adapter(folders: Folders, width: int) -> None:
    """Refuse an IP-Adapter that is not plain, or not for this encoder and UNet."""
    path = folders.ip_adapter
    with _readable("ip_adapter", path), safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        shape = file.get_slice(PROJECTION).get_shape() if PROJECTION in names else None
    if shape is None or not any(name.startswith("ip_adapter.") for name in names):
        raise ModelError(
            f"models.pipeline.ip_adapter {path}: has no {PROJECTION}, so it is no plain IP-Adapter (plus, full and faceid take "
            "more than one embedding of a picture); use ip-adapter_sd15, ip-adapter_sdxl or their _vit-h files"
        )
    if shape[1] != width:
        raise ModelError(
            f"models.pipeline.ip_adapter {path}: takes embeddings of {shape[1]}, the image encoder {folders.image_encoder} gives "
            f"{width}; set PIGEON_MODELS__PIPELINE__IMAGE_ENCODER to the one that it was trained with"
        )
    unet = folders.pipeline / "unet" / "config.json"
    with _readable("folder", unet):
        crossed = json.loads(unet.read_bytes())["cross_attention_dim"]
    if crossed is None or shape[0] != 4 * crossed:
        raise ModelError(
            f"models.pipeline.ip_adapter {path}: is for a UNet with cross_attention_dim {shape[0] // 4}, the pipeline's has "
            f"{crossed}; an IP-Adapter of SD 1.5 does not fit SDXL"
        )


def _variant(folder: Path) -> str | None:
    """`fp16` where the folder has only such weights."""
    halves = list(folder.glob(f"*.{HALF}*.safetensors"))
    return HALF if halves and len(halves) == len(list(folder.glob("*.safetensors"))) else None


@contextmanager
def _readable(setting: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"models.pipeline.{setting} {path}: cannot be loaded: {reason}; copy it again") from error


def _refuse_missing(setting: str, folder: Path, found: dict[str, Any]) -> None:
    """Weights that a file lacks would be random numbers."""
    if missing := sorted(found["missing_keys"]):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"models.pipeline.{setting} {folder}: lacks the weights {missing[0]}{others}; copy it again")
