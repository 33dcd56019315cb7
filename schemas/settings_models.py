"""Settings of the model that draws: Pigeon behind Triton, or a diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Literal

from pydantic import Field, field_validator

from schemas.settings_group import Group, Share

PIPELINE_VERSION = "pipeline-1"
"""Name of the model version that a pipeline draws as. The registry, which is Pigeon's, has none of it."""
TEXT_FIELDS = frozenset({"title", "description"})


class PipelineSettings(Group):
    """A diffusers folder with an IP-Adapter, where models.preset is pipeline; nothing is downloaded."""

    folder: Path | None = Field(
        None, description="StableDiffusionPipeline or StableDiffusionXLPipeline, as save_pretrained writes it."
    )
    ip_adapter: Path | None = Field(
        None,
        description="Weights of a plain IP-Adapter for this UNet, .safetensors (ip-adapter_sd15, ip-adapter_sdxl, ..._vit-h); "
        "those called plus, full or faceid take more than one embedding of a picture and are refused.",
    )
    image_encoder: Path | None = Field(
        None,
        description="Folder of the CLIP vision model that the IP-Adapter was trained with; empty = the pipeline's own image_encoder.",
    )
    scorer: Path | None = Field(
        None, description="Folder of a CLIP model (transformers) with its tokenizer, which scores pictures and texts."
    )
    scale: float = Field(
        0.6, ge=0, le=2, description="Strength of the image prompt beside the text (IP-Adapter's scale)."
    )
    least_history: Share = Field(
        0.5,
        description="Share of the history in the image prompt at α = 0, the rest is the reference; it grows to 1 at α = 1.",
    )
    text: str = Field("{title}", description="Text prompt; {title} and {description} are the reference's.")
    negative: str = Field("", description="Negative text prompt.")
    steps: int = Field(30, ge=1, le=1000, description="Steps of the pipeline's own scheduler.")
    guidance: float = Field(5.0, ge=0, description="Classifier-free guidance; up to 1 there is none.")
    side: int | None = Field(
        None, ge=8, multiple_of=8, description="Side of a picture in pixels; empty = what the UNet was trained for."
    )
    noises: int = Field(
        16, ge=1, le=65_536, description="Start noises that the answers of one image prompt choose among."
    )

    @field_validator("text")
    @classmethod
    def _text_has_known_fields(cls, text: str) -> str:
        unknown = {name for _, name, _, _ in Formatter().parse(text) if name is not None} - TEXT_FIELDS
        if unknown:
            raise ValueError(f"{{{sorted(unknown)[0]}}} is unknown; {{title}} and {{description}} are filled in")
        return text


class ModelSettings(Group):
    """Which model."""

    preset: Literal["nano", "lavit-7b", "pipeline"] = Field(
        "nano",
        description="nano, lavit-7b: Pigeon behind Triton. pipeline: models.pipeline, drawn with by the night itself.",
    )
    checkpoint: Path | None = Field(
        None, description="Checkpoint directory of Pigeon; empty = the committed nano weights."
    )
    pipeline: PipelineSettings = PipelineSettings()
