"""DPO: the loss by hand, an exact resume, an untouched reference, and preferences that are learned."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.checkpoint import save_model
from generator.pigeon.model import new_model
from generator.pigeon.presets import tiny
from generator.training.dpo import DpoConfig, dpo_loss, load_policy, score_pairs, train_dpo
from schemas.errors import InputError
from schemas.preferences import PreferencePair, PromptSnapshot

torch.set_num_threads(1)
QUICK = DpoConfig(learning_rate=3e-2, batch_size=3, epochs=6, warmup_steps=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("checkpoint")
    model = new_model(tiny(), Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3")))
    save_model(model, folder)
    return folder


def pair(number: int, **changes: object) -> PreferencePair:
    fields = {
        "pair_id": f"p{number}",
        "user_id": f"u{number}",
        "item_id": "i",
        "prompt": PromptSnapshot(
            history_titles=("w5", "w6"),
            history_tokens=((1, 2, 3), (4, 5 + number)),
            title="w7",
            description="w8",
            reference_tokens=(7, 8, 9, 10),
        ),
        "alpha": 0.3,
        "seed": number,
        "chosen_poster_id": "a",
        "rejected_poster_id": "b",
        "chosen_tokens": (11, 12, 13),
        "rejected_tokens": (14, 15),
        "source": "feedback",
        "weight": 1.0,
    }
    return PreferencePair.model_validate(fields | changes)


PAIRS = [pair(number) for number in range(5)]


def test_the_loss_by_hand() -> None:
    # Chosen gained 2 nats over the reference, rejected lost 1: margin 0.1 * (2 + 1) = 0.3, loss log(1 + e^-0.3).
    out = dpo_loss(*(torch.tensor([x]) for x in (-8.0, -6.0, -10.0, -5.0)), beta=0.1)
    assert out.losses.item() == pytest.approx(math.log(1 + math.exp(-0.3)))
    assert out.chosen_rewards.item() == pytest.approx(0.2)
    assert out.rejected_rewards.item() == pytest.approx(-0.1)


def test_first_step_is_ln_2_and_preferences_are_learned(checkpoint: Path, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in load_policy(checkpoint, None).personalizer.state_dict().items()}
    seen: list[tuple[int, int]] = []
    result = train_dpo(checkpoint, None, PAIRS, tmp_path, QUICK, lambda done, steps, loss: seen.append((done, steps)))
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert seen == [(step, 12) for step in range(1, 13)]
    assert result.losses[-1] < 0.65
    assert result.margins[-1] > 0.05
    assert result.kl > 0
    scores = score_pairs(checkpoint, result.adapter_dir, None, PAIRS)
    assert scores.accuracy == 1.0
    assert scores.margin > 0.05
    trained = load_policy(checkpoint, result.adapter_dir).personalizer.state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    after = load_policy(checkpoint, None).personalizer.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_stopped_training_resumes_on_the_same_trajectory(checkpoint: Path, tmp_path: Path) -> None:
    whole = train_dpo(checkpoint, None, PAIRS, tmp_path / "whole", QUICK)

    class Killed(Exception):
        pass

    def kill(done: int, steps: int, loss: float) -> None:
        if done == 5:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("generator.training.dpo.SAVE_EVERY_SECONDS", 0.0)
        with pytest.raises(Killed):
            train_dpo(checkpoint, None, PAIRS, tmp_path / "parts", QUICK, kill)
        parts = train_dpo(checkpoint, None, PAIRS, tmp_path / "parts", QUICK)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-7)
    ours, theirs = (load_policy(checkpoint, r.adapter_dir).personalizer.state_dict() for r in (parts, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_an_adapter_against_itself_differs_in_nothing(checkpoint: Path) -> None:
    scores = score_pairs(checkpoint, None, None, PAIRS)
    assert scores.margins == [0.0] * 5
    assert (scores.kl, scores.accuracy) == (0.0, 0.0)


def test_a_pair_scores_the_same_alone_as_among_others(checkpoint: Path, tmp_path: Path) -> None:
    adapter = train_dpo(checkpoint, None, PAIRS, tmp_path, QUICK).adapter_dir
    together = score_pairs(checkpoint, adapter, None, PAIRS).margins
    alone = [score_pairs(checkpoint, adapter, None, [one]).margins[0] for one in PAIRS]
    assert together == pytest.approx(alone, abs=1e-5)


def test_bad_input_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs at least one"):
        train_dpo(checkpoint, None, [], tmp_path)
    with pytest.raises(InputError, match="pair p0: code 99 is not in the codebook of 32"):
        score_pairs(checkpoint, None, None, [pair(0, chosen_tokens=(1, 99))])
    train_dpo(checkpoint, None, PAIRS[:1], tmp_path, DpoConfig(epochs=1))
    with pytest.raises(InputError, match="other pairs or settings"):
        train_dpo(checkpoint, None, PAIRS, tmp_path, DpoConfig(epochs=1))
