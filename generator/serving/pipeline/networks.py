"""The pipeline's networks; each picture and text is computed alone, whatever its neighbours."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generator.pigeon.placement import Placement
from generator.pigeon.sampling import noise_image
from generator.serving.api import InferenceCorrupt, InferenceUnavailable
from generator.serving.pipeline.answers import unit
from generator.serving.pipeline.folders import Folders
from generator.serving.pipeline.image_prompt import Floats, ImagePrompt
from generator.serving.pipeline.loading import load_diffusion, load_encoder, load_scorer, silence
from generator.serving.tensors import fitted
from schemas.settings_models import PipelineSettings

Pixels = NDArray[np.uint8]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STDDEV = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, where a folder has no preprocessor_config.json."""


class Networks:
    """Encoder, scorer and diffusion on their devices; for one thread at a time."""

    def __init__(self, folders: Folders, settings: PipelineSettings, placement: Placement) -> None:
        """Load everything.

        Raises:
            ModelError: as `loading`.
        """
        silence()
        # The libraries' configurations and outputs are typed loosely.
        self._encoder: Any = load_encoder(folders.image_encoder, placement)
        scorer, tokenizer = load_scorer(folders.scorer, placement)
        self._scorer: Any = scorer
        self._tokenizer: Any = tokenizer
        self._diffusion = load_diffusion(folders, self._encoder, settings.scale, placement)
        self._settings = settings
        self._encoder_norm, self._scorer_norm = _norm(folders.image_encoder), _norm(folders.scorer)
        self.width = int(self._encoder.config.projection_dim)
        """Entries of an image embedding."""
        unet = self._diffusion.unet.config
        self._scale_factor = int(self._diffusion.vae_scale_factor)
        self.side = settings.side or int(unet.sample_size) * self._scale_factor
        self._channels = int(unet.in_channels)
        self._guided = settings.guidance > 1 and unet.time_cond_proj_dim is None

    @torch.inference_mode()
    def image_prompt(self, image: Pixels) -> Floats:
        """(H, W, 3) -> (D,), not normalised: what the IP-Adapter takes."""
        pixels = _prepared(image, int(self._encoder.config.image_size), *self._encoder_norm)
        return _row(self._encoder(pixels.to(self._encoder.device)).image_embeds)

    @torch.inference_mode()
    def score_image(self, image: Pixels) -> Floats:
        """(H, W, 3) -> (E,), unit length."""
        scorer = self._scorer
        pixels = _prepared(image, int(scorer.config.vision_config.image_size), *self._scorer_norm)
        pooled = scorer.vision_model(pixel_values=pixels.to(scorer.device)).pooler_output
        return unit(_row(scorer.visual_projection(pooled)))

    @torch.inference_mode()
    def score_text(self, text: str) -> Floats:
        """(E,), unit length; a text that is too long is cut."""
        scorer, tokenizer = self._scorer, self._tokenizer
        limit = int(scorer.config.text_config.max_position_embeddings)
        ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt").to(scorer.device)
        pooled = scorer.text_model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).pooler_output
        return unit(_row(scorer.text_projection(pooled)))

    @torch.inference_mode()
    def draw(self, prompt: ImagePrompt, seed: int, variant: int, stop_at: float) -> Pixels:
        """(side, side, 3): from the noise of (seed, variant), until `stop_at` on the monotonic clock.

        Raises:
            InferenceUnavailable: not finished by then.
            InferenceCorrupt: the picture is not finite.
        """
        side = self.side // self._scale_factor
        start = torch.from_numpy(noise_image(seed, variant, (1, self._channels, side, side)))
        embedding = torch.from_numpy(prompt.embedding)[None, None]  # (1, 1, D)
        if self._guided:
            embedding = torch.cat([torch.zeros_like(embedding), embedding])  # (2, 1, D)
        pipeline = self._diffusion
        drawn: NDArray[np.float32] = pipeline(
            prompt=prompt.text,
            negative_prompt=self._settings.negative or None,
            ip_adapter_image_embeds=[embedding.to(pipeline.device, pipeline.dtype)],
            latents=start.to(pipeline.device, pipeline.dtype),
            # What some schedulers add at each step.
            generator=torch.Generator("cpu").manual_seed(seed + variant),
            num_inference_steps=self._settings.steps,
            guidance_scale=self._settings.guidance,
            height=self.side,
            width=self.side,
            output_type="np",
            callback_on_step_end=_stops(stop_at),
        ).images[0]
        if not np.isfinite(drawn).all():
            raise InferenceCorrupt(
                "picture: is not finite; check the weights, or set compute.precision to fp32 or bf16"
            )
        return (drawn * 255).round().astype(np.uint8)


def _stops(stop_at: float) -> Any:
    """A callback that ends a drawing which takes too long."""

    def check(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if time.monotonic() > stop_at:
            raise InferenceUnavailable(
                f"picture: not finished at step {step + 1} within triton.inference_timeout_seconds; raise it, or lower "
                "models.pipeline.steps or side"
            )
        return tensors

    return check


def _prepared(image: Pixels, size: int, mean: Floats, stddev: Floats) -> Tensor:
    """(H, W, 3) -> (1, 3, size, size): squeezed whole, for a crop would lose a poster's ends."""
    pixels = fitted(image, 0, size).astype(np.float32) / 255
    return torch.from_numpy((pixels - mean) / stddev).permute(2, 0, 1)[None]


def _norm(folder: Path) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the pixels that a network was trained on."""
    path = folder / "preprocessor_config.json"
    found = json.loads(path.read_bytes()) if path.is_file() else {}
    return (
        np.array(found.get("image_mean", MEAN), dtype=np.float32),
        np.array(found.get("image_std", STDDEV), dtype=np.float32),
    )


def _row(values: Tensor) -> Floats:
    """(1, D) on any device -> (D,).

    Raises:
        InferenceCorrupt: not finite, or all zero.
    """
    row: Floats = values[0].float().cpu().numpy()
    if not (np.isfinite(row).all() and row.any()):
        raise InferenceCorrupt("embedding: is not finite, or all zero; check the weights")
    return row
