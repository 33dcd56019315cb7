"""Pictures -> the encoder's input.

Only numpy and Pillow, no project import: serving copies this file as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def prepare_pixels(
    images: Sequence[NDArray[np.uint8]], size: int, mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Resize RGB pictures (H, W, 3) uint8 bicubically and normalise -> (B, 3, size, size) float32.

    Raises:
        ValueError: a picture is not (H, W, 3) uint8.
    """
    out = np.empty((len(images), 3, size, size), dtype=np.float32)
    for number, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"picture {number}: is {image.dtype} {image.shape}; give RGB uint8 (height, width, 3)")
        fitted = image
        if image.shape[:2] != (size, size):
            fitted = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        scaled = (fitted.astype(np.float32) / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
        out[number] = scaled.transpose(2, 0, 1)
    return out
