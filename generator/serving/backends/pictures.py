"""Codes and seeds -> pictures.

On CPUs each is computed alone, so that its bytes depend on its own request and nothing else. A target that gains by it, a GPU,
computes several at once (`picture_batch` of its repository); then rounding depends on the neighbours, within `BATCH_LEVELS`
and `BATCH_EMBEDDING`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from generator.pigeon.sampling import noise_image
from generator.serving.backends.graph import BadInput
from generator.serving.backends.task import Call, Drawn, TaskConfig, paint

BATCH_PARAMETER = "picture_batch"
"""Parameter of the model `pictures`: pictures in one UNet call, 1 to `MOST_PICTURES`. Without it 1."""
MOST_PICTURES = 31
"""Twice as many rows, with and without condition, are what the graphs were traced for."""
BATCH_LEVELS = 2
"""Grey levels of 255 by which a pixel of a picture that was drawn among others may differ from that drawn alone."""
BATCH_EMBEDDING = 5e-3
"""Largest difference of an embedding's values, likewise."""


def draw_pictures(
    config: TaskConfig, codes: Sequence[Sequence[int]], seeds: Sequence[int], call: Call, batch: int = 1
) -> Drawn:
    """One picture per row of codes 0..K-1, from the noise of its (seed, 0).

    batch: how many are in one UNet call.

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
    noise = [noise_image(seed, 0, config.latent_shape) for seed in seeds]
    # Of one picture a call holds it and its unconditional twin: rounding depends on the number of rows in a call.
    images = np.concatenate(
        [
            paint(config, rows[first : first + batch], np.stack(noise[first : first + batch]), call)
            for first in range(0, len(rows), batch)
        ]
    )
    embeddings = call("image_scorer", {"images": images}, ["image_embeddings"])["image_embeddings"]
    return Drawn(rows, images, embeddings)
