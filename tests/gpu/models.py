"""nano, and models of published size whose weights are made on the device from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.checkpoint import load_model
from generator.pigeon.config import PigeonConfig
from generator.pigeon.decoder import CodeDecoder, HighresVQDecoder
from generator.pigeon.diffusion import new_diffusion
from generator.pigeon.model import PigeonModel
from generator.pigeon.personalizer import Personalizer, new_llama
from generator.pigeon.placement import Placement
from generator.pigeon.presets import preset, tiny
from generator.pigeon.scorer import ImageScorer
from generator.pigeon.tokenizer import DynamicVisualTokenizer

NANO = Path(__file__).parents[2] / "deploy" / "models" / "nano"
SEED = 7
ANSWER_TOKENS = 96
"""Codes of a 7B answer that is timed; random weights would end one anywhere."""
SDXL_UNET: Mapping[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
"""The published UNet of SDXL, as far as it is not diffusers' default."""
SDXL_VAE: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
}


def published() -> PigeonConfig:
    """lavit-7b with SDXL's UNet and VAE, and answers of one length."""
    config = preset("lavit-7b")
    diffusion = config.diffusion.model_copy(update={"unet": dict(SDXL_UNET), "vae": dict(SDXL_VAE)})
    generation = replace(config.generation, min_new_tokens=ANSWER_TOKENS, max_new_tokens=ANSWER_TOKENS + 1)
    return config.model_copy(update={"diffusion": diffusion, "generation": generation})


def small() -> PigeonConfig:
    """In a rehearsal, in the place of lavit-7b: no scorer, as it, and no code table."""
    config = tiny()
    decoder = config.decoder.model_copy(update={"code_table": None})
    return config.model_copy(update={"name": "small", "decoder": decoder, "scorer": None})


def nano_model(placement: Placement, rehearse: bool) -> PigeonModel:
    """The committed weights; in a rehearsal, and where they are not, random ones."""
    if rehearse or not NANO.is_dir():
        return random_model(tiny() if rehearse else preset("nano"), placement)
    return load_model(NANO, placement=placement)


def large_model(placement: Placement, rehearse: bool) -> PigeonModel:
    return random_model(small() if rehearse else published(), placement)


def random_model(config: PigeonConfig, placement: Placement) -> PigeonModel:
    """Random weights on the device, each network as precise as a checkpoint's would be."""
    torch.manual_seed(SEED)
    device, dtype = placement.device(), placement.dtype
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(min(40, config.ids.text_size))}, unk_token="w3"))
    with torch.device(device):
        tokenizer = DynamicVisualTokenizer(config.tokenizer)
        for half in (tokenizer.encoder, tokenizer.causal_encoder):
            half.to(dtype)
        with made_in(dtype):
            decoder = HighresVQDecoder(config.decoder, config.tokenizer.code_dim)
            llama = new_llama(config)
            unet = new_diffusion(config.diffusion).unet
        diffusion = new_diffusion(config.diffusion.model_copy(update={"unet": dict(tiny().diffusion.unet)}))
        diffusion.unet = unet
        code_decoder = CodeDecoder(decoder, tokenizer.quantize.embedding.weight)
        personalizer = Personalizer(config, llama, code_decoder)
        scorer = None if config.scorer is None else ImageScorer(config.scorer)
    made = PigeonModel(config, tokenizer, code_decoder, personalizer, diffusion, scorer, words)
    return made.eval()


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """Weights are made in this precision, without a float32 copy before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
