"""Extractors that a user gives as folders: CLIP and DINOv2 in transformers' layout."""

from __future__ import annotations

from collections.abc import Iterable
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


class _Folder:
    """A network of transformers that turns pictures into vectors, with its processor."""

    def __init__(self, folder: Path, title: str, kind: str, processor: str) -> None:
        self.title = f"{title} of {folder.name}"
        self._network, self._processor = _loaded(folder, kind, processor)
        self.key = weights_key(self._network.state_dict().values())

    @torch.no_grad()
    def encode(self, images: ImageArrays) -> Encoded:
        parts: list[Vectors] = []
        for start in range(0, len(images), AT_ONCE):
            some = [Image.fromarray(image) for image in images[start : start + AT_ONCE]]
            pixels = self._processor(images=some, return_tensors="pt")["pixel_values"]
            parts.append(self._of_pixels(pixels).float().numpy())
        return Encoded(np.concatenate(parts))

    def _of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ClipFolder(_Folder):
    """CLIP from a folder: pictures and texts in one space."""

    name = "clip"

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            InputError: the folder is none of a CLIP.
        """
        super().__init__(folder, "CLIP", "CLIPModel", "AutoProcessor")

    def _of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return _vectors(self._network.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def texts(self, texts: Iterable[str]) -> Vectors:
        """Vectors of descriptions (N, D)."""
        longest = self._network.config.text_config.max_position_embeddings
        inputs = self._processor(
            text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest
        )
        inputs.pop("token_type_ids", None)
        return _vectors(self._network.get_text_features(**inputs)).float().numpy()


class DinoFolder(_Folder):
    """DINOv2 from a folder: its pooled features."""

    name = "dino"

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            InputError: the folder is none of a DINOv2.
        """
        super().__init__(folder, "DINOv2", "Dinov2Model", "AutoImageProcessor")

    def _of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return _vectors(self._network(pixel_values=pixels))


def _loaded(folder: Path, kind: str, processor: str) -> tuple[Any, Any]:
    import transformers

    try:
        network = getattr(transformers, kind).from_pretrained(folder, local_files_only=True).eval()
        return network, getattr(transformers, processor).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"extractor: {folder} cannot be read as a {kind} folder ({str(error).splitlines()[0]})"
        ) from error


def _vectors(output: Any) -> torch.Tensor:
    """transformers gives features as a tensor, or as an output that has them pooled."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return found
