"""Previews: what the picture of some codes will be like, without drawing it.

The one place that knows what a preview is.

    sketch       the first numbers of each condition sketch the latents; the VAE decodes them and the scorer looks at them
    conditions   where nothing is sketched: the mean of the token decoder's conditions, of unit length

`TaskConfig.preview_kind` says which. Previews of one checkpoint are compared by their cosine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from generator.pigeon.ddim import to_uint8
from generator.serving.backends.graph import BadAnswer
from generator.serving.backends.task import Call, TaskConfig, padded_codes

Floats = NDArray[np.float32]


REMEMBERED = 32_768
"""Previews that one process keeps, half a KiB to a KiB each; nano's are of 128 numbers."""


class PreviewMemory:
    """Previews by their codes, those that were asked for last.

    A picture of the catalogue is in many histories, and many users get the same answer. A preview depends on its codes and the
    weights alone, and weights do not change while a process serves them.
    """

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._rows: OrderedDict[bytes, Floats] = OrderedDict()

    def get(self, config: TaskConfig, codes: Sequence[int], call: Call) -> Floats:
        """The preview (D,) of these codes, remembered or computed."""
        key = np.asarray(codes, dtype=np.int32).tobytes()
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _preview(config, codes, call)
            if len(self._rows) > self._size:
                self._rows.popitem(last=False)
        else:
            self._rows.move_to_end(key)
        return row


def preview_rows(
    config: TaskConfig, codes: Sequence[Sequence[int]], call: Call, memory: PreviewMemory | None = None
) -> Floats:
    """Codes per picture -> (N, D), unit rows.

    Equal codes are computed once, and each row alone: it depends on its codes only. `memory` keeps rows for further calls.

    Raises:
        BadAnswer: a mean condition is zero.
    """
    known = PreviewMemory(len(codes)) if memory is None else memory
    return np.stack([known.get(config, row[: config.max_codes], call) for row in codes])


def _preview(config: TaskConfig, codes: Sequence[int], call: Call) -> Floats:
    embeds = call("token_decoder", padded_codes([codes], config.max_codes), ["prompt_embeds"])["prompt_embeds"]
    if config.preview_kind == "conditions":
        mean = embeds[0].mean(axis=0)
        length = float(np.linalg.norm(mean))
        if length == 0:
            raise BadAnswer("token_decoder: the mean condition is zero, so answers cannot be compared by it")
        unit: Floats = (mean / np.float32(length)).astype(np.float32)
        return unit
    channels, size, _ = config.latent_shape
    decoded = call("vae_decoder", {"latents": sketch(embeds, channels, size)}, ["decoded"])["decoded"]
    features = call("image_scorer", {"images": to_uint8(decoded)}, ["image_embeddings"])["image_embeddings"]
    out: Floats = features[0]
    return out


def sketch(prompt_embeds: Floats, channels: int, size: int) -> Floats:
    """Lay out prompt_embeds (B, Q, E) as latents (B, channels, size, size).

    As `generator.pigeon.diffusion.sketch` does.
    """
    side = round(prompt_embeds.shape[1] ** 0.5)
    cell = size // side
    cells = prompt_embeds[..., : channels * cell * cell].reshape(-1, side, side, channels, cell, cell)
    return np.ascontiguousarray(cells.transpose(0, 3, 1, 4, 2, 5).reshape(-1, channels, size, size))
