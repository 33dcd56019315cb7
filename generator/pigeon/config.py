"""Every dimension and every default of the network, as plain frozen data.

No torch here, so it is cheap to import.

A checkpoint's `config.json` is `PigeonConfig` as JSON; code never holds a vocabulary size or a width of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from generator.pigeon.prompt import PromptWording, TokenIds
from generator.pigeon.sampling import GenerationConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VisionConfig(_Frozen):
    """A pre-norm ViT in EVA's shape: q and v biases, no k bias, class token first."""

    image_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_ratio: float = 4.3637
    eps: float = 1e-6
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    pixel_std: tuple[float, float, float] = CLIP_STD

    @property
    def patches(self) -> int:
        """Number of patches of one image, the class token not counted."""
        side: int = self.image_size // self.patch_size
        return side * side

    @model_validator(mode="after")
    def _divisible(self) -> VisionConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class TokenizerConfig(_Frozen):
    """Dynamic visual tokenizer: encoder, keep decision, merger, quantizer."""

    vision: VisionConfig
    merger_depth: int = Field(gt=0)
    merger_heads: int = Field(gt=0)
    codebook_size: int = Field(gt=0)
    code_dim: int = Field(gt=0)
    mlp_ratio: float = 4.3637


class LanguageConfig(_Frozen):
    """LLaMA and its LoRA."""

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_width: int = Field(gt=0)
    max_positions: int = 4096
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    tie_embeddings: bool = False
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")


class MaskConfig(_Frozen):
    """Mutual mask generator."""

    heads: int = 4
    mlp_width: int = 2048
    positions: int = 257
    dropout: float = 0.1
    history_ratio: float = Field(0.2, ge=0, le=1)


class AdapterConfig(_Frozen):
    """Reference condition's adapter."""

    mlp_width: int = Field(gt=0)
    dropout: float = 0.1


class DecoderConfig(_Frozen):
    """Token decoder: codes -> the diffusion model's conditions."""

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    queries: int = Field(gt=0)
    max_tokens: int = Field(gt=0)
    projections: tuple[int, int]
    pooled_width: int = Field(gt=0)
    mlp_ratio: float = 4.3637
    code_table: tuple[int, int] | None = None
    """(codes, width): besides its codebook row a code has a learned vector of this width for each place in the picture.
    None, as published, for preset lavit-7b. A small decoder otherwise unravels crowded codebook rows for most of its training."""

    @property
    def prompt_width(self) -> int:
        return sum(self.projections)


class DiffusionConfig(_Frozen):
    """Denoising: `steps` of DDIM with classifier-free guidance.

    `unet`, `vae` and `scheduler` are diffusers' constructor arguments for a model made from scratch; a checkpoint's own
    folders decide when one is loaded. `sketched`: the first numbers of each prompt embedding are a sketch of the latents
    of its cell, and the UNet sees them as further input channels.
    """

    steps: int = Field(25, gt=0)
    sketched: bool = False
    guidance: float = 7.0
    image_size: int = Field(gt=0)
    unet: dict[str, Any] = {}
    vae: dict[str, Any] = {}
    scheduler: dict[str, Any] = {}


class ScorerConfig(_Frozen):
    """CLIP-like dual encoder that scores candidates."""

    vision: VisionConfig
    text_size: int = Field(gt=0)
    text_width: int = Field(gt=0)
    text_depth: int = Field(gt=0)
    text_heads: int = Field(gt=0)
    text_tokens: int = Field(gt=0)
    feature_width: int = Field(gt=0)
    pad_id: int = 0


class PigeonConfig(_Frozen):
    """The whole network.

    Made by `presets.preset("nano")` or `PigeonConfig.from_json(folder / "config.json")`.
    """

    name: str
    format_version: Literal[1] = 1
    history: int = Field(5, gt=0)
    tokenizer: TokenizerConfig
    ids: TokenIds
    language: LanguageConfig
    mask: MaskConfig = MaskConfig()
    adapter: AdapterConfig
    decoder: DecoderConfig
    generation: GenerationConfig = GenerationConfig()
    diffusion: DiffusionConfig
    scorer: ScorerConfig | None = None
    wording: PromptWording

    @property
    def preview_kind(self) -> Literal["sketch", "conditions"]:
        """Space in which answers are compared before they are drawn.

        The scorer's, of a sketch, or the mean condition's.
        """
        return "sketch" if self.diffusion.sketched and self.scorer is not None else "conditions"

    @property
    def preview_width(self) -> int:
        """Length of a preview."""
        return self.scorer.feature_width if self.preview_kind == "sketch" and self.scorer else self.decoder.prompt_width

    @model_validator(mode="after")
    def _agree(self) -> PigeonConfig:
        if self.ids.codebook_size != self.tokenizer.codebook_size:
            raise ValueError(
                f"ids.codebook_size {self.ids.codebook_size} differs from tokenizer.codebook_size "
                f"{self.tokenizer.codebook_size}; give both the same number"
            )
        if self.decoder.max_tokens < self.tokenizer.vision.patches:
            raise ValueError(
                f"decoder.max_tokens {self.decoder.max_tokens} is less than the {self.tokenizer.vision.patches} "
                "patches of an image; an image would not fit"
            )
        return self

    @classmethod
    def from_json(cls, path: Path) -> PigeonConfig:
        """Read a checkpoint's config.json.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, or a field is unknown, missing or out of range; the message names file and field.
        """
        text = path.read_text(encoding="utf-8")
        try:
            return cls.model_validate(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "config"
            raise ValueError(f"{path}: {field}: {first['msg']}") from error

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"
