"""Codes and seeds -> pictures.

Each is computed alone, so that its bytes depend on its own request and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from generator.serving.backends.graph import BadInput
from generator.serving.backends.task import Call, Drawn, TaskConfig, paint


def draw_pictures(config: TaskConfig, codes: Sequence[Sequence[int]], seeds: Sequence[int], call: Call) -> Drawn:
    """One picture per row of codes 0..K-1, from the noise of its (seed, 0).

    Raises:
        BadInput: no picture, another number of seeds than of rows, or a code outside the codebook.
    """
    if not codes or len(codes) != len(seeds):
        raise BadInput(f"pictures: {len(codes)} rows of tokens for {len(seeds)} seeds; give one each, and at least one")
    for number, row in enumerate(codes):
        if len(row) > config.max_codes or not all(0 <= code < config.ids.codebook_size for code in row):
            raise BadInput(
                f"pictures: tokens of row {number} must be at most {config.max_codes} values in "
                f"0..{config.ids.codebook_size - 1}"
            )
    rows = [list(row) for row in codes]
    # A UNet call holds one picture (and its unconditional twin): rounding depends on the number of rows in a call.
    images = np.concatenate([paint(config, [row], seed, call) for row, seed in zip(rows, seeds, strict=True)])
    embeddings = call("image_scorer", {"images": images}, ["image_embeddings"])["image_embeddings"]
    return Drawn(rows, images, embeddings)
