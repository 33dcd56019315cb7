"""CLIP and DINOv2 folders as extractors, with small random weights in transformers' layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

from generator.training.catalog.folders import ClipFolder, DinoFolder
from schemas.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)


def clip(folder: Path) -> Path:
    """A CLIP of 16 numbers that knows letters."""
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = len(words) - 1
    text = CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=16, eos_token_id=end, bos_token_id=end - 1, **size
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    ).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_clip_gives_pictures_and_texts_vectors_of_one_space(tmp_path: Path) -> None:
    found = ClipFolder(clip(tmp_path / "clip"))
    images, texts = found.encode(IMAGES).vectors, found.texts(["a cat", "a very long title of a film that is cut off"])
    assert images.shape == (3, 16)
    assert texts.shape == (2, 16)
    assert np.allclose(found.encode(IMAGES[1:2]).vectors, images[1:2], atol=1e-5)
    assert not np.allclose(images[0], images[1], atol=1e-5)


def test_dino_gives_its_pooled_features(tmp_path: Path) -> None:
    from transformers import BitImageProcessor

    config = Dinov2Config(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    Dinov2Model(config).save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    BitImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path)
    assert DinoFolder(tmp_path).encode(IMAGES).vectors.shape == (3, 16)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a CLIPModel folder"):
        ClipFolder(tmp_path)
