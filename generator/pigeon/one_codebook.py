"""Whether the parts of a checkpoint were trained with one codebook.

Parts of two checkpoints may be alike in every shape; pictures drawn by both together are noise, and no error says so. What
`save_model` writes therefore bears a mark, made from the codebook's numbers. Files published by others have none.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from generator.pigeon.weights import find_weights, read_mark, weights_hash
from schemas.errors import ModelError


def codebook_mark(codebook: Tensor) -> str:
    """The mark of a codebook (codes, width).

    The same for the same numbers in whatever precision they are stored.
    """
    return weights_hash({"codebook": codebook.to(torch.float16)})


def check_codebook(
    folder: Path, codebook: Tensor, tokenizer: str, visual: Collection[str], others: Collection[str]
) -> None:
    """Refuse a folder in which a part was made with another codebook than `tokenizer` holds.

    codebook: the tokenizer's, as it was loaded.
    visual: parts that `save_model` alone writes: where the tokenizer bears the mark, they do.
    others: parts that other tools write as well, without a mark.

    Raises:
        ModelError: naming the part, and what to do.
    """
    paths = {name: path for name in (tokenizer, *visual, *others) if (path := find_weights(folder / name)) is not None}
    marks = {name: read_mark(path) for name, path in paths.items()}
    if not any(marks.values()):
        return
    own = codebook_mark(codebook)
    foreign = [name for name, mark in marks.items() if mark not in (own, None)]
    if marks.get(tokenizer):
        foreign += [name for name in visual if marks.get(name) is None and paths[name].suffix == ".safetensors"]
    if foreign:
        raise ModelError(
            f"{folder}: {', '.join(foreign)}: not made with the codebook in {tokenizer}, but parts of another checkpoint; copy the "
            "whole folder of one checkpoint again"
        )
