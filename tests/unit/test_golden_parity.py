"""Our modules against the published implementation's outputs on random weights (tests/golden)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from generator.pigeon.config import DecoderConfig, MaskConfig, TokenizerConfig, VisionConfig
from generator.pigeon.decoder import HighresVQDecoder, pad_codes
from generator.pigeon.layers import compact
from generator.pigeon.masking import MutualMaskGenerator
from generator.pigeon.personalizer import Adapter
from generator.pigeon.tokenizer import DynamicVisualTokenizer

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden"
CODE_OFFSET = 32002
# Published weights that Pigeon's forward pass never reads.
UNREAD = ("encoder.norm.", "encoder.head.", "vit_proj.")

TOKENIZER = TokenizerConfig(
    vision=VisionConfig(image_size=56, patch_size=14, width=64, depth=2, heads=4),
    merger_depth=2,
    merger_heads=4,
    codebook_size=128,
    code_dim=8,
)
DECODER = DecoderConfig(width=64, depth=2, heads=4, queries=16, max_tokens=16, projections=(24, 40), pooled_width=40)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(GOLDEN / "weights.safetensors")


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(GOLDEN / "io.safetensors")


def load(module: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    module.load_state_dict({name: value for name, value in state.items() if not name.startswith(UNREAD)})
    module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(weights: dict[str, Tensor]) -> DynamicVisualTokenizer:
    module = DynamicVisualTokenizer(TOKENIZER)
    load(module, weights, "tokenizer.")
    return module


@pytest.fixture(scope="module")
def decoder(weights: dict[str, Tensor]) -> HighresVQDecoder:
    module = HighresVQDecoder(DECODER, code_dim=8)
    load(module, weights, "decoder.")
    return module


@pytest.fixture(scope="module")
def mask_generator(weights: dict[str, Tensor]) -> MutualMaskGenerator:
    module = MutualMaskGenerator(96, MaskConfig())
    load(module, weights, "mask_generator.")
    return module


def near(ours: Tensor, golden: Tensor) -> None:
    torch.testing.assert_close(ours, golden, rtol=0, atol=1e-4)


def test_encoder(tokenizer: DynamicVisualTokenizer, io: dict[str, Tensor]) -> None:
    near(tokenizer.encoder(io["pixels"]), io["encoder_features"])


def test_keep_decision(tokenizer: DynamicVisualTokenizer, io: dict[str, Tensor]) -> None:
    near(tokenizer.token_predictor(io["encoder_features"][:, 1:]), io["keep_logprobs"])


def test_merger_on_a_given_mask(tokenizer: DynamicVisualTokenizer, io: dict[str, Tensor]) -> None:
    near(tokenizer.causal_encoder(io["encoder_features"][:, 1:], io["keep_mask"]), io["merged_features"])


def test_quantizer(tokenizer: DynamicVisualTokenizer, io: dict[str, Tensor]) -> None:
    merged, kept = io["merged_features"], io["keep_mask"] > 0.5
    near(tokenizer.encode_task_layer(merged)[kept], io["quantizer_inputs"])
    ids = tokenizer.quantize.nearest(io["quantizer_inputs"])
    assert torch.equal(ids, io["code_ids"])
    near(tokenizer.quantize.embedding(ids), io["code_vectors"])
    assert torch.equal(kept.sum(dim=1), io["kept_counts"])


def test_argmax_tokens_end_to_end(tokenizer: DynamicVisualTokenizer, io: dict[str, Tensor]) -> None:
    rows = tokenizer.encode(io["pixels"])
    ours = [[32000, *(CODE_OFFSET + row).tolist(), 32001] for row in rows]
    assert [len(row) for row in ours] == io["argmax_token_counts"].tolist()
    assert [token for row in ours for token in row] == io["argmax_token_ids"].tolist()


def test_decoder_whatever_the_padding(decoder: HighresVQDecoder, io: dict[str, Tensor]) -> None:
    rows = list(io["code_vectors"].split(io["kept_counts"].tolist()))
    for padded_to in (12, 16):
        prompt_embeds, pooled = decoder(*pad_codes(rows, padded_to))
        near(prompt_embeds, io["prompt_embeds"])
        near(pooled, io["pooled_prompt_embeds"])


def test_compaction_agrees_with_splitting(io: dict[str, Tensor]) -> None:
    kept = io["keep_mask"]
    dense = torch.zeros(*kept.shape, 8)
    dense[kept > 0.5] = io["code_vectors"]
    packed, lengths = compact(dense, kept)
    expected, _ = pad_codes(list(io["code_vectors"].split(io["kept_counts"].tolist())), kept.shape[1])
    assert torch.equal(packed, expected)
    assert torch.equal(lengths, io["kept_counts"])


@pytest.mark.parametrize(("training", "name"), [(False, "mask_keep_inference"), (True, "mask_keep_training")])
def test_mask_generator(mask_generator: MutualMaskGenerator, io: dict[str, Tensor], training: bool, name: str) -> None:
    assert torch.equal(io["mask_padding"].bool(), io["mask_types"] == 0)
    out = mask_generator(
        io["mask_token_embeds"], io["mask_positions"], io["mask_types"], 0.5, invert_reference=training
    )
    near(out.scores, io["mask_cosine"])
    near(out.history_probability, io["mask_history_prob"])
    near(out.reference_probability, io["mask_reference_prob"])
    assert torch.equal(out.keep, io[name])


def test_adapter(weights: dict[str, Tensor], io: dict[str, Tensor]) -> None:
    module = Adapter(64, 32, 96, dropout=0.1)
    load(module, weights, "adapter.")
    near(module(io["adapter_in"]), io["adapter_out"])
