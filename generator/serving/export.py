"""Checkpoint -> one ONNX graph per network, each compared with PyTorch before it is used."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from generator.pigeon.config import VisionConfig
from generator.pigeon.decoder import CodeDecoder
from generator.pigeon.diffusion import Diffusion
from generator.pigeon.llama_step import LlamaStep
from generator.pigeon.masking import MutualMaskGenerator
from generator.pigeon.model import PigeonModel
from generator.pigeon.prompt import EMBEDDING
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from generator.serving.agreement import Agreement, Example, Network, compare, placed_inputs
from schemas.errors import ModelError

OPSET = 20


class Normalised(nn.Module):
    """RGB (B, S, S, 3) uint8 -> what a tower of the given vision takes: normalised (B, 3, S, S)."""

    mean: Tensor
    std: Tensor

    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(vision.pixel_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(vision.pixel_std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        # Cast first: TensorRT takes bytes as an input, but cannot transpose them.
        return (images.float().permute(0, 3, 1, 2) / 255 - self.mean) / self.std


class VisualTokenizerGraph(nn.Module):
    """images -> code ids and keep decisions per patch."""

    def __init__(self, tokenizer: DynamicVisualTokenizer) -> None:
        super().__init__()
        self.pixels = Normalised(tokenizer.config.vision).to(next(tokenizer.parameters()).device)
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokenizer.encode_dense(self.pixels(images))


class MaskGeneratorGraph(nn.Module):
    """Token ids with positions and types -> scores; holds LLaMA's embedding table."""

    def __init__(self, generator: MutualMaskGenerator, table: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.table = table

    def forward(self, tokens: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        return self.generator.scores(self.table(tokens), positions, types)


class PersonalizerGraph(nn.Module):
    """LLaMA's step on ids: -1 is a zero vector, -2 the adapter's embedding of `condition` (B, E).

    Rows are not padded: within one task all prompts are equally long, so every position counts.
    """

    def __init__(self, step: LlamaStep, table: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.step = step
        self.table = table
        self.adapter = adapter

    def forward(
        self,
        input_ids: Tensor,
        condition: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        embeds = self.table(input_ids.clamp(min=0)) * (input_ids >= 0)[..., None].to(condition.dtype)
        place = (input_ids == EMBEDDING)[..., None].to(condition.dtype)
        embeds = embeds + place * self.adapter(condition)[:, None]
        past = torch.ones_like(past_key[0, :, 0, :, 0], dtype=torch.int64)  # (B, S)
        new = torch.ones_like(input_ids)
        out: tuple[Tensor, Tensor, Tensor] = self.step(embeds, new, past, past_key, past_value, lora_a, lora_b)
        return out


class UnetGraph(nn.Module):
    """Latents, timesteps and conditions -> the prediction; SDXL's size conditions are constants."""

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.diffusion = diffusion

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, pooled: Tensor) -> Tensor:
        return self.diffusion.unet_output(latents, timestep, prompt_embeds, pooled)


class VaeDecoderGraph(nn.Module):
    """Scaled latents -> RGB about -1..1."""

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.diffusion = diffusion

    def forward(self, latents: Tensor) -> Tensor:
        return self.diffusion.decode_latents(latents)


class ImageTowerGraph(nn.Module):
    """images -> unit features."""

    def __init__(self, tower: nn.Module, vision: VisionConfig) -> None:
        super().__init__()
        self.pixels = Normalised(vision).to(next(tower.parameters()).device)
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.tower(self.pixels(images))
        return out


def networks(pigeon: PigeonModel) -> list[Network]:
    """The graphs of a loaded checkpoint.

    Raises:
        ModelError: the checkpoint has no image scorer, or one of another picture size than is drawn.
    """
    config = pigeon.config
    scorer_config = config.scorer
    if scorer_config is None or pigeon.scorer is None:
        raise ModelError("checkpoint: no image_scorer; serving scores every candidate, add image_scorer/ to it")
    if scorer_config.vision.image_size != config.diffusion.image_size:
        raise ModelError(
            f"checkpoint: scorer.vision.image_size {scorer_config.vision.image_size} differs from "
            f"diffusion.image_size {config.diffusion.image_size}; the served scorer takes pictures as they are drawn"
        )
    personalizer, diffusion = pigeon.personalizer, pigeon.diffusion
    table = personalizer.llama.get_input_embeddings()
    step = personalizer.step()
    language, decoder = config.language, config.decoder
    head_width = language.width // language.heads
    vision = config.tokenizer.vision
    channels, height, width = diffusion.latent_shape
    batch = {0: "batch"}

    def images(size: int) -> Example:
        return lambda count, g: {
            "images": torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=g)
        }

    def mask_row(count: int, g: torch.Generator) -> dict[str, Tensor]:
        length = 24
        types = torch.ones(count, length, dtype=torch.int64)
        types[:, -6:] = 2
        return {
            "tokens": torch.randint(0, config.ids.vocab_size, (count, length), generator=g),
            "positions": torch.arange(1, length + 1)[None].repeat(count, 1),
            "types": types,
        }

    def llama_inputs(count: int, g: torch.Generator) -> dict[str, Tensor]:
        new, past = 5, 7
        ids = torch.randint(0, config.ids.vocab_size, (count, new), generator=g)
        ids[:, 1], ids[:, 2] = -1, EMBEDDING
        cache = (language.depth, count, language.heads, past, head_width)
        lora = (language.depth, len(language.lora_targets))
        return {
            "input_ids": ids,
            "condition": torch.randn(count, decoder.prompt_width, generator=g),
            "past_key": torch.randn(cache, generator=g),
            "past_value": torch.randn(cache, generator=g),
            "lora_a": torch.randn(*lora, language.lora_rank, language.width, generator=g) * 0.05,
            "lora_b": torch.randn(*lora, language.width, language.lora_rank, generator=g) * 0.05,
        }

    def codes(count: int, g: torch.Generator) -> dict[str, Tensor]:
        return {
            "codes": torch.randint(0, config.ids.codebook_size, (count, decoder.max_tokens), generator=g),
            "lengths": torch.randint(0, decoder.max_tokens + 1, (count,), generator=g),
        }

    def unet_inputs(count: int, g: torch.Generator) -> dict[str, Tensor]:
        return {
            "latents": torch.randn(count, channels, height, width, generator=g),
            "timestep": torch.randint(0, 1000, (count,), generator=g),
            "prompt_embeds": torch.randn(count, decoder.queries, decoder.prompt_width, generator=g),
            "pooled": torch.randn(count, decoder.pooled_width, generator=g),
        }

    def latents(count: int, g: torch.Generator) -> dict[str, Tensor]:
        return {"latents": torch.randn(count, channels, height, width, generator=g)}

    def text(count: int, g: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(0, scorer_config.text_size, (count, scorer_config.text_tokens), generator=g)
        rows[:, scorer_config.text_tokens // 2 :] = scorer_config.pad_id
        return {"tokens": rows}

    row = {0: "batch", 1: "tokens"}
    cache = {1: "batch", 3: "past"}
    code_decoder: CodeDecoder = personalizer.code_decoder
    return [
        Network(
            "visual_tokenizer",
            "model.onnx",
            VisualTokenizerGraph(pigeon.tokenizer),
            images(vision.image_size),
            {"images": batch},
            ("code_ids", "keep"),
        ),
        Network(
            "mask_generator",
            "model.onnx",
            MaskGeneratorGraph(personalizer.mask_generator, table),
            mask_row,
            {"tokens": row, "positions": row, "types": row},
            ("scores",),
        ),
        Network(
            "personalizer",
            "model.onnx",
            PersonalizerGraph(step, table, personalizer.adapter),
            llama_inputs,
            {"input_ids": row, "condition": batch, "past_key": cache, "past_value": cache, "lora_a": {}, "lora_b": {}},
            ("logits", "key", "value"),
        ),
        Network(
            "token_decoder",
            "model.onnx",
            code_decoder,
            codes,
            {"codes": batch, "lengths": batch},
            ("prompt_embeds", "pooled"),
        ),
        Network(
            "unet",
            "model.onnx",
            UnetGraph(diffusion),
            unet_inputs,
            dict.fromkeys(("latents", "timestep", "prompt_embeds", "pooled"), batch),
            ("predicted",),
        ),
        Network("vae_decoder", "model.onnx", VaeDecoderGraph(diffusion), latents, {"latents": batch}, ("decoded",)),
        Network(
            "image_scorer",
            "image.onnx",
            ImageTowerGraph(pigeon.scorer.image, scorer_config.vision),
            images(scorer_config.vision.image_size),
            {"images": batch},
            ("features",),
        ),
        Network("image_scorer", "text.onnx", pigeon.scorer.text, text, {"tokens": batch}, ("features",)),
    ]


def export(network: Network, path: Path) -> Agreement:
    """Write the graph and compare it with PyTorch at two batch sizes other than the traced one.

    Raises:
        ModelError: the graph cannot be exported, or is further from PyTorch than its bounds allow.
    """
    module = network.module.eval()
    dims = {
        # From 2, because tracing takes a 1 for a constant; the graph itself does not know these limits. Past 63 rows
        # diffusers' upsampling takes another path.
        dim: torch.export.Dim(dim, min=2, max=63 if dim == "batch" else 4096)
        for named in network.dynamic.values()
        for dim in named.values()
    }
    dynamic = {name: {axis: dims[dim] for axis, dim in named.items()} for name, named in network.dynamic.items()}
    with torch.no_grad(), _tracing():
        try:
            program = torch.onnx.export(
                module,
                kwargs=placed_inputs(network.example(2, torch.Generator().manual_seed(0)), module),
                dynamo=True,
                dynamic_shapes=dynamic,
                output_names=list(network.outputs),
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # the outer messages are instructions for the exporter's developers
                cause = cause.__cause__
            reason = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"
            raise ModelError(f"{network.title}: cannot be exported to ONNX: {reason}") from error
        assert program is not None  # noqa: S101 -- dynamo=True without a file always returns one; for the type checker
        program.save(path)
    agreement = compare(network, path)
    if not agreement.within:
        raise ModelError(
            f"{network.title}: ONNX differs from PyTorch by {agreement.max_abs_diff:.2e} "
            f"({agreement.flipped_share:.2%} of its decisions flipped); the limit is {network.bounds.difference:g}"
        )
    return agreement


@contextmanager
def _tracing() -> Iterator[None]:
    """Trace without the exporter's remarks and without the garbage collector.

    The remarks are of no use to a user; walking the tracer's many small objects again and again was a third of the time (18
    to 11 s for the UNet).
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    collecting = gc.isenabled()
    logger.setLevel(logging.ERROR)
    gc.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
            if collecting:
                gc.enable()
                gc.collect()
