"""Other sizes and other weights than the golden ones.

PIGEON.md's formulas written down once more, plainly, in float64 and
with loops, under the published weight names. Tensors agree to 1e-4, ids and decisions exactly.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from generator.pigeon.config import DecoderConfig, MaskConfig, TokenizerConfig, VisionConfig
from generator.pigeon.decoder import CodeDecoder, HighresVQDecoder
from generator.pigeon.masking import MutualMaskGenerator
from generator.pigeon.personalizer import Adapter
from generator.pigeon.tokenizer import DynamicVisualTokenizer

torch.set_num_threads(1)
erf = np.vectorize(math.erf)
Array = np.ndarray


class Weights:
    """A module's numbers by name, and the layers that they make."""

    def __init__(self, module: nn.Module) -> None:
        self.of = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.of[f"{name}.weight"].T + self.of.get(f"{name}.bias", 0.0)

    def norm(self, x: Array, name: str, eps: float) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
        return centred / spread * self.of[f"{name}.weight"] + self.of[f"{name}.bias"]

    def mlp(self, x: Array, name: str) -> Array:
        hidden = self.linear(x, f"{name}.fc1")
        return self.linear(0.5 * hidden * (1 + erf(hidden / math.sqrt(2))), f"{name}.fc2")


def random_weights(module: nn.Module, seed: int) -> Weights:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("pos_embed") or parameter.dim() > 1:
                parameter.normal_(std=0.35)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    module.eval().requires_grad_(False)
    return Weights(module)


def attention(
    query: Array, key: Array, value: Array, heads: int, weigh: object = None, bias: Array | None = None
) -> Array:
    """(N, C), (M, C), (M, C) -> (N, C), one head and one row at a time.

    `weigh(row, scores)` replaces the softmax.
    """
    out = np.zeros_like(query)
    width = query.shape[1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for row in range(len(query)):
            scores = key[:, part] @ query[row, part] / math.sqrt(width)
            if bias is not None:
                scores = scores + bias
            if weigh is None:
                weights = np.exp(scores - scores.max())
                weights = weights / weights.sum()
            else:
                weights = weigh(row, scores)  # type: ignore[operator]
            out[row, part] = weights @ value[:, part]
    return out


def policy(visible: list[int]) -> object:
    """Per row of a 0/1 matrix: scores minus maximum, exp, times the policy, (a + eps/N) / (sum + eps)."""

    def weigh(row: int, scores: Array) -> Array:
        a = np.exp(scores - scores.max()) * np.asarray(visible[row])
        return (a + 1e-6 / len(a)) / (a.sum() + 1e-6)

    return weigh


def encoder(w: Weights, image: Array, config: VisionConfig) -> Array:
    """One image (3, S, S) -> (1 + patches, C)."""
    step, side = config.patch_size, config.image_size // config.patch_size
    kernel, bias = w.of["encoder.patch_embed.proj.weight"], w.of["encoder.patch_embed.proj.bias"]
    rows = [w.of["encoder.cls_token"][0, 0]]
    for y in range(side):
        for x in range(side):
            patch = image[:, y * step : (y + 1) * step, x * step : (x + 1) * step]
            rows.append(np.array([(patch * one).sum() for one in kernel]) + bias)
    tokens = np.stack(rows) + w.of["encoder.pos_embed"][0]
    for block in range(config.depth):
        name = f"encoder.blocks.{block}"
        h = w.norm(tokens, f"{name}.norm1", 1e-6)
        query, key, value = np.split(h @ w.of[f"{name}.attn.qkv.weight"].T, 3, axis=1)
        query, value = query + w.of[f"{name}.attn.q_bias"], value + w.of[f"{name}.attn.v_bias"]
        tokens = tokens + w.linear(attention(query, key, value, config.heads), f"{name}.attn.proj")
        tokens = tokens + w.mlp(w.norm(tokens, f"{name}.norm2", 1e-6), f"{name}.mlp")
    return tokens


def keep_logprobs(w: Weights, features: Array) -> Array:
    def gelu(x: Array) -> Array:
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))

    name = "token_predictor"
    h = gelu(w.linear(w.norm(features, f"{name}.in_conv.0", 1e-5), f"{name}.in_conv.1"))
    half = h.shape[1] // 2
    h = np.concatenate([h[:, :half], np.repeat(h[:, half:].mean(axis=0)[None], len(h), axis=0)], axis=1)
    h = gelu(w.linear(h, f"{name}.out_conv.0"))
    h = w.linear(gelu(w.linear(h, f"{name}.out_conv.2")), f"{name}.out_conv.4")
    return h - np.log(np.exp(h).sum(axis=1, keepdims=True))


def merger(w: Weights, features: Array, keep: list[int], config: TokenizerConfig) -> Array:
    origin = w.norm(features, "causal_encoder.ln_vision", 1e-5)
    patches = len(features)
    earlier = [[int(m == n or (m < n and keep[m])) for m in range(patches)] for n in range(patches)]
    dropped = [[1 - keep[m] for m in range(patches)] for _ in range(patches)]
    x = features
    for block in range(config.merger_depth):
        name = f"causal_encoder.blocks.{block}"
        query, key, value = np.split(
            w.linear(w.norm(x, f"{name}.norm0", 1e-5), f"{name}.token_causal_attn.qkv"), 3, axis=1
        )
        mixed = attention(query, key, value, config.merger_heads, policy(earlier))
        x = x + w.linear(mixed, f"{name}.token_causal_attn.proj")
        cross = f"{name}.token_cross_attn"
        query = w.linear(w.norm(x, f"{name}.norm1", 1e-5), f"{cross}.query")
        key, value = w.linear(origin, f"{cross}.key"), w.linear(origin, f"{cross}.value")
        x = x + w.linear(attention(query, key, value, config.merger_heads, policy(dropped)), f"{cross}.proj")
        x = x + w.mlp(w.norm(x, f"{name}.norm2", 1e-5), f"{name}.mlp")
    return w.norm(x, "causal_encoder.norm", 1e-5)


def code_ids(w: Weights, merged: Array) -> list[int]:
    vectors = w.linear(np.tanh(w.linear(merged, "encode_task_layer.0")), "encode_task_layer.2")
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    codebook = w.of["quantize.embedding.weight"]
    return [int(np.square(codebook - vector).sum(axis=1).argmin()) for vector in vectors]


TOKENIZERS = [
    TokenizerConfig(
        vision=VisionConfig(image_size=24, patch_size=8, width=20, depth=3, heads=2),
        merger_depth=3, merger_heads=5, codebook_size=50, code_dim=4,
    ),
    TokenizerConfig(
        vision=VisionConfig(image_size=20, patch_size=4, width=36, depth=1, heads=6),
        merger_depth=1, merger_heads=3, codebook_size=17, code_dim=12,
    ),
]  # fmt: skip


def near(ours: torch.Tensor, plain: Array) -> None:
    torch.testing.assert_close(ours.double(), torch.from_numpy(plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("config", TOKENIZERS, ids=["width 20", "width 36"])
def test_tokenizer(config: TokenizerConfig, seed: int) -> None:
    module = DynamicVisualTokenizer(config)
    w = random_weights(module, seed)
    pixels = torch.randn(3, 3, config.vision.image_size, config.vision.image_size)
    found = module.encoder(pixels)
    images = [encoder(w, image, config.vision) for image in pixels.double().numpy()]
    near(found, np.stack(images))
    near(module.token_predictor(found[:, 1:]), np.stack([keep_logprobs(w, image[1:]) for image in images]))
    patches = config.vision.patches
    rng = np.random.default_rng(seed)
    masks = [[1] * patches, [0] * patches, rng.integers(0, 2, patches).tolist()]  # all, nothing, some
    plain = np.stack([merger(w, image[1:], mask, config) for image, mask in zip(images, masks, strict=True)])
    near(module.causal_encoder(found[:, 1:], torch.tensor(masks)), plain)
    ours = module.encode(pixels)
    for image, codes in zip(images, ours, strict=True):
        chosen = [int(keep >= drop) for keep, drop in keep_logprobs(w, image[1:])]
        every = code_ids(w, merger(w, image[1:], chosen, config))
        assert codes.tolist() == [code for code, kept in zip(every, chosen, strict=True) if kept]


def decode(w: Weights, vectors: Array, config: DecoderConfig) -> tuple[Array, Array]:
    """One image's code vectors (n, d), unpadded -> prompt_embeds (Q, a + b), pooled (p,)."""
    memory = w.linear(vectors, "in_proj") + w.of["pos_embed"][0, : len(vectors)]
    x = w.of["query_embed"][0]
    for block in range(config.depth):
        name = f"blocks.{block}"
        query, key, value = np.split(w.linear(w.norm(x, f"{name}.norm0", 1e-5), f"{name}.self_attn.qkv"), 3, axis=1)
        x = x + w.linear(attention(query, key, value, config.heads), f"{name}.self_attn.proj")
        cross = f"{name}.cross_attn"
        query = w.linear(w.norm(x, f"{name}.norm1", 1e-5), f"{cross}.query")
        mixed = attention(query, w.linear(memory, f"{cross}.key"), w.linear(memory, f"{cross}.value"), config.heads)
        x = x + w.linear(mixed, f"{cross}.proj")
        x = x + w.mlp(w.norm(x, f"{name}.norm2", 1e-5), f"{name}.mlp")
    h = w.linear(np.tanh(w.linear(w.norm(x, "norm", 1e-5), "decode_task_layer.0")), "decode_task_layer.2")
    pool = "unet_attnpool"
    tokens = np.concatenate([h.mean(axis=0)[None], h]) + w.of[f"{pool}.positional_embedding"]
    mixed = attention(
        w.linear(tokens[:1], f"{pool}.q_proj"), w.linear(tokens, f"{pool}.k_proj"), w.linear(tokens, f"{pool}.v_proj"),
        config.heads,
    )  # fmt: skip
    prompt = np.concatenate([w.linear(h, "unet_proj_1"), w.linear(h, "unet_proj_2")], axis=1)
    return prompt, w.linear(mixed, f"{pool}.c_proj")[0]


@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(width=24, depth=3, heads=3, queries=7, max_tokens=11, projections=(5, 9), pooled_width=6),
        DecoderConfig(width=30, depth=1, heads=5, queries=4, max_tokens=6, projections=(12, 2), pooled_width=15),
    ],
    ids=["width 24", "width 30"],
)
def test_decoder_and_adapter(config: DecoderConfig) -> None:
    module = HighresVQDecoder(config, code_dim=5)
    w = random_weights(module, 3)
    codebook = torch.randn(40, 5)
    rows = [[3, 39, 0, 3], [7], list(range(config.max_tokens))]
    padded = torch.zeros(3, config.max_tokens, dtype=torch.int64)
    for row, codes in zip(padded, rows, strict=True):
        row[: len(codes)] = torch.tensor(codes)
    prompt, pooled = CodeDecoder(module, codebook)(padded, torch.tensor([len(codes) for codes in rows]))
    plain = [decode(w, codebook[codes].double().numpy(), config) for codes in rows]
    near(prompt, np.stack([one for one, _ in plain]))
    near(pooled, np.stack([one for _, one in plain]))
    adapter = Adapter(config.prompt_width, 13, 18, 0.1)
    a = random_weights(adapter, 4)
    condition = np.stack([one.mean(axis=0) for one, _ in plain])
    near(adapter(prompt.mean(dim=1)), np.tanh(a.linear(a.linear(condition, "encoder"), "decoder")))


def mask_scores(w: Weights, embeds: Array, positions: list[int], types: list[int], heads: int) -> Array:
    """One unpadded row -> cosines."""
    width = embeds.shape[1]
    table = np.zeros((257, width))
    for position in range(257):
        for channel in range(width):
            angle = position / 10000 ** (2 * (channel // 2) / width)
            table[position, channel] = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
    x = w.norm(embeds + table[positions] + w.of["type_embedding.weight"][types], "LayerNorm", 1e-5)
    layer = "encoder.layers.0"
    packed = x @ w.of[f"{layer}.self_attn.in_proj_weight"].T + w.of[f"{layer}.self_attn.in_proj_bias"]
    mixed = attention(*np.split(packed, 3, axis=1), heads)
    x = w.norm(x + w.linear(mixed, f"{layer}.self_attn.out_proj"), f"{layer}.norm1", 1e-5)
    hidden = np.maximum(w.linear(x, f"{layer}.linear1"), 0)
    x = w.norm(x + w.linear(hidden, f"{layer}.linear2"), f"{layer}.norm2", 1e-5)
    out = np.tanh(w.linear(w.norm(x, "LayerNorm", 1e-5), "dense"))
    return (embeds * out).sum(axis=1) / np.linalg.norm(embeds, axis=1) / np.linalg.norm(out, axis=1)


def kept(probabilities: list[float], ratio: Fraction) -> list[float]:
    count = max(1, math.floor(len(probabilities) * (1 - ratio)))
    best = sorted(range(len(probabilities)), key=lambda place: -probabilities[place])[:count]
    return [float(place in best) for place in range(len(probabilities))]


@pytest.mark.parametrize(("width", "heads"), [(24, 3), (40, 4)])
@pytest.mark.parametrize("training", [False, True])
def test_mask_generator(width: int, heads: int, training: bool) -> None:
    config = MaskConfig(heads=heads, mlp_width=52)
    module = MutualMaskGenerator(width, config)
    w = random_weights(module, 5)
    shapes = [([4, 3], 5), ([6], 9), ([1, 1, 1], 2)]  # tokens of each history image, of the reference
    ratios = [Fraction(3, 10), Fraction(9, 10), Fraction(0)]
    longest = max(sum(history) + reference for history, reference in shapes)
    embeds = torch.zeros(3, longest, width)
    positions, types = torch.zeros(2, 3, longest, dtype=torch.int64)
    for row, (history, reference) in enumerate(shapes):
        where = [place + 1 for count in (*history, reference) for place in range(count)]
        embeds[row, : len(where)] = torch.randn(len(where), width)
        positions[row, : len(where)] = torch.tensor(where)
        types[row, : len(where)] = torch.tensor([1] * sum(history) + [2] * reference)
    out = module(embeds, positions, types, torch.tensor([float(ratio) for ratio in ratios]), invert_reference=training)
    for row, (history, reference) in enumerate(shapes):
        first, count = sum(history), sum(history) + reference
        plain = mask_scores(
            w, embeds[row, :count].double().numpy(), positions[row, :count].tolist(), types[row, :count].tolist(), heads
        )
        near(out.scores[row, :count], plain)
        past, target = np.exp(plain[:first]), np.exp(plain[first:])
        past, target = past / past.sum(), target / target.sum()
        near(out.history_probability[row, :count], np.concatenate([past, np.zeros(reference)]))
        near(out.reference_probability[row, :count], np.concatenate([np.zeros(first), target]))
        wanted = [1 - p for p in target.tolist()] if training else target.tolist()
        decisions = kept(past.tolist(), Fraction(2, 10)) + kept(wanted, ratios[row])
        assert out.keep[row].tolist() == decisions + [0.0] * (longest - count)
