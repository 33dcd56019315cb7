"""Tiny random Stable Diffusion pipelines with IP-Adapter, image encoder and scorer, as folders."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from schemas.settings_models import PipelineSettings

EMBEDDING = 20
"""Entries of the image encoder's embeddings, no multiple of three."""
CROSS = 32
LETTERS = (*string.ascii_lowercase, *string.digits, *" .,!?'")


def tiny_pipeline(folder: Path, *, xl: bool = False) -> PipelineSettings:
    """-> settings that lead to what is written into `folder`; the same every time."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    tokenizer = _tokenizer(folder / "words")
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=EMBEDDING,
    )
    (_stronger(CLIPVisionModelWithProjection(vision))).save_pretrained(folder / "image_encoder")
    scored = {"vision_config": {**vision.to_dict(), "projection_dim": 16}, "text_config": _text(16).to_dict()}
    _stronger(CLIPModel(CLIPConfig(**scored, projection_dim=16))).save_pretrained(folder / "scorer")
    tokenizer.save_pretrained(folder / "scorer")
    unet = _stronger(_unet(xl))
    save_file(_adapter(unet), folder / "ip_adapter.safetensors")
    _pipeline(unet, tokenizer, xl=xl).save_pretrained(folder / "pipeline")
    return PipelineSettings(
        folder=folder / "pipeline",
        ip_adapter=folder / "ip_adapter.safetensors",
        image_encoder=folder / "image_encoder",
        scorer=folder / "scorer",
        steps=2,
        side=32,
        scale=1.0,
        noises=8,
    )


def _stronger(network: torch.nn.Module) -> torch.nn.Module:
    """Weights so large that different inputs give different outputs."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return network.eval()


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """One token a letter."""
    folder.mkdir(parents=True)
    letters = [letter for base in LETTERS for letter in (base, f"{base}</w>")]
    words = {word: number for number, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def _text(projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=32 if projection == 16 else CROSS,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _unet(xl: bool) -> torch.nn.Module:
    pooled, times = 32, 8
    more = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": times,
            "projection_class_embeddings_input_dim": pooled + 6 * times,
            "transformer_layers_per_block": (1, 1),
            "use_linear_projection": True,
        }
        if xl
        else {}
    )
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=2 * CROSS if xl else CROSS,
        **more,
    )


def _adapter(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A plain IP-Adapter's tensors, by the published names."""
    crossed = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * crossed, EMBEDDING) / 2,
        "image_proj.proj.bias": torch.zeros(4 * crossed),
        "image_proj.norm.weight": torch.ones(crossed),
        "image_proj.norm.bias": torch.zeros(crossed),
    }
    for number, (name, processor) in enumerate(
        (name, module) for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))
    ):
        if name.endswith("attn2"):
            for part in ("k", "v"):
                shape = processor.to_k.weight.shape
                tensors[f"ip_adapter.{number}.to_{part}_ip.weight"] = torch.randn(shape) / 4
    return tensors


def _pipeline(
    unet: torch.nn.Module, tokenizer: CLIPTokenizer, *, xl: bool
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()
    encoder = CLIPTextModel(_text(CROSS)).eval()
    if xl:
        return StableDiffusionXLPipeline(
            vae=vae,
            unet=unet,
            text_encoder=encoder,
            text_encoder_2=CLIPTextModelWithProjection(_text(CROSS)).eval(),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        )
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
