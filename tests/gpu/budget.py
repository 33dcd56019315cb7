"""Seconds of one lavit-7b task on several devices, computed: `python -m tests.gpu.budget`.

Operations are counted by torch on the meta device, where nothing is computed; peaks are the makers' figures for dense bf16 and for
memory. A part takes at least the longer of its operations at the peak and of its bytes at the bandwidth; nothing reaches either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from generator.pigeon.config import PigeonConfig
from generator.pigeon.decoder import HighresVQDecoder
from generator.pigeon.diffusion import new_diffusion
from generator.pigeon.llama_step import LlamaStep
from generator.pigeon.personalizer import new_llama
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from tests.gpu.models import ANSWER_TOKENS, published

PROMPT_TOKENS = 700
"""Tokens of a prompt of five pictures of 96 codes each, with its texts."""
VARIANTS = 11
"""Answers of one task, which share the prompt."""


@dataclass(frozen=True)
class Device:
    """`tflops`: dense bf16; `tbytes`: terabytes a second; `gbytes`: memory, as its maker says."""

    name: str
    tflops: float
    tbytes: float
    gbytes: int


DEVICES = (Device("H200 SXM", 989, 4.8, 141), Device("H100 SXM", 989, 3.35, 80), Device("L40S", 362, 0.864, 48))


@dataclass(frozen=True)
class Work:
    """Operations and bytes of a part of a task; `rate`: share of the bf16 peak that its precision has."""

    name: str
    tera_operations: float
    giga_bytes: float
    rate: float = 1.0

    def seconds(self, device: Device) -> float:
        return max(self.tera_operations / (self.rate * device.tflops), self.giga_bytes / 1000 / device.tbytes)


def counted(run: Callable[[], object]) -> float:
    """Tera-operations of a computation on the meta device."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 1e12


def gigabytes(module: nn.Module, item: int) -> float:
    return item * sum(parameter.numel() for parameter in module.parameters()) / 1e9


def task() -> list[Work]:
    """The parts of one task that draws one of its answers."""
    config = published()
    language, steps = config.language, config.diffusion.steps
    with torch.device("meta"):
        tokenizer = DynamicVisualTokenizer(config.tokenizer)
        decoder = HighresVQDecoder(config.decoder, config.tokenizer.code_dim)
        llama = new_llama(config)
        diffusion = new_diffusion(config.diffusion)
        for network in (tokenizer, decoder, llama, diffusion):
            network.requires_grad_(False)
        side = config.tokenizer.vision.image_size
        pixels = torch.empty(1, 3, side, side)
        encode = counted(lambda: tokenizer.encode_dense(pixels))
        step = LlamaStep(llama)
        prefill = counted(lambda: llama_step(step, config, PROMPT_TOKENS, 0))
        token = counted(lambda: llama_step(step, config, 1, PROMPT_TOKENS))
        codes = torch.empty(1, config.decoder.max_tokens, config.tokenizer.code_dim)
        decode = counted(lambda: decoder(codes, torch.empty(1, dtype=torch.int64)))
        latents = torch.empty(2, *diffusion.latent_shape)
        embeds = torch.empty(2, config.decoder.queries, config.decoder.prompt_width)
        pooled, times = torch.empty(2, config.decoder.pooled_width), torch.empty(2, dtype=torch.int64)
        denoise = counted(lambda: unet(diffusion, latents, times, embeds, pooled))
        draw = counted(lambda: diffusion.vae.decode(latents[:1]))
    cache = 2 * 2 * language.depth * language.width * (PROMPT_TOKENS + ANSWER_TOKENS / 2) / 1e9  # of one row, bf16
    weights = gigabytes(llama, 2)
    return [
        Work("encode 6 pictures", 6 * encode, gigabytes(tokenizer, 2)),
        Work(f"read the prompt, {PROMPT_TOKENS} tokens", prefill, weights),
        Work(
            f"answer, {VARIANTS} rows of {ANSWER_TOKENS} codes",
            VARIANTS * ANSWER_TOKENS * token,
            ANSWER_TOKENS * (weights + VARIANTS * cache),
        ),
        Work("conditions", decode, gigabytes(decoder, 2)),
        Work(f"UNet, {steps} steps with guidance", steps * denoise, steps * gigabytes(diffusion.unet, 2)),
        Work("VAE decoder, TF32", draw, gigabytes(diffusion.vae, 4), rate=0.5),
    ]


def llama_step(step: LlamaStep, config: PigeonConfig, new: int, past: int) -> object:
    """`new` tokens behind `past` ones, with LoRA."""
    language = config.language
    cache = torch.empty(language.depth, 1, language.heads, past, language.width // language.heads)
    lora = (language.depth, len(language.lora_targets))
    lora_a = torch.empty(*lora, language.lora_rank, language.width)
    ones = torch.ones(1, new + past, dtype=torch.int64)
    embeds = torch.empty(1, new, language.width)
    return step(embeds, ones[:, :new], ones[:, new:], cache, cache, lora_a, lora_a.transpose(-1, -2))


def unet(diffusion: nn.Module, *inputs: torch.Tensor) -> object:
    """As `Diffusion.unet_output`, whose time ids come from numpy."""
    latents, times, embeds, pooled = inputs
    added = {"text_embeds": pooled, "time_ids": torch.empty(len(latents), 6)}
    found: object = diffusion.unet(latents, times, encoder_hidden_states=embeds, added_cond_kwargs=added)
    return found


def markdown() -> str:
    """The table of `deploy/triton/GPU.md`."""
    works = task()
    head = ["part", "operations, 10^12", "weights and cache read, GB", *(f"{device.name}, s" for device in DEVICES)]
    rows = [
        [
            work.name,
            f"{work.tera_operations:.3g}",
            f"{work.giga_bytes:.3g}",
            *(f"{work.seconds(d):.3f}" for d in DEVICES),
        ]
        for work in works
    ]
    totals = [f"{sum(work.seconds(device) for work in works):.3f}" for device in DEVICES]
    rows.append(["together", "", "", *totals])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(markdown())  # noqa: T201 -- a command prints
