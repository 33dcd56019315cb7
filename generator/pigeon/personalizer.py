"""The personalization module: LLaMA with LoRA, mask generator and reference condition.

PIGEON.md section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from generator.pigeon.config import PigeonConfig
from generator.pigeon.decoder import CodeDecoder
from generator.pigeon.llama_step import LlamaStep, LoraMatrices
from generator.pigeon.masking import MaskOutput, MutualMaskGenerator
from generator.pigeon.prompt import EMBEDDING, REFERENCE, MaskInputs, PromptBatch
from generator.pigeon.sampling import AnswerSampler, GenerationConfig, answer_codes


class Adapter(nn.Module):
    """Mean prompt embedding of the kept reference (B, P) -> one LLaMA input embedding (B, C), in -1..1."""

    def __init__(self, in_width: int, mlp_width: int, out_width: int, dropout: float) -> None:
        super().__init__()
        self.encoder = nn.Linear(in_width, mlp_width)
        self.decoder = nn.Linear(mlp_width, out_width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, condition: Tensor) -> Tensor:
        hidden = self.dropout(self.encoder(condition.to(self.encoder.weight)))
        out: Tensor = self.dropout(torch.tanh(self.decoder(hidden)))
        return out


@dataclass(frozen=True)
class TrainingBatch:
    """Prompts with answers, not masked yet, and the mask generator's rows; `from_arrays` makes it."""

    tokens: Tensor  # (B, T) unmasked ids and EMBEDDING
    attention: Tensor  # (B, T)
    labels: Tensor  # (B, T)
    mask_column: Tensor  # (B, T), -1 or column of the mask row
    mask_tokens: Tensor  # (B, N)
    mask_positions: Tensor  # (B, N)
    mask_types: Tensor  # (B, N)

    @classmethod
    def from_arrays(cls, prompt: PromptBatch, mask: MaskInputs) -> TrainingBatch:
        """Make one from arrays; `prompt` is of unmasked images, because masks are applied later."""
        return cls(
            *(torch.from_numpy(a) for a in (prompt.tokens, prompt.attention, prompt.labels, prompt.mask_column)),
            *(torch.from_numpy(a) for a in (mask.tokens, mask.positions, mask.types)),
        )

    def rows(self, part: slice) -> TrainingBatch:
        """Some of the rows, padded as they are."""
        return TrainingBatch(*(value[part] for value in vars(self).values()))


class Personalizer(nn.Module):
    """History, reference and texts -> the answer's tokens.

    `generate` answers. Training builds LLaMA's inputs from `masks`, `reference_embedding` and `input_embeddings`, through all
    of which gradients pass; what then learns and from which loss is `generator.training`'s.
    """

    def __init__(self, config: PigeonConfig, llama: LlamaForCausalLM, code_decoder: CodeDecoder) -> None:
        """Put LoRA on `llama`; the code decoder is frozen, and gradients pass through it."""
        super().__init__()
        self.config = config
        self.llama = with_lora(llama, config)
        width = config.language.width
        self.mask_generator = MutualMaskGenerator(width, config.mask)
        self.adapter = Adapter(config.decoder.prompt_width, config.adapter.mlp_width, width, config.adapter.dropout)
        self.code_decoder = code_decoder
        self.set_trainable()

    def set_trainable(self) -> None:
        """Let LoRA, mask generator and adapter learn, and neither LLaMA's own weights nor the code decoder."""
        self.code_decoder.requires_grad_(False)
        for part in (self.mask_generator, self.adapter):
            part.requires_grad_(True)
        for name, parameter in self.llama.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def recompute_activations(self) -> None:
        """Let training compute each LLaMA layer's activations again instead of keeping them.

        Drawing does not change. The flag is set on the layers alone, where transformers looks for it: their dropout stays as it is.
        """
        base: Any = self.llama.get_base_model()
        newer = getattr(base, "activation_checkpointing_enable", None)  # transformers 5.23 renamed it
        (newer or base.gradient_checkpointing_enable)({"use_reentrant": False})
        for layer in base.model.layers:
            layer.training = True

    def token_embeddings(self, tokens: Tensor) -> Tensor:
        """Ids (B, T), negative markers allowed -> (B, T, C); zero vectors at the markers."""
        embedding: Any = self.llama.get_input_embeddings()
        tokens = tokens.to(embedding.weight.device)
        embeds: Tensor = embedding(tokens.clamp(min=0))
        return embeds * (tokens >= 0)[..., None].to(embeds.dtype)

    def masks(
        self,
        tokens: Tensor,
        positions: Tensor,
        types: Tensor,
        alpha: Tensor | float,
        *,
        invert_reference: bool = False,
        noise: Tensor | None = None,
    ) -> MaskOutput:
        """tokens, positions, types (B, N) as `prompt.mask_inputs` gives, ratio (B,) -> keep decisions (B, N)."""
        embeds = self.token_embeddings(tokens)
        positions, types = positions.to(embeds.device), types.to(embeds.device)
        if noise is not None:
            noise = noise.to(embeds.device)
        out: MaskOutput = self.mask_generator(
            embeds, positions, types, alpha, invert_reference=invert_reference, noise=noise
        )
        return out

    def reference_embedding(self, tokens: Tensor, types: Tensor, keep: Tensor) -> Tensor:
        """The mask generator's row (B, N) and its keep decisions (B, N) -> the embedding at `<emb>` (B, C).

        Differentiable in `keep`.
        """
        tokens, types = tokens.to(keep.device), types.to(keep.device)
        codes = tokens - self.config.ids.code_offset
        asked = (types == REFERENCE) & (codes >= 0)
        places = (asked.cumsum(dim=1) - 1).clamp(0, self.config.decoder.max_tokens - 1)
        prompt_embeds = self.code_decoder.decode_kept(codes.clamp(min=0), keep * asked.to(keep.dtype), places)
        out: Tensor = self.adapter(prompt_embeds.mean(dim=1))
        return out

    def input_embeddings(self, batch: TrainingBatch, keep: Tensor, reference: Tensor) -> Tensor:
        """keep (B, N), reference (B, C) -> LLaMA's inputs (B, T, C).

        Masked history is zero vectors, the reference stands at its place.
        """
        embeds = self.token_embeddings(batch.tokens)
        tokens, mask_column = batch.tokens.to(embeds.device), batch.mask_column.to(embeds.device)
        gathered = keep.to(embeds.dtype).gather(1, mask_column.clamp(min=0))
        factor = torch.where(mask_column >= 0, gathered, torch.ones_like(gathered))
        place = (tokens == EMBEDDING)[..., None].to(embeds.dtype)
        return embeds * factor[..., None] + place * reference.to(embeds.dtype)[:, None]

    def lora(self) -> LoraMatrices:
        """The active adapter as plain tensors."""
        language = self.config.language
        state = get_peft_model_state_dict(self.llama)
        return LoraMatrices.from_state(state, language.depth, language.lora_alpha / language.lora_rank)

    def step(self) -> LlamaStep:
        """The language model without its adapter, as generation and export use it; shares the weights."""
        base = self.llama.get_base_model()
        assert isinstance(base, LlamaForCausalLM)  # noqa: S101 -- __init__ took nothing else; for the type checker
        return LlamaStep(base)

    def generate(
        self,
        prompt: PromptBatch,
        references: Tensor,
        streams: Sequence[Sequence[tuple[int, int]]],
        temperature: float | None = None,
    ) -> list[list[list[int]]]:
        """Samples answers for each task and each of its variants, as `sample` does.

        temperature: in the place of the checkpoint's. Returns codes 0..K-1, [task][variant].
        """
        sampling = self.config.generation
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        sampler = self.sample(prompt, references, streams, sampling)
        variants = references.shape[1]
        rows = [answer_codes(row, self.config.ids.code_offset, self.config.decoder.max_tokens) for row in sampler.rows]
        return [rows[start : start + variants] for start in range(0, len(rows), variants)]

    @torch.no_grad()
    def sample(
        self,
        prompt: PromptBatch,
        references: Tensor,
        streams: Sequence[Sequence[tuple[int, int]]],
        sampling: GenerationConfig,
        temperatures: Sequence[float] | None = None,
    ) -> AnswerSampler:
        """Runs the language model until every answer has ended.

        Returns the sampler, which holds them row by row.

        prompt: B assembled rows without answers, history already masked; references (B, A, C): an embedding per variant;
        streams: per task and variant (seed, variant); temperatures: per row, B * A. The part of the prompt before
        `<emb>` is computed once per task. Leaves the module in evaluation mode.
        """
        self.eval()
        variants = references.shape[1]
        step = self.step().eval()
        cut = prompt.embedding_column
        embeds = self.token_embeddings(torch.from_numpy(prompt.tokens))
        attention = torch.from_numpy(prompt.attention).to(embeds.device)
        adapter = self.lora()
        lora_a, lora_b = adapter.a.to(embeds), adapter.b.to(embeds)
        cache = step.empty_cache(len(embeds))
        nothing = attention[:, :0]
        _, keys, values = step(embeds[:, :cut], attention[:, :cut], nothing, cache, cache, lora_a, lora_b)

        keys, values = (cache.repeat_interleave(variants, dim=1) for cache in (keys, values))
        past, current = (part.repeat_interleave(variants, dim=0) for part in (attention[:, :cut], attention[:, cut:]))
        tail = embeds[:, cut:].repeat_interleave(variants, dim=0)
        tail[:, 0] = references.flatten(0, 1).to(tail)
        ids, rows = self.config.ids, [stream for row in streams for stream in row]
        sampler = AnswerSampler(sampling, rows, ids.image_end, ids.vocab_size, temperatures)
        while True:
            logits, keys, values = step(tail, current, past, keys, values, lora_a, lora_b)
            drawn = sampler.step(logits.float().cpu().numpy())
            if sampler.done:
                return sampler
            past = torch.cat([past, current], dim=1)
            current = torch.ones_like(past[:, :1])
            tail = self.token_embeddings(torch.from_numpy(drawn)[:, None])


def with_lora(llama: LlamaForCausalLM, config: PigeonConfig) -> PeftModel:
    """The language model behind a fresh LoRA (which changes nothing yet)."""
    language = config.language
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property under its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(
            llama,
            LoraConfig(
                r=language.lora_rank,
                lora_alpha=language.lora_alpha,
                lora_dropout=language.lora_dropout,
                target_modules=list(language.lora_targets),
                task_type="CAUSAL_LM",
            ),
        )


def new_llama(config: PigeonConfig) -> LlamaForCausalLM:
    """A LLaMA of the configured size with random weights."""
    language = config.language
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.ids.vocab_size,
            hidden_size=language.width,
            intermediate_size=language.mlp_width,
            num_hidden_layers=language.depth,
            num_attention_heads=language.heads,
            num_key_value_heads=language.heads,
            max_position_embeddings=language.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
            rms_norm_eps=language.rms_eps,
            tie_word_embeddings=language.tie_embeddings,
            pad_token_id=config.ids.pad_id,
            bos_token_id=config.ids.bos_id,
            eos_token_id=config.ids.image_end,
        )
    )
