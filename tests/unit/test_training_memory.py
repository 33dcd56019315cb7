"""The memory that is computed before loading, against what models really keep and hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generator.pigeon.checkpoint import load_model, weights_needed
from generator.pigeon.config import PigeonConfig
from generator.pigeon.memory import GIB, MemoryNeed, check_memory
from generator.pigeon.model import PigeonModel, new_code_decoder
from generator.pigeon.personalizer import Personalizer, new_llama
from generator.pigeon.placement import Placement, Precision
from generator.pigeon.presets import nano, preset
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from generator.training.dpo.train import train_dpo
from generator.training.logprobs import Answers, answer_logprobs
from generator.training.memory import StepSize, learned, step_needed
from schemas.errors import InputError
from tests.support import tiny_training

torch.set_num_threads(1)


def half_width() -> PigeonConfig:
    """LLaMA as nano's, of other sizes than the ones that the formula was made from."""
    fields = nano().model_dump(mode="json")
    fields["language"] |= {"width": 384, "depth": 3, "heads": 6, "mlp_width": 1024, "lora_dropout": 0.0}
    return PigeonConfig.model_validate(fields)


def kept_by_a_step(config: PigeonConfig, placement: Placement, size: StepSize, checkpointing: bool) -> int:
    """Bytes of all tensors but the weights that one step keeps for its backward pass."""
    llama = new_llama(config).to(placement.dtype)
    personalizer = Personalizer(
        config, llama, new_code_decoder(config, DynamicVisualTokenizer(config.tokenizer))
    ).eval()
    if checkpointing:
        personalizer.recompute_activations()
    embeds = torch.randn(size.rows, size.tokens, config.language.width, dtype=placement.dtype)
    labels = torch.full((size.rows, size.tokens), -100)
    labels[:, -size.labels :] = 5
    weights = {parameter.untyped_storage().data_ptr() for parameter in personalizer.parameters()}
    kept: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    everything: list[torch.Tensor] = []  # so that no address is used twice
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda v: everything.append(v) or keep(v), lambda v: v)
    with hooks, placement.autocast():
        answer_logprobs(personalizer, Answers(embeds, labels, torch.ones(size.rows, size.tokens, dtype=torch.int64)))
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_keeps_what_was_computed(precision: Precision, checkpointing: bool) -> None:
    config, size, placement = half_width(), StepSize(2, 300, 17), Placement(precision)
    found = kept_by_a_step(config, placement, size, checkpointing)
    parts = step_needed(config, placement, size, checkpointing=checkpointing).parts
    # Less the layer that is being computed, and the logits and gradient that no step keeps.
    language = config.language
    width, mlp = (28, 12) if precision == "fp32" else (21, 6)
    layer = 2 * 300 * (width * language.width + mlp * language.mlp_width)
    assert found == pytest.approx(parts["activations"] - layer + parts["vocabulary"] / 3, rel=0.1)


@pytest.mark.parametrize("config", [nano(), half_width()], ids=["nano", "half width"])
def test_what_learns_is_counted_as_it_is(config: PigeonConfig) -> None:
    decoder = new_code_decoder(config, DynamicVisualTokenizer(config.tokenizer))
    personalizer = Personalizer(config, new_llama(config), decoder)
    assert learned(config) == sum(p.numel() for p in personalizer.parameters() if p.requires_grad)


def held(model: PigeonModel) -> int:
    tensors = [t for network in model.networks() for t in (*network.parameters(), *network.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_take_what_was_computed_from_the_files_alone(tmp_path: Path, precision: Precision) -> None:
    folder = tiny_training.checkpoint(tmp_path)
    placement = Placement(precision)
    (need,) = weights_needed(folder, placement=placement).values()
    assert held(load_model(folder, placement=placement)) == pytest.approx(need.total, rel=0.03)


def test_a_7b_with_lora_fits_where_two_copies_would_not() -> None:
    config = preset("lavit-7b")
    need = step_needed(config, Placement("bf16"), StepSize(4, 2048, 257), checkpointing=True)
    assert need.total < 16 * GIB
    assert need.total < step_needed(config, Placement("bf16"), StepSize(4, 2048, 257), checkpointing=False).total


def test_too_little_memory_is_one_line_that_names_the_setting() -> None:
    with pytest.raises(InputError) as raised:
        check_memory(MemoryNeed({"weights": 19 * GIB}), torch.device("cpu"), "set compute.part_rows", free=16 * GIB)
    expected = "device cpu (compute.device): needs 19.00 GiB (weights 19.00), 16.00 GiB are free: set compute.part_rows"
    assert str(raised.value) == expected


def test_nothing_is_loaded_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_training.checkpoint(tmp_path / "checkpoint")
    monkeypatch.setattr("generator.pigeon.memory.free_bytes", lambda _: 1000)
    with pytest.raises(InputError, match=r"compute\.device.*compute\.precision"):
        load_model(folder)
    with pytest.raises(InputError, match=r"compute\.device.*compute\.part_rows"):
        train_dpo(folder, None, tiny_training.PAIRS, tmp_path / "out")
    assert not (tmp_path / "out" / "state.pt").exists()
