"""The presets: `lavit-7b`, the published sizes, and `nano`, which this project has trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from generator.pigeon.config import (
    AdapterConfig,
    DecoderConfig,
    DiffusionConfig,
    LanguageConfig,
    PigeonConfig,
    ScorerConfig,
    TokenizerConfig,
    VisionConfig,
)
from generator.pigeon.prompt import PromptWording, TokenIds
from generator.pigeon.sampling import GenerationConfig

SDXL_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}


NANO_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


def lavit_7b() -> PigeonConfig:
    """LaVIT-7B-v2 with Pigeon: the sizes of the published weights.

    UNet and VAE come from the checkpoint's folders.
    """
    vision = VisionConfig(image_size=224, patch_size=14, width=1408, depth=40, heads=16)
    return PigeonConfig(
        name="lavit-7b",
        tokenizer=TokenizerConfig(vision=vision, merger_depth=12, merger_heads=16, codebook_size=16384, code_dim=32),
        ids=TokenIds(text_size=32000, codebook_size=16384, pad_id=2, bos_id=1),
        language=LanguageConfig(width=4096, depth=32, heads=32, mlp_width=11008),
        adapter=AdapterConfig(mlp_width=512),
        decoder=DecoderConfig(
            width=1408, depth=12, heads=16, queries=256, max_tokens=256, projections=(768, 1280), pooled_width=1280
        ),
        generation=GenerationConfig(suppressed=((3, 32000),)),
        diffusion=DiffusionConfig(image_size=1024, scheduler=SDXL_SCHEDULER),
        wording=PromptWording(
            instruction=(
                "You know a person by the pictures they chose. Draw the target item anew, so that it stays the same "
                "item and suits this person's taste.\nChosen so far, oldest first:\n"
            ),
            reference="Target item: {title}. {description} Its picture: <emb>\n",
            response="### Picture for this person: <img>",
        ),
    )


def nano() -> PigeonConfig:
    """The same architecture at 64x64 pixels: 16 patches, 512 codes, a 4-layer LLaMA, 16x16 latents."""
    vision = VisionConfig(image_size=64, patch_size=16, width=128, depth=4, heads=4)
    decoder = DecoderConfig(
        width=256,
        depth=3,
        heads=4,
        queries=16,
        max_tokens=16,
        projections=(48, 80),
        pooled_width=80,
        code_table=(512, 256),
    )
    time_width = 32
    return PigeonConfig(
        name="nano",
        tokenizer=TokenizerConfig(vision=vision, merger_depth=2, merger_heads=4, codebook_size=512, code_dim=16),
        ids=TokenIds(text_size=2048, codebook_size=512, pad_id=0, bos_id=1),
        language=LanguageConfig(width=192, depth=4, heads=4, mlp_width=512, max_positions=1024),
        adapter=AdapterConfig(mlp_width=128),
        decoder=decoder,
        generation=GenerationConfig(
            min_new_tokens=16,
            max_new_tokens=17,
            top_k=8,
            temperature=0.7,
            suppressed=((0, 2049),),
            taste_positions=((0, 4),),  # two codes of the palette, two of the style (decision 11)
        ),
        diffusion=DiffusionConfig(
            steps=4,  # distilled from twelve guided ones
            guidance=1.0,
            sketched=True,
            image_size=64,
            unet={
                "sample_size": 16,
                "in_channels": 18,
                "out_channels": 4,
                "layers_per_block": 1,
                "block_out_channels": [64, 128],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
                "norm_num_groups": 16,
                "attention_head_dim": 4,
                "use_linear_projection": True,
                "cross_attention_dim": decoder.prompt_width,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": time_width,
                "projection_class_embeddings_input_dim": decoder.pooled_width + 6 * time_width,
            },
            vae={
                "in_channels": 3,
                "out_channels": 3,
                "latent_channels": 4,
                "sample_size": 64,
                "block_out_channels": [16, 32, 64],
                "down_block_types": ["DownEncoderBlock2D"] * 3,
                "up_block_types": ["UpDecoderBlock2D"] * 3,
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "mid_block_add_attention": False,
                "scaling_factor": 1.0,
            },
            scheduler=NANO_SCHEDULER,
        ),
        scorer=ScorerConfig(
            vision=VisionConfig(image_size=64, patch_size=8, width=128, depth=4, heads=4),
            text_size=2048,
            text_width=128,
            text_depth=2,
            text_heads=4,
            text_tokens=64,
            feature_width=128,
        ),
        wording=PromptWording(
            instruction="Liked:\n", reference="Draw: {title}. {description} <emb>\n", response="For you: <img>"
        ),
    )


def tiny() -> PigeonConfig:
    """A configuration for tests: 16 patches, 32 codes, text ids 0..39, every width another.

    It is not a preset; there are no weights for it.
    """
    fields = nano().model_dump(mode="json")
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 3}
    fields["name"] = "tiny"
    fields["history"] = 2
    fields["tokenizer"] = {"vision": vision, "merger_depth": 2, "merger_heads": 2, "codebook_size": 32, "code_dim": 6}
    fields["ids"] = {"text_size": 40, "codebook_size": 32, "pad_id": 0, "bos_id": 1}
    fields["language"] |= {"width": 32, "depth": 2, "heads": 4, "mlp_width": 48, "max_positions": 128}
    fields["mask"] |= {"mlp_width": 40}
    fields["adapter"] = {"mlp_width": 10}
    fields["decoder"] = {
        "code_table": [32, 4],
        "width": 20,
        "depth": 2,
        "heads": 2,
        "queries": 5,
        "max_tokens": 16,
        "projections": [6, 10],
        "pooled_width": 12,
    }
    fields["generation"] |= {"min_new_tokens": 2, "max_new_tokens": 9, "top_k": 8, "suppressed": [[0, 41]]}
    diffusion = fields["diffusion"]
    diffusion |= {"steps": 3, "guidance": 2.0}
    diffusion["image_size"] = 32
    diffusion["sketched"] = False
    diffusion["unet"] |= {
        "sample_size": 8,
        "in_channels": 14,
        "block_out_channels": [16, 32],
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 12 + 6 * 8,
    }
    diffusion["vae"] |= {"sample_size": 32, "block_out_channels": [8, 8, 8], "norm_num_groups": 4}
    fields["scorer"] = {
        "vision": vision,
        "text_size": 40,
        "text_width": 16,
        "text_depth": 1,
        "text_heads": 2,
        "text_tokens": 12,
        "feature_width": 14,
    }
    return PigeonConfig.model_validate(fields)


PRESETS: Mapping[str, Callable[[], PigeonConfig]] = {"nano": nano, "lavit-7b": lavit_7b}


def preset(name: str) -> PigeonConfig:
    """The configuration of one of `PRESETS`.

    Raises:
        ValueError: any other name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: unknown name {name!r}; choose one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
