"""The presets' sizes, and that the numpy-only modules stay numpy-only."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generator.pigeon
from generator.pigeon.config import PigeonConfig
from generator.pigeon.decoder import HighresVQDecoder
from generator.pigeon.masking import MutualMaskGenerator
from generator.pigeon.personalizer import new_llama
from generator.pigeon.preprocessing import prepare_pixels
from generator.pigeon.presets import preset
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from generator.training.nano.stages.tokenizer import PALETTE_CODES, STYLE_CODES

PACKAGE = Path(generator.pigeon.__file__).parent


def test_published_sizes() -> None:
    config = preset("lavit-7b")
    with torch.device("meta"):
        tokenizer = DynamicVisualTokenizer(config.tokenizer).state_dict()
        decoder = HighresVQDecoder(config.decoder, config.tokenizer.code_dim).state_dict()
        masks = MutualMaskGenerator(config.language.width, config.mask).state_dict()
        llama = new_llama(config).state_dict()
    shapes = {
        "encoder.pos_embed": (1, 257, 1408),
        "encoder.blocks.39.mlp.fc1.weight": (6144, 1408),
        "causal_encoder.blocks.11.token_causal_attn.qkv.weight": (4224, 1408),
        "encode_task_layer.2.weight": (32, 1408),
        "quantize.embedding.weight": (16384, 32),
    }
    assert {name: tuple(tokenizer[name].shape) for name in shapes} == shapes
    assert "encoder.blocks.40.norm1.weight" not in tokenizer
    assert tuple(decoder["unet_proj_2.weight"].shape) == (1280, 1408)
    assert tuple(decoder["unet_attnpool.positional_embedding"].shape) == (257, 1408)
    assert tuple(masks["position_embedding.pe"].shape) == (257, 4096)
    assert tuple(llama["model.embed_tokens.weight"].shape) == (48386, 4096)
    assert tuple(llama["model.layers.31.mlp.up_proj.weight"].shape) == (11008, 4096)


@pytest.mark.parametrize("name", ["nano", "lavit-7b"])
def test_config_survives_json(name: str, tmp_path: Path) -> None:
    config = preset(name)
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert PigeonConfig.from_json(path) == config


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("ids", "codebook_size", 9, "ids.codebook_size 9 differs from tokenizer.codebook_size 512"),
        ("generation", "temperature", 0, "generation: Value error, temperature 0.0 must be above 0"),
        (
            "generation",
            "taste_positions",
            [[2, 40]],
            "generation: Value error, taste_positions 2..40 must be a range within max_new_tokens 17",
        ),
        ("wording", "response", "x", "wording: Value error, response must end with its only <img>"),
        ("ids", "colour", 1, "ids.colour: Unexpected keyword argument"),
    ],
)
def test_a_wrong_field_is_named(section: str, field: str, value: object, message: str, tmp_path: Path) -> None:
    fields = json.loads(preset("nano").to_json())
    fields[section][field] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        PigeonConfig.from_json(path)


def test_nanos_codes_of_taste_are_those_that_its_tokenizer_learns() -> None:
    committed = PACKAGE.parents[1] / "deploy" / "models" / "nano" / "config.json"
    config = PigeonConfig.from_json(committed)
    assert config == preset("nano")
    assert config.generation.taste_positions == ((0, PALETTE_CODES + STYLE_CODES),)
    assert config.preview_kind == "sketch"
    assert preset("lavit-7b").preview_kind == "conditions"


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="preset: unknown name 'giga'; choose one of lavit-7b, nano"):
        preset("giga")


@pytest.mark.parametrize("name", ["prompt", "sampling", "ddim", "lcm", "preprocessing"])
def test_modules_that_serving_copies_import_numpy_only(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    imported = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    roots = {module.split(".")[0] for module in imported - {"generator.pigeon.ddim"}}
    assert roots <= {"__future__", "hashlib", "collections", "dataclasses", "itertools", "re", "typing", "numpy", "PIL"}


def test_a_configuration_is_read_without_torch() -> None:
    code = "import sys, generator.pigeon.presets as p; p.preset('nano'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parents[1], check=False).returncode == 0


def test_pixels_are_resized_bicubically_and_normalised() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    (out,) = prepare_pixels([image], 16, mean, std)
    resized = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(out, ((resized / 255 - mean) / std).transpose(2, 0, 1), atol=1e-5)
    with pytest.raises(ValueError, match=r"picture 1: is float64 \(4, 4, 3\); give RGB uint8"):
        prepare_pixels([image, np.zeros((4, 4, 3))], 16, mean, std)
