"""LLaMA around its masks and conditions: against transformers and PEFT, and batch against single."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from generator.pigeon.decoder import CodeDecoder, HighresVQDecoder
from generator.pigeon.personalizer import Personalizer, TrainingBatch, new_llama
from generator.pigeon.presets import tiny
from generator.pigeon.prompt import EMBEDDING, IGNORED_LABEL, assemble, mask_history, mask_inputs
from generator.training.logprobs import Answers, answer_logprobs, label_logprobs
from generator.training.reconstruction import masked_logprobs

torch.set_num_threads(1)
CONFIG = tiny()
IDS = CONFIG.ids
HISTORY = [[[1, 2, 3], [4, 5]], [[9], [8, 7, 6, 5]], [[0, 31], []]]
REFERENCE = [[1, 2, 3, 4, 5, 6], [7, 8], []]
ANSWER = [[3, 4, 5], [6], [1, 2]]
LINE = [12, IDS.image_start]


@pytest.fixture(scope="module")
def personalizer() -> Personalizer:
    torch.manual_seed(0)
    decoder = HighresVQDecoder(CONFIG.decoder, CONFIG.tokenizer.code_dim)
    codebook = torch.randn(CONFIG.tokenizer.codebook_size, CONFIG.tokenizer.code_dim)
    module = Personalizer(CONFIG, new_llama(CONFIG), CodeDecoder(decoder, codebook))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
            elif parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return module.eval()


def text(row: int) -> list[int]:
    return [1, *([5] * row), *LINE, *LINE, 9, *([6] * row), IDS.image_end, 3, IDS.image_start]


def training_batch() -> TrainingBatch:
    images = [[IDS.image(codes) for codes in history] for history in HISTORY]
    prompt = assemble([text(r) for r in range(3)], images, IDS, answers=[IDS.image(a) for a in ANSWER])
    return TrainingBatch.from_arrays(prompt, mask_inputs(HISTORY, REFERENCE, IDS))


def transformers_logits(personalizer: Personalizer, embeds: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """(B, T, C), (B, T) padded in front -> (B, T, V)."""
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    logits: torch.Tensor = personalizer.llama(
        inputs_embeds=embeds, attention_mask=attention, position_ids=positions
    ).logits
    return logits


def inputs(personalizer: Personalizer, batch: TrainingBatch, *alphas: float) -> Answers:
    """LLaMA's inputs behind stage 1's masks, without noise; a ratio per row."""
    mask = personalizer.masks(
        batch.mask_tokens, batch.mask_positions, batch.mask_types, torch.tensor(alphas), invert_reference=True
    )
    reference = personalizer.reference_embedding(batch.mask_tokens, batch.mask_types, mask.keep)
    return Answers(personalizer.input_embeddings(batch, mask.keep, reference), batch.labels, batch.attention)


def test_step_agrees_with_transformers_and_peft(personalizer: Personalizer) -> None:
    torch.manual_seed(1)
    embeds = torch.randn(3, 10, CONFIG.language.width)
    attention = torch.ones(3, 10, dtype=torch.int64)
    attention[0, :4] = 0
    attention[1, :1] = 0
    lora, step = personalizer.lora(), personalizer.step()
    expected = transformers_logits(personalizer, embeds, attention)
    keys = values = step.empty_cache(3)
    cuts = [0, 5, 6, 8, 10]
    for start, stop in pairwise(cuts):
        logits, keys, values = step(
            embeds[:, start:stop], attention[:, start:stop], attention[:, :start], keys, values, lora.a, lora.b
        )
        torch.testing.assert_close(logits, expected[:, stop - 1], rtol=1e-4, atol=1e-5)
    with torch.no_grad(), personalizer.llama.disable_adapter():
        without = transformers_logits(personalizer, embeds, attention)
    assert (without - expected).abs().max() > 1e-2


def test_masked_tokens_are_zero_vectors_and_the_reference_is_in_its_place(personalizer: Personalizer) -> None:
    batch = training_batch()
    mask = personalizer.masks(batch.mask_tokens, batch.mask_positions, batch.mask_types, 0.5)
    reference = torch.randn(3, CONFIG.language.width)
    ours = personalizer.input_embeddings(batch, mask.keep, reference)
    images = [mask_history(h, k, IDS) for h, k in zip(HISTORY, mask.keep.detach().numpy(), strict=True)]
    masked = assemble([text(r) for r in range(3)], images, IDS, answers=[IDS.image(a) for a in ANSWER])
    assert (masked.tokens == -1).any()
    expected = personalizer.token_embeddings(torch.from_numpy(masked.tokens))
    expected[torch.from_numpy(masked.tokens == EMBEDDING)] = reference
    torch.testing.assert_close(ours, expected)


def test_gradients_reach_what_stage_one_trains_and_nothing_else(personalizer: Personalizer) -> None:
    personalizer.zero_grad()
    alphas = torch.tensor([0.1, 0.5, 0.9])
    batch = training_batch()
    logprobs = masked_logprobs(personalizer, batch, (alphas, torch.zeros(batch.mask_types.shape)))
    assert len(logprobs) == sum(len(answer) + 1 for answer in ANSWER)
    (-logprobs.mean()).backward()
    for name, parameter in personalizer.named_parameters():
        trained = "lora_" in name or name.startswith(("mask_generator.", "adapter."))
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == trained, name
    torch.testing.assert_close(label_logprobs(personalizer, inputs(personalizer, batch, 0.1, 0.5, 0.9)), logprobs)


def test_an_answers_log_probability_is_the_full_softmaxs(personalizer: Personalizer) -> None:
    answers = inputs(personalizer, training_batch(), 0.1, 0.5, 0.9)
    assert answers.attention is not None
    whole = transformers_logits(personalizer, answers.embeds, answers.attention).double().log_softmax(dim=-1)
    expected = torch.zeros(3, dtype=torch.float64)
    for row, labels in enumerate(answers.labels.tolist()):
        for place, label in enumerate(labels):
            if label != IGNORED_LABEL:
                expected[row] += whole[row, place - 1, label].detach()
    found = answer_logprobs(personalizer, answers).detach()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    # The same rows padded behind instead of in front, as packed ones are.
    length = answers.labels.shape[1]
    for row in range(3):
        first = length - int(answers.attention[row].sum())
        behind = Answers(*(value[row : row + 1].roll(-first, dims=1) for value in (answers.embeds, answers.labels)))
        torch.testing.assert_close(answer_logprobs(personalizer, behind)[0].detach(), found[row], rtol=1e-4, atol=1e-4)


def test_a_row_of_a_batch_equals_the_row_alone(personalizer: Personalizer) -> None:
    together = answer_logprobs(personalizer, inputs(personalizer, training_batch(), 0.5, 0.5, 0.5))
    for row in range(3):
        images = [[IDS.image(codes) for codes in HISTORY[row]]]
        prompt = assemble([text(row)], images, IDS, answers=[IDS.image(ANSWER[row])])
        alone = TrainingBatch.from_arrays(prompt, mask_inputs([HISTORY[row]], [REFERENCE[row]], IDS))
        torch.testing.assert_close(
            answer_logprobs(personalizer, inputs(personalizer, alone, 0.5))[0], together[row], rtol=1e-4, atol=1e-4
        )


def test_generation_shares_the_prefix_and_does_not_mix_rows(personalizer: Personalizer) -> None:
    torch.manual_seed(2)
    references = torch.randn(3, 4, CONFIG.language.width)
    streams = [[(100 + row, variant) for variant in range(4)] for row in range(3)]
    images = [[IDS.image(codes) for codes in history] for history in HISTORY]
    together = personalizer.generate(assemble([text(r) for r in range(3)], images, IDS), references, streams)
    assert len({tuple(answer) for answers in together for answer in answers}) > 6
    for row in range(3):
        for variant in range(4):
            alone = personalizer.generate(
                assemble([text(row)], [images[row]], IDS),
                references[row : row + 1, variant : variant + 1],
                [[streams[row][variant]]],
            )
            assert alone[0][0] == together[row][variant]
    assert all(2 <= len(answer) <= 9 and np.all(np.array(answer) < 32) for answers in together for answer in answers)


def test_grouped_heads_are_refused() -> None:
    llama = new_llama(CONFIG)
    llama.config.num_key_value_heads = 2
    decoder = HighresVQDecoder(CONFIG.decoder, CONFIG.tokenizer.code_dim)
    module = Personalizer(CONFIG, llama, CodeDecoder(decoder, torch.randn(32, 6)))
    with pytest.raises(ValueError, match="grouped key-value heads"):
        module.step()
