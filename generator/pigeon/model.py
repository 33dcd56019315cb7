"""All networks of one checkpoint together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import nn

from generator.pigeon.config import PigeonConfig
from generator.pigeon.decoder import CodeDecoder, HighresVQDecoder
from generator.pigeon.diffusion import Diffusion, new_diffusion
from generator.pigeon.personalizer import Personalizer, new_llama
from generator.pigeon.placement import Network
from generator.pigeon.scorer import ImageScorer
from generator.pigeon.tokenizer import DynamicVisualTokenizer


@dataclass(frozen=True)
class PigeonModel:
    """The networks, sharing one codebook.

    `checkpoint.load_model` reads one, `new_model` makes one at random.
    """

    config: PigeonConfig
    tokenizer: DynamicVisualTokenizer
    code_decoder: CodeDecoder
    personalizer: Personalizer
    diffusion: Diffusion
    scorer: ImageScorer | None
    text_tokenizer: Tokenizer

    def networks(self) -> Iterator[nn.Module]:
        yield from (network for _, network in self.placed())

    def placed(self) -> Iterator[tuple[Network, nn.Module]]:
        """All networks with the name that a placement has for where each goes."""
        yield "tokenizer", self.tokenizer
        yield "language", self.code_decoder
        yield "language", self.personalizer
        yield "diffusion", self.diffusion
        if self.scorer is not None:
            yield "scorer", self.scorer

    def eval(self) -> PigeonModel:
        """All networks in evaluation mode, without gradients."""
        for network in self.networks():
            network.eval().requires_grad_(False)
        return self

    def encode_text(self, text: str) -> list[int]:
        """Plain text -> text ids, no special tokens."""
        ids: list[int] = self.text_tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def new_model(config: PigeonConfig, text_tokenizer: Tokenizer) -> PigeonModel:
    """A model with random weights.

    Raises:
        ValueError: the configuration has no UNet and VAE arguments (preset lavit-7b: load a checkpoint).
    """
    tokenizer = DynamicVisualTokenizer(config.tokenizer)
    code_decoder = new_code_decoder(config, tokenizer)
    return PigeonModel(
        config=config,
        tokenizer=tokenizer,
        code_decoder=code_decoder,
        personalizer=Personalizer(config, new_llama(config), code_decoder),
        diffusion=new_diffusion(config.diffusion),
        scorer=None if config.scorer is None else ImageScorer(config.scorer),
        text_tokenizer=text_tokenizer,
    )


def new_code_decoder(config: PigeonConfig, tokenizer: DynamicVisualTokenizer) -> CodeDecoder:
    """The token decoder on the tokenizer's own codebook."""
    decoder = HighresVQDecoder(config.decoder, config.tokenizer.code_dim)
    return CodeDecoder(decoder, tokenizer.quantize.embedding.weight)
