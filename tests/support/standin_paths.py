"""Every path that trains, scores or draws, on the CPU and on the stand-in device.

`python -m tests.support.standin_paths FOLDER`

Writes FOLDER/found.json: for each path `equal` (the device's numbers are the CPU's but for rounding), or the first line of what was raised.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from generator.pigeon.checkpoint import load_model
from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import Item, PigeonPipeline, Task
from generator.pigeon.placement import Placement
from generator.training.catalog.aligner import AlignConfig, align
from generator.training.catalog.dataset.build import Build, BuildConfig, FileSource
from generator.training.catalog.dataset.manifest import tokenizer_version
from generator.training.catalog.dataset.reader import Dataset
from generator.training.catalog.evaluation import CatalogRequest, evaluate_catalog
from generator.training.dpo.train import measure_pairs, score_answers, train_dpo
from generator.training.evaluation.run import Request, evaluate
from schemas.fetch import Fetcher
from schemas.settings import Settings
from tests.support import tiny_training
from tests.support.flat_samples import Flat
from tests.support.shop import write_shop
from tests.support.standin_device import NAME, install
from tests.support.standin_stages import STAGES, in_the_small_world
from tests.support.tiny_serving import tiny_checkpoint

Path_ = Callable[[Path, Placement], Any]
PATHS: dict[str, Path_] = {}
ROUNDING = 2e-4
"""Largest difference to the CPU, relative to the largest number where that exceeds 1."""


def path(function: Path_) -> Path_:
    PATHS[function.__name__] = function
    return function


def model_of(folder: Path, placement: Placement) -> PigeonModel:
    return load_model(tiny_checkpoint(folder / "checkpoint"), placement=placement)


def tasks(count: int = 2) -> list[Task]:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, size=(count, 3, 40, 32, 3), dtype=np.uint8)
    return [
        Task([Item("w5", row[0]), Item("w6", row[1])], Item("w7", row[2], "w8"), 11 + number, (0.0, 0.5))
        for number, row in enumerate(images)
    ]


def state_in(folder: Path) -> Any:
    state = torch.load(folder / "state.pt", weights_only=True)
    return [state[name] for name in ("module", "ema", "optimizer", "base", "step")]


@path
def a_night_draws_and_scores(folder: Path, placement: Placement) -> Any:
    drawn = PigeonPipeline(model_of(folder, placement))(tasks())
    return [(c.codes, c.image, c.cs, c.cis_history) for result in drawn for c in result.candidates]


@path
def a_night_answers_and_previews(folder: Path, placement: Placement) -> Any:
    found = PigeonPipeline(model_of(folder, placement)).answer(tasks(1)[0], (0.0, 0.5, 0.5), (0.0, 0.7, 1.1))
    return [(a.codes, a.logprob, a.preview) for a in found.answers], found.history_previews


@path
def stage_1_trains(folder: Path, placement: Placement) -> Any:
    checkpoint = tiny_training.checkpoint(folder / "checkpoint")
    tiny_training.run_reconstruction(checkpoint, folder / "out", part_rows=2, placement=placement)
    return state_in(folder / "out")


@path
def a_stage_1_that_was_stopped_is_resumed(folder: Path, placement: Placement) -> Any:
    checkpoint = tiny_training.checkpoint(folder / "checkpoint")
    for steps in (2, tiny_training.RECONSTRUCTION.steps):
        config = replace(tiny_training.RECONSTRUCTION, steps=steps)
        tiny_training.run_reconstruction(checkpoint, folder / "out", config=config, placement=placement)
    return state_in(folder / "out")


@path
def dpo_trains_and_saves_its_adapter(folder: Path, placement: Placement) -> Any:
    checkpoint = tiny_training.checkpoint(folder / "checkpoint")
    result = train_dpo(checkpoint, None, tiny_training.PAIRS, folder / "out", tiny_training.DPO, placement=placement)
    saved = load_file(result.adapter_dir / "llama" / "adapter_model.safetensors")
    return result.losses, result.margins, result.kl, saved


@path
def dpo_with_activations_computed_again(folder: Path, placement: Placement) -> Any:
    checkpoint = tiny_training.checkpoint(folder / "checkpoint")
    config = replace(tiny_training.DPO, checkpointing=True, part_size=2)
    return train_dpo(checkpoint, None, tiny_training.PAIRS, folder / "out", config, placement=placement).losses


@path
def pairs_and_answers_are_scored(folder: Path, placement: Placement) -> Any:
    checkpoint = tiny_training.checkpoint(folder / "checkpoint")
    pairs = tiny_training.PAIRS
    found = measure_pairs(checkpoint, None, None, pairs, placement=placement)
    answers = [(pair.prompt, pair.seed, pair.alpha, pair.chosen_tokens) for pair in pairs]
    return vars(found), score_answers(checkpoint, None, answers, placement)


@path
def an_evaluation_draws_its_rows_and_encodes(folder: Path, placement: Placement) -> Any:
    request = Request(tiny_checkpoint(folder / "checkpoint"), 2, alphas=(0.0, 0.6), placement=placement)
    found = evaluate(request, Flat(), folder / "kept", lambda *_: None)
    return found.images, [[vars(each) for each in row.estimates.values()] for row in found.rows.values()]


@path
def stage_1_on_a_data_set_trains_and_is_evaluated(folder: Path, placement: Placement) -> Any:
    checkpoint = tiny_training.seeing_checkpoint(folder / "checkpoint")
    config = BuildConfig("tiny", tokenizer_version(checkpoint), image_size=32, history=2, min_windows=10)
    source = FileSource(*write_shop(folder / "shop"), None, ("click",), 2)
    Build(source, config, Fetcher(Settings(), files=True), folder / "work", lambda *_: None).run(folder / "set")
    dataset, cache = Dataset.open(folder / "set"), folder / "cache"
    short = AlignConfig(steps=2, batch_size=4, warmup_steps=1, validate_every=1, validation_windows=4)
    adapter = align(
        dataset, checkpoint, folder / "out", short, cache=cache, progress=lambda *_: None, placement=placement
    ).adapter
    request = CatalogRequest(checkpoint, adapter, 2, ("own", "efficientnet"), alphas=(0.0, 0.6), placement=placement)
    found = evaluate_catalog(request, dataset, cache, lambda *_: None)
    return state_in(folder / "out"), found.images, [vars(one) for one in found.likelihood.rows.values()]


@path
def graphs_are_compared_for_export(folder: Path, placement: Placement) -> Any:
    from generator.serving.agreement import placed_inputs
    from generator.serving.export import networks

    model = model_of(folder, placement)
    with torch.no_grad():
        return [
            network.module(**placed_inputs(network.example(2, torch.Generator().manual_seed(1)), network.module))
            for network in networks(model)
        ], vars(model.personalizer.lora())


@path
def operands_of_two_devices_are_refused(folder: Path, placement: Placement) -> Any:
    """Check the stand-in: if it took mixed operands, the other paths would pass without a `.to(device)`."""
    there = torch.ones(3, device=placement.device())
    for mix in (lambda: there + torch.ones(3), lambda: torch.cat([there, torch.ones(3)]), there.numpy):
        try:
            mix()
        except (RuntimeError, TypeError):
            continue
        if there.device.type != "cpu":
            raise AssertionError("operands of two devices were mixed")


def of_stage(name: str) -> Path_:
    def run(folder: Path, placement: Placement) -> Any:
        STAGES[name](folder, placement)
        return torch.load(folder / "state.pt", weights_only=True)["module"]

    return run


PATHS |= {f"nanos stage {name}": of_stage(name) for name in STAGES}


def numbers(value: Any) -> list[Any]:
    """Everything in it, as what can be compared."""
    leaves = tree_leaves(value)
    return [leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def apart(ours: Any, theirs: Any) -> str:
    """Empty where both are the same but for rounding.

    Attention, for one, is another kernel on another device.
    """
    left, right = numbers(ours), numbers(theirs)
    if len(left) != len(right):
        return f"{len(left)} numbers and {len(right)}"
    for a, b in zip(left, right, strict=True):
        if isinstance(a, str | bytes | bool) or a is None:
            if a != b:
                return f"{a!r} and {b!r}"
            continue
        one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if one.shape != other.shape:
            return f"shapes {one.shape} and {other.shape}"
        differ = float(np.abs(one - other).max() / max(1.0, np.abs(one).max())) if one.size else 0.0
        if not differ <= ROUNDING:  # NaN is no number, not even where both devices give it
            return f"numbers that differ by {differ:.2g}"
    return ""


def main(folder: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    install()
    in_the_small_world()
    found: dict[str, str] = {}
    for name, function in PATHS.items():
        if only and name not in only:
            continue
        try:
            here = function(folder / name / "cpu", Placement())
            there = function(folder / name / NAME, Placement(devices=NAME))
            found[name] = apart(here, there) or "equal"
        except Exception as error:  # noqa: BLE001 -- what it was is what the test shows
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            traceback.print_exc()
    (folder / "found.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
