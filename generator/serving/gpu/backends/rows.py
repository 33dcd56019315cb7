"""How many rows of each batched model are one call.

Triton's batches, TensorRT's profiles and our own requests agree in it. No numpy, because configurations are written from it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Rows of one call; an engine is built for this range and fastest at `usual`."""

    usual: int
    most: int
    least: int = 1


ROWS: Mapping[str, Rows] = {
    "visual_tokenizer": Rows(8, 16),
    "image_tower": Rows(8, 16),
    "text_tower": Rows(8, 16),
    "mask_generator": Rows(4, 8),
    "token_decoder": Rows(8, 32),
    # A guided picture is two rows. Its activations at 128x128 latents are what bounds it on a GPU of 80 GB.
    "unet": Rows(8, 16),
    "vae_decoder": Rows(2, 4),  # in float32, at 1024x1024 pixels
}
