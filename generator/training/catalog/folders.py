"""Extractors that a user gives as folders: CLIP and DINOv2 in transformers' layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from generator.training.evaluation.extractors import Encoded, ImageArrays, weights_key
from generator.training.evaluation.metrics import Vectors
from schemas.errors import InputError

AT_ONCE = 32
"""Pictures that are encoded at once."""


class ClipFolder:
    """CLIP from a folder: pictures and texts in one space."""

    name = "clip"

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            InputError: the folder is none of a CLIP.
        """
        self.title = f"CLIP of {folder.name}"
        self._network, self._processor = _loaded(folder, "CLIPModel", "AutoProcessor")
        self.key = weights_key(self._network.state_dict().values())

    @torch.no_grad()
    def encode(self, images: ImageArrays) -> Encoded:
        return Encoded(
            _encoded(
                images, self._processor, lambda pixels: _vectors(self._network.get_image_features(pixel_values=pixels))
            )
        )

    @torch.no_grad()
    def texts(self, texts: Iterable[str]) -> Vectors:
        """Vectors of descriptions (N, D)."""
        longest = self._network.config.text_config.max_position_embeddings
        inputs = self._processor(
            text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest
        )
        inputs.pop("token_type_ids", None)
        return _vectors(self._network.get_text_features(**inputs)).float().numpy()


class DinoFolder:
    """DINOv2 from a folder: its pooled features."""

    name = "dino"

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            InputError: the folder is none of a DINOv2.
        """
        self.title = f"DINOv2 of {folder.name}"
        self._network, self._processor = _loaded(folder, "Dinov2Model", "AutoImageProcessor")
        self.key = weights_key(self._network.state_dict().values())

    @torch.no_grad()
    def encode(self, images: ImageArrays) -> Encoded:
        return Encoded(
            _encoded(images, self._processor, lambda pixels: self._network(pixel_values=pixels).pooler_output)
        )


def _loaded(folder: Path, kind: str, processor: str) -> tuple[Any, Any]:
    import transformers

    try:
        network = getattr(transformers, kind).from_pretrained(folder, local_files_only=True).eval()
        return network, getattr(transformers, processor).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"extractor: {folder} cannot be read as a {kind} folder ({str(error).splitlines()[0]})"
        ) from error


def _encoded(images: ImageArrays, processor: Any, encode: Any) -> Vectors:
    parts: list[Vectors] = []
    for start in range(0, len(images), AT_ONCE):
        some: Sequence[Image.Image] = [Image.fromarray(image) for image in images[start : start + AT_ONCE]]
        parts.append(encode(processor(images=some, return_tensors="pt")["pixel_values"]).float().numpy())
    return np.concatenate(parts)


def _vectors(output: Any) -> torch.Tensor:
    """transformers gives features as a tensor, or as an output that has them pooled."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return found
