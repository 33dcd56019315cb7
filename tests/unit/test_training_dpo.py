"""DPO: the loss by hand, an exact resume, an untouched reference, and preferences that are learned."""

from __future__ import annotations

import hashlib
import math
import resource
import shutil
from collections import defaultdict, namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.checkpoint import load_model, save_model
from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.presets import tiny
from generator.training.dpo import train as dpo
from generator.training.dpo.grid import BETA_FACTORS, FOLDS, RATE_FACTORS, search
from generator.training.dpo.loss import DpoLoss, dpo_loss
from generator.training.dpo.prompts import prepare
from generator.training.dpo.train import DpoConfig, load_policy, measure_pairs, score_answers, train_dpo
from generator.training.logprobs import answer_logprobs
from generator.training.trainer import Trainer, TrainerConfig, TrainingDiverged
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


def test_the_loss_is_trls() -> None:
    """The trainer of TRL is only read for its arithmetic.

    Its model and its accelerator are stand-ins that hold given numbers.
    """
    from trl.trainer.dpo_trainer import DPOTrainer

    torch.manual_seed(3)
    rows, length, beta = 4, 6, 0.3
    tokens = -3 * torch.rand(2 * rows, length)  # of each answer, all chosen ones first
    tokens.requires_grad_(True)
    reference = -9 * torch.rand(2, rows)
    outputs = SimpleNamespace(
        log_probs=tokens, entropy=tokens, mean_logits=tokens, is_top1=torch.zeros_like(tokens, dtype=torch.bool)
    )
    metrics: dict[str, list[float]] = defaultdict(list)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        beta=beta,
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        precompute_ref_logps=True,
        ld_alpha=None,
        aux_loss_enabled=False,
        use_weighting=False,
        _metrics={"eval": metrics},
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.zeros(2 * rows, length + 1, dtype=torch.int64),
        "attention_mask": torch.ones(2 * rows, length + 1),
        "completion_mask": torch.ones(2 * rows, length + 1, dtype=torch.int64),
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    theirs = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    (their_gradient,) = torch.autograd.grad(theirs, tokens)

    chosen, rejected = tokens.sum(dim=1).view(2, rows)
    ours = dpo_loss(chosen, rejected, reference[0], reference[1], beta)
    torch.testing.assert_close(ours.losses.mean(), theirs)
    torch.testing.assert_close(torch.autograd.grad(ours.losses.mean(), tokens)[0], their_gradient)
    assert float(ours.chosen_rewards.mean()) == pytest.approx(metrics["rewards/chosen"][0])
    assert float(ours.rejected_rewards.mean()) == pytest.approx(metrics["rewards/rejected"][0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_the_smoothed_loss_is_its_formula_and_trls_robust_loss_is_made_of_the_same_terms(smoothing: float) -> None:
    """-(1 - e) log sigma(z) - e log sigma(-z) in float64.

    TRL's "robust" subtracts the second term and divides by 1 - 2e.

    Its gradient by z is -(1 - e - sigma(z)): it vanishes where the model believes the preference with 1 - e.
    """
    rng = np.random.default_rng(0)
    chosen, rejected, *reference = (torch.from_numpy(-10 * rng.random(50)) for _ in range(4))
    chosen.requires_grad_(True)
    out = dpo_loss(chosen, rejected, *reference, beta=0.7, label_smoothing=smoothing)
    z = 0.7 * ((chosen - reference[0]) - (rejected - reference[1])).detach().numpy()
    clean, flipped = np.log1p(np.exp(-z)), np.log1p(np.exp(z))
    losses = out.losses.detach().numpy()
    assert np.allclose(losses, (1 - smoothing) * clean + smoothing * flipped, rtol=1e-12)
    robust = ((1 - smoothing) * clean - smoothing * flipped) / (1 - 2 * smoothing)
    assert np.allclose(losses - 2 * smoothing * flipped, (1 - 2 * smoothing) * robust, rtol=1e-9)
    out.losses.sum().backward()
    assert chosen.grad is not None
    assert np.allclose(chosen.grad.numpy(), -0.7 * (1 - smoothing - 1 / (1 + np.exp(-z))), rtol=1e-9)
    at_best = math.log((1 - smoothing) / smoothing) if smoothing else math.inf
    assert (z < at_best).tolist() == (chosen.grad.numpy() < 0).tolist()


def test_the_loss_by_hand() -> None:
    # Chosen gained 2 nats over the reference, rejected lost 1: margin 0.1 * (2 + 1) = 0.3, loss log(1 + e^-0.3).
    out = dpo_loss(*(torch.tensor([x]) for x in (-8.0, -6.0, -10.0, -5.0)), beta=0.1)
    assert out.losses.item() == pytest.approx(math.log(1 + math.exp(-0.3)))
    assert out.chosen_rewards.item() == pytest.approx(0.2)
    assert out.rejected_rewards.item() == pytest.approx(-0.1)


def test_the_loss_is_its_formula_and_its_gradient() -> None:
    """-log sigma(z), z = beta * margin; its derivative by the chosen log-probability is -beta * sigma(-z)."""
    for beta in (0.01, 0.1, 2.0):
        for margin in (-40.0, -3.0, 0.0, 0.5, 25.0):
            chosen = torch.tensor([margin - 7.0], dtype=torch.float64, requires_grad=True)
            rejected = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
            out = dpo_loss(chosen, rejected, torch.tensor([-9.0]), torch.tensor([-3.0]), beta)
            z = beta * margin
            assert out.losses.item() == pytest.approx(math.log1p(math.exp(-z)), rel=1e-9)
            out.losses.sum().backward()
            slope = -beta / (1 + math.exp(z))
            assert chosen.grad.item() == pytest.approx(slope, rel=1e-9)
            assert rejected.grad.item() == pytest.approx(-slope, rel=1e-9)


def test_first_step_is_ln_2_and_preferences_are_learned(checkpoint: Path, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in load_policy(checkpoint, None).personalizer.state_dict().items()}
    seen: list[tuple[int, int]] = []
    result = train_dpo(checkpoint, None, PAIRS, tmp_path, QUICK, lambda done, steps, loss: seen.append((done, steps)))
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert seen == [(step, 12) for step in range(1, 13)]
    assert result.losses[-1] < 0.65
    assert result.margins[-1] > 0.05
    assert result.kl > 0
    scores = measure_pairs(checkpoint, result.adapter_dir, None, PAIRS)
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
        patch.setattr("generator.training.dpo.train.SAVE_EVERY_SECONDS", 0.0)
        with pytest.raises(Killed):
            train_dpo(checkpoint, None, PAIRS, tmp_path / "parts", QUICK, kill)
        parts = train_dpo(checkpoint, None, PAIRS, tmp_path / "parts", QUICK)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-7)
    ours, theirs = (load_policy(checkpoint, r.adapter_dir).personalizer.state_dict() for r in (parts, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_checkpoint_is_loaded_once_and_the_result_is_that_of_separate_models(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []

    def counted(folder: Path, **options: Any) -> PigeonModel:
        loaded.append(folder)
        return load_model(folder, **options)

    monkeypatch.setattr(dpo, "load_model", counted)
    champion = train_dpo(checkpoint, None, PAIRS[:2], tmp_path / "champion", QUICK).adapter_dir
    assert loaded == [checkpoint]
    result = train_dpo(checkpoint, champion, PAIRS, tmp_path / "next", QUICK)
    assert loaded == [checkpoint] * 2
    assert measure_pairs(checkpoint, result.adapter_dir, champion, PAIRS).kl == result.kl
    logprobs = []
    for adapter in (result.adapter_dir, champion):
        model = load_policy(checkpoint, adapter)
        with torch.no_grad():
            logprobs.append(answer_logprobs(model.personalizer, prepare(model, PAIRS)).view(2, -1))
    apart = logprobs[0] - logprobs[1]
    margins = measure_pairs(checkpoint, result.adapter_dir, champion, PAIRS, beta=0.5).margins
    assert margins == pytest.approx((0.5 * (apart[0] - apart[1])).tolist(), abs=1e-5)


def test_displacement_stops_the_training_at_the_same_step_killed_or_not(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen and rejected answers share all but one code, so raising the margin lowers both."""
    alike = [pair(n, chosen_tokens=(11, 12, 13 + n % 2), rejected_tokens=(11, 12, 14 - n % 2)) for n in range(6)]
    long = replace(QUICK, epochs=30, learning_rate=1e-1, beta=0.05)
    free = train_dpo(checkpoint, None, alike, tmp_path / "free", long)
    limit = -min(np.convolve(free.chosen, np.ones(8) / 8, "valid")) / 2
    assert limit > 0.01, "log π(chosen) fell in this training"
    assert not free.displaced
    config = replace(long, max_displacement=limit)
    stopped = train_dpo(checkpoint, None, alike, tmp_path / "stopped", config)
    assert stopped.displaced
    assert 8 <= len(stopped.losses) < len(free.losses)
    assert stopped.losses == free.losses[: len(stopped.losses)]
    assert np.mean(stopped.chosen[-8:]) < -limit
    monkeypatch.setattr(dpo, "SAVE_EVERY_SECONDS", 0.0)

    class Killed(Exception):
        pass

    def kill(done: int, steps: int, loss: float) -> None:
        if done == len(stopped.losses) - 2:
            raise Killed

    with pytest.raises(Killed):
        train_dpo(checkpoint, None, alike, tmp_path / "parts", config, kill)
    parts = train_dpo(checkpoint, None, alike, tmp_path / "parts", config)
    assert len(parts.losses) == len(stopped.losses)
    assert train_dpo(checkpoint, None, alike, tmp_path / "parts", config).losses == parts.losses, "a finished one stays"


def test_answers_score_as_the_pairs_that_they_are_in(checkpoint: Path, tmp_path: Path) -> None:
    trained = train_dpo(checkpoint, None, PAIRS, tmp_path, QUICK)
    rows = [
        (one.prompt, one.seed, one.alpha, codes) for one in PAIRS for codes in (one.chosen_tokens, one.rejected_tokens)
    ]
    after, before = (np.array(score_answers(checkpoint, adapter, rows)) for adapter in (trained.adapter_dir, None))
    gained = (after - before).reshape(-1, 2)
    scores = measure_pairs(checkpoint, trained.adapter_dir, None, PAIRS, beta=1.0)
    assert scores.margins == pytest.approx((gained[:, 0] - gained[:, 1]).tolist(), abs=1e-4)
    assert scores.chosen == pytest.approx(gained[:, 0].tolist(), abs=1e-4)
    assert trained.length == 3


def test_the_grid_is_searched_over_users_and_a_killed_search_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [pair(n) for n in range(8)]
    short = replace(QUICK, epochs=1)
    found = search(checkpoint, None, pairs, tmp_path, short)
    assert len(found) == len(BETA_FACTORS) * len(RATE_FACTORS)
    assert [one.log_loss for one in found] == sorted(one.log_loss for one in found)
    assert found[0].log_loss < math.log(2), "users that were not trained on have the same taste"
    assert len(list(tmp_path.glob("*/losses.json"))) == len(found) * FOLDS

    def never(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("generator.training.dpo.grid.train_dpo", never)
    assert search(checkpoint, None, pairs, tmp_path, short) == found
    assert search(checkpoint, None, pairs[:1], tmp_path / "one", short) == []


def test_an_adapter_against_itself_differs_in_nothing(checkpoint: Path) -> None:
    scores = measure_pairs(checkpoint, None, None, PAIRS)
    assert scores.margins == [0.0] * 5
    assert (scores.kl, scores.accuracy) == (0.0, 0.0)


def test_a_pair_scores_the_same_alone_as_among_others(checkpoint: Path, tmp_path: Path) -> None:
    adapter = train_dpo(checkpoint, None, PAIRS, tmp_path, QUICK).adapter_dir
    together = measure_pairs(checkpoint, adapter, None, PAIRS).margins
    alone = [measure_pairs(checkpoint, adapter, None, [one]).margins[0] for one in PAIRS]
    assert together == pytest.approx(alone, abs=1e-5)


def test_bad_input_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs at least one"):
        train_dpo(checkpoint, None, [], tmp_path)
    with pytest.raises(InputError, match="pair p0: code 99 is not in the codebook of 32"):
        measure_pairs(checkpoint, None, None, [pair(0, chosen_tokens=(1, 99))])
    train_dpo(checkpoint, None, PAIRS[:1], tmp_path, DpoConfig(epochs=1))
    with pytest.raises(InputError, match="other pairs or settings"):
        train_dpo(checkpoint, None, PAIRS, tmp_path, DpoConfig(epochs=1))


def fingerprints(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_reference_is_the_champion_bit_for_bit(checkpoint: Path, tmp_path: Path) -> None:
    champion = train_dpo(checkpoint, None, PAIRS[:2], tmp_path / "champion", QUICK).adapter_dir
    files = fingerprints(checkpoint) | fingerprints(champion)
    with torch.no_grad():
        model = load_policy(checkpoint, champion)
        before = answer_logprobs(model.personalizer, prepare(model, PAIRS))
    assert train_dpo(checkpoint, champion, PAIRS, tmp_path / "next", QUICK).kl > 0
    assert fingerprints(checkpoint) | fingerprints(champion) == files
    with torch.no_grad():
        model = load_policy(checkpoint, champion)
        assert torch.equal(answer_logprobs(model.personalizer, prepare(model, PAIRS)), before)


def test_a_loss_that_is_no_number_stops_with_the_last_good_state(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def poisoned(*arguments: object) -> DpoLoss:
        out = dpo_loss(*arguments)  # type: ignore[arg-type]
        return out if len(steps) < 3 else DpoLoss(out.losses * math.nan, out.chosen_rewards, out.rejected_rewards)

    monkeypatch.setattr(dpo, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(dpo, "dpo_loss", poisoned)
    with pytest.raises(TrainingDiverged, match="step 3: loss nan"):
        train_dpo(checkpoint, None, PAIRS, tmp_path, QUICK, lambda done, of, loss: steps.append(done))
    assert steps == [1, 2, 3]
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 3
    assert all(torch.isfinite(value).all() for name, value in state["module"].items() if name.startswith("lora"))
    assert not (tmp_path / "adapter").exists()


def test_a_disk_without_room_is_named_before_the_first_step(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100))
    steps: list[int] = []
    with pytest.raises(InputError, match=r"0 MB are free, the state of this training needs"):
        train_dpo(checkpoint, None, PAIRS, tmp_path, QUICK, lambda done, of, loss: steps.append(done))
    assert steps == []
    assert not (tmp_path / "state.pt").exists()


def test_a_disk_that_fills_up_leaves_the_last_good_state(tmp_path: Path) -> None:
    line = torch.nn.Linear(200, 200)
    trainer = Trainer(line, lambda step, rng: (line.weight.square().sum(), {}), tmp_path, TrainerConfig(steps=4))
    trainer.save()
    trainer._one_step()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # a file that cannot grow: what a full disk does
    try:
        with pytest.raises(InputError, match=r"step 1 cannot be saved .*; the last good state is kept"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
