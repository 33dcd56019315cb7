"""The graphs of the gpu target: float16 inside, where `Placement` allows it.

Inputs and outputs are float32.

Image encoder, merger, token decoder, LLaMA and UNet are float16. What decides (keep decision, quantizer, mask generator, scorer)
and the VAE, which overflows in half precision, stay in float32, and so do LoRA and the reference adapter. The types are the
graph's own, and the engine keeps to them: with no precision flag ONNX Runtime builds a strongly typed TensorRT network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from generator.pigeon.model import PigeonModel
from generator.pigeon.prompt import EMBEDDING
from generator.serving.agreement import FLOAT32, Bounds, Example, Network
from generator.serving.export import PersonalizerGraph, UnetGraph, networks

STEP = "personalizer_step"

FLOAT16 = Bounds(difference=2e-2, flipped=2e-2)
"""Distance to PyTorch in float32. A code flips where two of the codebook are about as near, which float16 cannot tell apart."""
HALVED = frozenset({"visual_tokenizer", "token_decoder", "unet", STEP})
"""Models whose graphs are float16 inside."""
TOWERS = {"image_scorer/image": "image_tower", "image_scorer/text": "text_tower"}


class Columns(nn.Module):
    """A network that takes its number per row as a column (B, 1); floating outputs are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def widened(self, outputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """The outputs in float32."""
        if isinstance(outputs, tuple):
            return tuple(value.float() for value in outputs)
        return outputs.float()


class TokenDecoderColumns(Columns):
    """codes (B, N), lengths (B, 1) -> prompt_embeds, pooled."""

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.widened(self.network(codes, lengths[:, 0]))


class UnetColumns(Columns):
    """Latents, timestep (B, 1) and conditions -> the prediction."""

    def __init__(self, network: UnetGraph) -> None:
        super().__init__(network)
        unet = network.diffusion.unet
        # diffusers joins these float32 waves with the pooled condition and casts the whole; ONNX joins only equal types.
        unet.add_time_proj.register_forward_hook(lambda _, __, waves: waves.to(unet.dtype))

    def forward(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, pooled: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        return self.widened(self.network(latents, timestep[:, 0], prompt_embeds, pooled))


class StepInHalf(nn.Module):
    """`PersonalizerGraph` whose LLaMA computes in its weights' precision."""

    def __init__(self, inner: PersonalizerGraph) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        input_ids: Tensor,
        condition: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
    ) -> tuple[Tensor, ...]:
        half = self.inner.step.norm.weight.dtype
        embeds = self.inner.table(input_ids.clamp(min=0)) * (input_ids >= 0)[..., None].to(half)
        place = (input_ids == EMBEDDING)[..., None].to(half)
        embeds = embeds + place * self.inner.adapter(condition)[:, None].to(half)
        past = torch.ones_like(past_key[0, :, 0, :, 0], dtype=torch.int64)  # (B, S)
        out = self.inner.step(
            embeds,
            torch.ones_like(input_ids),
            past,
            past_key.to(half),
            past_value.to(half),
            lora_a.to(half),
            lora_b.to(half),
        )
        return tuple(value.float() for value in out)


WRAPPED: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "token_decoder": (TokenDecoderColumns, "lengths"),
    "unet": (UnetColumns, "timestep"),
}
"""Models with an input of one number per row, and that input."""


def gpu_networks(half: PigeonModel, full: PigeonModel) -> list[Network]:
    """The graphs of a checkpoint loaded as `Placement("fp16")`, compared with it in float32.

    Raises:
        ModelError: as `networks`.
    """
    return [
        _for_gpu(network, reference.module) for network, reference in zip(networks(half), networks(full), strict=True)
    ]


def _for_gpu(network: Network, reference: nn.Module) -> Network:
    if isinstance(network.module, PersonalizerGraph):
        return replace(network, model=STEP, module=StepInHalf(network.module), reference=reference, bounds=FLOAT16)
    model = TOWERS.get(network.title, network.model)
    made = replace(
        network,
        model=model,
        file="model.onnx",
        reference=reference,
        bounds=FLOAT16 if model in HALVED else FLOAT32,
    )
    if model not in WRAPPED:
        return made
    wrap, column = WRAPPED[model]
    return replace(
        made,
        module=wrap(network.module),
        reference=wrap(reference),
        example=_with_column(network.example, column),
    )


def _with_column(example: Example, name: str) -> Example:
    def columned(count: int, generator: torch.Generator) -> dict[str, Tensor]:
        inputs = example(count, generator)
        return {**inputs, name: inputs[name][:, None]}

    return columned
