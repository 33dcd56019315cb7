"""Every module against the CPU's float32: in float32, with TF32, in bf16; and the golden cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from generator.pigeon.config import DecoderConfig, MaskConfig, PigeonConfig, TokenizerConfig, VisionConfig
from generator.pigeon.decoder import HighresVQDecoder, pad_codes
from generator.pigeon.masking import MutualMaskGenerator
from generator.pigeon.model import PigeonModel
from generator.pigeon.personalizer import Adapter
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from tests.gpu.models import large_model, nano_model
from tests.gpu.rig import Rig

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_TOLERANCE = 1e-4
Probe = tuple[nn.Module, Callable[[Any, list[Tensor]], Tensor], list[Tensor]]
"""A module, what is asked of it, and the inputs, on the CPU."""


def run(rig: Rig) -> None:
    golden(rig)
    for name, make in (("nano", nano_model), ("lavit-7b", large_model)):
        with rig.attempt(f"{name}: modules"):
            model = make(rig.full, rig.rehearse)
            for title, probe in probes(model).items():
                with rig.attempt(f"{name}: {title}"):
                    compare(rig, f"{name}: {title}", probe)
            del model


def compare(rig: Rig, name: str, probe: Probe) -> None:
    """Distances to the CPU's answer, relative to its largest number."""
    module, ask, inputs = probe
    here = [value.to(rig.device) for value in inputs]
    with torch.no_grad():
        wanted = ask(module.to("cpu"), inputs).float()
        module.to(rig.device)
        figures: dict[str, float] = {}
        for kind, allowed in (("fp32", False), ("tf32", True)):
            with tf32(allowed):
                figures[kind] = distance(ask(module, here), wanted)
        with torch.autocast(rig.device.type, dtype=torch.bfloat16):
            figures["bf16"] = distance(ask(module, here), wanted)
    rig.row(name, largest=float(wanted.abs().max()), **figures)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.float().cpu() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Matrix products and convolutions in TF32, or in float32; torch's default is the one and the other."""
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 = allowed
        yield
    finally:
        for kind, was in zip(kinds, before, strict=True):
            kind.allow_tf32 = was


def probes(model: PigeonModel) -> dict[str, Probe]:
    """What each network computes, on small inputs of the shapes that it has."""
    config, g = model.config, torch.Generator().manual_seed(3)
    vision, decoder, language = config.tokenizer.vision, config.decoder, config.language
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size, generator=g)
    features = torch.randn(1, vision.patches, vision.width, generator=g)
    embeds = torch.randn(1, 24, language.width, generator=g)
    types = torch.ones(1, 24, dtype=torch.int64)
    types[:, -6:] = 2
    codes = torch.randint(0, config.ids.codebook_size, (1, decoder.max_tokens), generator=g)
    channels, height, width = model.diffusion.latent_shape
    latents = torch.randn(1, channels, height // 2, width // 2, generator=g)
    base = model.personalizer.llama.get_base_model()
    found: dict[str, Probe] = {
        "image encoder": (model.tokenizer.encoder, lambda m, x: m(*x), [pixels]),
        "keep decision": (model.tokenizer.token_predictor, lambda m, x: m(*x), [features]),
        "merger": (model.tokenizer.causal_encoder, lambda m, x: m(*x), [features, (features[..., 0] > 0).float()]),
        "mask generator": (
            model.personalizer.mask_generator,
            lambda m, x: m.scores(*x),
            [embeds, torch.arange(1, 25)[None], types],
        ),
        "LLaMA": (base.model, lambda m, x: m(inputs_embeds=x[0], use_cache=False).last_hidden_state, [embeds]),
        "token decoder": (model.code_decoder, lambda m, x: m(*x)[0], [codes, torch.tensor([decoder.max_tokens])]),
        "VAE decoder": (model.diffusion, lambda m, x: m.decode_latents(x[0]), [latents]),
    }
    found |= unet_probe(config, model, g)
    if model.scorer is not None:
        side = model.scorer.config.vision.image_size
        found["scorer"] = (model.scorer.image, lambda m, x: m(*x), [torch.randn(1, 3, side, side, generator=g)])
    return found


def unet_probe(config: PigeonConfig, model: PigeonModel, g: torch.Generator) -> dict[str, Probe]:
    channels, height, width = model.diffusion.latent_shape
    queries = config.decoder.queries
    inputs = [
        torch.randn(1, channels, height, width, generator=g),
        torch.tensor([500]),
        torch.randn(1, queries, config.decoder.prompt_width, generator=g),
        torch.randn(1, config.decoder.pooled_width, generator=g),
    ]
    return {"UNet": (model.diffusion, lambda m, x: m.unet_output(*x), inputs)}


def golden(rig: Rig) -> None:
    """The published implementation's outputs (tests/golden), as the unit tests ask for them."""
    weights, io = (load_file(GOLDEN / f"{name}.safetensors") for name in ("weights", "io"))
    vision = VisionConfig(image_size=56, patch_size=14, width=64, depth=2, heads=4)
    tokenizer = DynamicVisualTokenizer(
        TokenizerConfig(vision=vision, merger_depth=2, merger_heads=4, codebook_size=128, code_dim=8)
    )
    decoder = HighresVQDecoder(
        DecoderConfig(width=64, depth=2, heads=4, queries=16, max_tokens=16, projections=(24, 40), pooled_width=40), 8
    )
    generator, adapter = MutualMaskGenerator(96, MaskConfig()), Adapter(64, 32, 96, dropout=0.1)
    for module, prefix in (
        (tokenizer, "tokenizer."),
        (decoder, "decoder."),
        (generator, "mask_generator."),
        (adapter, "adapter."),
    ):
        state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        module.load_state_dict(state, strict=False)
        module.eval().requires_grad_(False).to(rig.device)
    io = {name: value.to(rig.device) for name, value in io.items()}
    rows = list(io["code_vectors"].split(io["kept_counts"].tolist()))
    cases: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "encoder": lambda: (tokenizer.encoder(io["pixels"]), io["encoder_features"]),
        "keep decision": lambda: (tokenizer.token_predictor(io["encoder_features"][:, 1:]), io["keep_logprobs"]),
        "merger": lambda: (
            tokenizer.causal_encoder(io["encoder_features"][:, 1:], io["keep_mask"]),
            io["merged_features"],
        ),
        "quantizer": lambda: (tokenizer.quantize.nearest(io["quantizer_inputs"]), io["code_ids"]),
        "token decoder": lambda: (decoder(*pad_codes(rows, 16))[0], io["prompt_embeds"]),
        "mask": lambda: (
            generator(io["mask_token_embeds"], io["mask_positions"], io["mask_types"], 0.5).keep,
            io["mask_keep_inference"],
        ),
        "adapter": lambda: (adapter(io["adapter_in"]), io["adapter_out"]),
    }
    for name, case in cases.items():
        with rig.attempt(f"golden: {name}"), tf32(False):
            found, wanted = case()
            apart = float((found.double() - wanted.double()).abs().max())
            rig.row(f"golden: {name}", apart=apart, agrees=apart <= GOLDEN_TOLERANCE)
