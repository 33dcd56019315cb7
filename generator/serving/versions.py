"""What a checkpoint's parts are known by.

Short hashes of files and settings, so that equal versions mean equal results.

Retrained adapters are not in any of them: an adapter has a hash of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.pigeon.config import PigeonConfig
from generator.serving.repository import below, combined_hash
from generator.serving.tensor_hash import content_hash

if TYPE_CHECKING:
    from generator.pigeon.model import PigeonModel

# What decides over tokens and embeddings of a picture, for the night's cache.
TOKENIZER_FILES = (
    "visual_tokenizer/eva_vitg_psz14",
    "visual_tokenizer/tokenizer_encoder",
    "image_scorer/",
    "language_model/tokenizer",
)
ADAPTER_BASE_FILES = ("language_model/", "visual_tokenizer/", "pigeon/mask_generator", "pigeon/adapter")
DRAWING_FILES = (
    "visual_tokenizer/highres_tokenizer_decoder",
    "highres_pixel_decoding/unet/",
    "highres_pixel_decoding/unet_lora/",
    "highres_pixel_decoding/vae/",
)
# VAE and scorer, because an answer is stored with its preview.
ANSWER_FILES = ("language_model/", "visual_tokenizer/", "pigeon/", "highres_pixel_decoding/vae/", "image_scorer/")
DRAWING_SETTINGS = ("steps", "guidance", "unet", "scheduler")
DRAWING_REVISION = 1
"""Raised when the code comes to draw other pixels from the same files and settings; other libraries may do so in the last bit."""


@dataclass(frozen=True)
class Versions:
    """The versions of one checkpoint."""

    adapter_base: str
    """Hash of what an adapter is trained for."""
    tokenizer_version: str
    """Hash of what decides over a picture's tokens and embedding."""
    drawing_version: str
    """Hash of what turns codes into pixels: token decoder with its codebook, UNet, VAE, schedule, steps, guidance."""
    base_weights: str
    """Hash of what decides over an answer and its preview."""


def checkpoint_versions(hashes: dict[str, str], pigeon: PigeonModel) -> Versions:
    """hashes: `repository.tree_hashes` of the checkpoint that `pigeon` was loaded from."""
    config = pigeon.config
    codebook = content_hash({"codebook": pigeon.code_decoder.codebook.detach().float().cpu().numpy()})
    return Versions(
        adapter_base=combined_hash([below(hashes, ADAPTER_BASE_FILES), config.language.model_dump()]),
        tokenizer_version=combined_hash(
            [
                below(hashes, TOKENIZER_FILES),
                config.tokenizer.model_dump(),
                config.scorer.model_dump() if config.scorer else None,
            ]
        ),
        drawing_version=drawing_version(hashes, config, pigeon.diffusion.scheduler, codebook),
        base_weights=combined_hash([below(hashes, ANSWER_FILES), _answer_settings(config)]),
    )


def drawing_version(
    hashes: dict[str, str], config: PigeonConfig, scheduler: Mapping[str, Any], codebook_hash: str
) -> str:
    """The codebook lies in a file of the tokenizer's, the rest of which draws nothing.

    Hence a hash of its own.
    """
    return combined_hash(
        [
            DRAWING_REVISION,
            below(hashes, DRAWING_FILES),
            codebook_hash,
            config.decoder.model_dump(),
            config.diffusion.model_dump(),
            dict(scheduler),
        ]
    )


def _answer_settings(config: PigeonConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json")
    for name in DRAWING_SETTINGS:
        del settings["diffusion"][name]
    return settings
