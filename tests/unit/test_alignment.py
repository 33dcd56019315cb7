"""Stage 1 on a data set: exact resume, early stop, what it refuses, and an evaluation of what it made."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from generator.cli import build_app
from generator.pigeon.checkpoint import load_adapter, load_model
from generator.pigeon.model import PigeonModel
from generator.pigeon.personalizer import TrainingBatch
from generator.pigeon.placement import Placement
from generator.pigeon.prompt import assemble, mask_inputs, prompt_text_ids
from generator.training.catalog import aligner, evaluation
from generator.training.catalog.aligner import AlignConfig, Aligned, align
from generator.training.catalog.dataset.build import Build, BuildConfig, FileSource
from generator.training.catalog.dataset.codes import image_codes
from generator.training.catalog.dataset.manifest import tokenizer_version
from generator.training.catalog.dataset.reader import Dataset
from generator.training.catalog.evaluation import CatalogRequest, evaluate_catalog
from generator.training.catalog.held_out import choose, masked_likelihood
from generator.training.catalog.redraw import redraw
from generator.training.catalog.report import as_json, contact_sheet, markdown
from generator.training.catalog.whole import write_checkpoint
from generator.training.reconstruction import train_reconstruction
from generator.training.trainer import Trainer, TrainerConfig, TrainingDiverged
from schemas.errors import InputError
from schemas.fetch import Fetcher
from schemas.settings import Settings
from tests.support import tiny_training
from tests.support.shop import write_lines, write_shop

torch.set_num_threads(1)

CONFIG = AlignConfig(
    steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=1, validate_every=2, validation_windows=8, patience=9
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.seeing_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Dataset:
    folder = tmp_path_factory.mktemp("shop")
    catalog, clicks = write_shop(folder)
    config = BuildConfig("tiny", tokenizer_version(checkpoint), image_size=32, history=2, min_windows=10)
    source = FileSource(catalog, clicks, None, ("click",), 2)
    Build(source, config, Fetcher(Settings(), files=True), folder / "work", lambda *_: None).run(folder / "set")
    return Dataset.open(folder / "set")


def run(dataset: Dataset, checkpoint: Path, out: Path, config: AlignConfig = CONFIG) -> Aligned:
    return align(dataset, checkpoint, out, config, cache=out.parent / "cache", progress=lambda *_: None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "state.pt", weights_only=True)["module"]
    return found


def test_what_was_learned_is_an_adapter_that_lowers_the_validation_loss(
    dataset: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    found = run(dataset, checkpoint, tmp_path / "out", replace(CONFIG, steps=40, validate_every=10))
    assert found.best < found.first - 0.05
    assert not found.stopped
    model = load_model(checkpoint)
    before = {name: value.clone() for name, value in model.personalizer.state_dict().items()}
    load_adapter(model.personalizer, found.adapter)
    changed = {name for name, value in model.personalizer.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"llama", "mask_generator", "adapter"}
    assert all("lora_" in name for name in changed if name.startswith("llama."))
    assert json.loads((found.adapter / "alignment.json").read_text())["dataset"] == dataset.manifest.dataset_id
    assert (tmp_path / "out/curves.svg").exists()


def test_a_killed_training_resumes_on_the_same_trajectory(
    dataset: Dataset, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(dataset, checkpoint, tmp_path / "whole")
    batch, asked = aligner.WindowBatches.batch, [0]

    def dies(self: aligner.WindowBatches, rows: list[int]) -> object:
        if len(rows) == CONFIG.batch_size and self.index.split == "train":
            asked[0] += 1
            if asked[0] == 4:
                raise KeyboardInterrupt
        return batch(self, rows)

    monkeypatch.setattr(aligner.WindowBatches, "batch", dies)
    monkeypatch.setattr(Trainer, "progress", _saving(Trainer.progress))
    with pytest.raises(KeyboardInterrupt):
        run(dataset, checkpoint, tmp_path / "parts")
    monkeypatch.undo()
    assert torch.load(tmp_path / "parts/state.pt", weights_only=True)["step"] == 3
    resumed = run(dataset, checkpoint, tmp_path / "parts")
    assert (resumed.first, resumed.best, resumed.best_step) == (whole.first, whole.best, whole.best_step)
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert (tmp_path / "parts/validation.csv").read_text() == (tmp_path / "whole/validation.csv").read_text()


def _saving(progress: object) -> object:
    """`Trainer.progress`, and a state on disk before each step."""

    def saved(self: Trainer) -> float:
        if self.step:
            self.save()
        return progress(self)  # type: ignore[operator,no-any-return]

    return saved


def test_parts_of_a_batch_change_nothing_but_rounding(dataset: Dataset, checkpoint: Path, tmp_path: Path) -> None:
    run(dataset, checkpoint, tmp_path / "one")
    run(dataset, checkpoint, tmp_path / "parts", replace(CONFIG, part_rows=1, checkpointing=True))
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "one")
    assert all(torch.allclose(value, theirs[name], atol=1e-4) for name, value in ours.items())


def test_it_stops_when_validations_bring_nothing_better(dataset: Dataset, checkpoint: Path, tmp_path: Path) -> None:
    # A rate of 0 learns nothing, so no validation is better than the first.
    found = run(dataset, checkpoint, tmp_path, replace(CONFIG, steps=50, learning_rate=0.0, patience=2))
    assert (found.stopped, found.steps, found.best_step) == (True, 4, 0)
    with (tmp_path / "validation.csv").open(newline="") as file:
        assert [float(row["step"]) for row in csv.DictReader(file)] == [0, 2, 4]


def test_a_training_of_something_else_in_the_folder_is_refused(
    dataset: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    run(dataset, checkpoint, tmp_path, replace(CONFIG, steps=1))
    with pytest.raises(InputError, match="another data set or other settings"):
        run(dataset, checkpoint, tmp_path, replace(CONFIG, steps=1, seed=1))


def test_a_data_set_for_another_tokenizer_is_refused_and_both_are_named(
    dataset: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    other = Dataset(dataset.folder, dataset.manifest.model_copy(update={"tokenizer": "f" * 16}))
    with pytest.raises(
        InputError, match=r"another tokenizer \(tiny, 32 pixels, ffffffff\).*build it with --checkpoint"
    ):
        run(other, checkpoint, tmp_path)


def test_a_loss_that_is_no_number_ends_with_the_last_good_state(
    dataset: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingDiverged, match="last good checkpoint"):
        run(dataset, checkpoint, tmp_path, replace(CONFIG, learning_rate=float("inf"), steps=4))


def test_windows_given_with_their_answers_learn_as_stage_1_on_the_same_prompts(
    dataset: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    splits = [*["train"] * 12, "validation", "test"]
    given = [
        {
            "user_id": f"g{n}",
            "occurred_at": "2026-11-01T00:00:00Z",
            "history": [f"i{k}" for k in rng.permutation(24)[:2]],
            "reference": f"i{n}",
            "target_codes": rng.integers(0, 32, 5).tolist(),
            "split": split,
        }
        for n, split in enumerate(splits)
    ]
    manifest = dataset.manifest
    shop = write_shop(tmp_path / "shop")[0]
    source = FileSource(shop, None, write_lines(tmp_path / "windows.jsonl", given), ("click",), 2)  # type: ignore[arg-type]
    config = BuildConfig("tiny", manifest.tokenizer, image_size=32, history=2, min_windows=1)
    Build(source, config, Fetcher(Settings(), files=True), tmp_path / "work", lambda *_: None).run(tmp_path / "set")
    ours = Dataset.open(tmp_path / "set")
    run(ours, checkpoint, tmp_path / "ours", replace(CONFIG, steps=3, shuffle=False))

    model = load_model(checkpoint)
    ids, wording = model.config.ids, model.config.wording
    codes = {
        item.item_id: image_codes(ours, model, tmp_path / "codes", lambda *_: None)[item.image] for item in ours.items
    }

    def batches(step: int, _: np.random.Generator) -> TrainingBatch:
        rows = given[4 * step : 4 * step + 4]
        titles = [[f"Thing {i[1:]}" for i in row["history"]] for row in rows]  # type: ignore[index]
        texts = [
            prompt_text_ids(wording, past, f"Thing {str(row['reference'])[1:]}", "", model.encode_text, ids)
            for past, row in zip(titles, rows, strict=True)
        ]
        past = [[codes[i] for i in row["history"]] for row in rows]  # type: ignore[index]
        prompt = assemble(
            texts,
            [[ids.image(c) for c in one] for one in past],
            ids,
            answers=[ids.image(row["target_codes"]) for row in rows],  # type: ignore[arg-type]
        )
        return TrainingBatch.from_arrays(prompt, mask_inputs(past, [codes[str(row["reference"])] for row in rows], ids))

    settings = json.loads((tmp_path / "ours/trainer.json").read_text())
    settings["betas"] = tuple(settings["betas"])
    train_reconstruction(tmp_path / "theirs", model.personalizer, batches, TrainerConfig(**settings))
    ours_state, theirs = weights(tmp_path / "ours"), weights(tmp_path / "theirs")
    assert all(torch.equal(value, theirs[name]) for name, value in ours_state.items())


def test_each_window_comes_once_an_epoch(dataset: Dataset, checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    codes = image_codes(dataset, model, tmp_path, lambda *_: None)
    batches = aligner.WindowBatches(dataset, "validation", model, codes, tmp_path)
    total = len(batches)
    numbers = [number for step in range(total) for number in batches.order(step, 2, seed=0, shuffle=True)]
    assert sorted(numbers[:total]) == sorted(numbers[total:]) == list(range(total))
    assert numbers[:total] != numbers[total:]
    assert [batches.order(0, 3, 0, shuffle=False), batches.order(1, 3, 0, shuffle=False)] == [[0, 1, 2], [3, 4, 5]]


def test_codes_are_computed_once_for_each_picture(
    dataset: Dataset, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(checkpoint)
    first = image_codes(dataset, model, tmp_path, lambda *_: None)
    monkeypatch.setattr(type(model.tokenizer), "encode", None)
    assert image_codes(dataset, model, tmp_path, lambda *_: None) == first
    assert len(first) == dataset.manifest.counts["images"]


def test_an_evaluation_has_every_row_and_says_what_was_not_run(
    dataset: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    adapter = run(dataset, checkpoint, tmp_path / "out").adapter
    request = CatalogRequest(checkpoint, adapter, count=3, extractors=("own", "pixels"), alphas=(0.0, 0.5))
    found = evaluate_catalog(request, dataset, tmp_path / "cache", lambda *_: None)
    assert list(found.rows) == [
        *("pigeon@0", "pigeon@0.5", "unaligned@0", "unaligned@0.5"),
        *("reference-copied", "random-history", "no-personalization", "random-mask", "redrawn"),
    ]
    copied = found.rows["reference-copied"]
    assert copied.estimates["pixels.reference"].mean == pytest.approx(100, abs=1e-3)
    assert copied.frechet["pixels"] == pytest.approx(0, abs=1e-3)
    assert set(found.differences) == {"pigeon@0", "pigeon@0.5"}
    assert set(found.likelihood.differences) == {
        *("own history − another user's", "aligned − not aligned", "own − another's, not aligned"),
    }
    text = markdown(found)
    assert "Not run: LPIPS" in text
    assert as_json(found)["users"] == 3
    contact_sheet(found, tmp_path / "sheet.webp")
    assert (tmp_path / "sheet.webp").stat().st_size > 500


def test_an_evaluation_loads_its_models_where_it_is_placed(
    dataset: Dataset, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, placement = run(dataset, checkpoint, tmp_path / "out").adapter, Placement("bf16")
    loaded: list[Any] = []

    def load(folder: Path, **options: Any) -> PigeonModel:
        loaded.append(options.get("placement"))
        return load_model(folder, **options)

    monkeypatch.setattr(evaluation, "load_model", load)
    request = CatalogRequest(
        checkpoint, adapter, 2, ("pixels",), baselines=("random-mask", "redrawn"), alphas=(0.5,), placement=placement
    )
    found = evaluate_catalog(request, dataset, tmp_path / "cache", lambda *_: None)
    assert loaded == [placement, placement]
    assert all(np.isfinite(one.mean) for one in found.likelihood.rows.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extractors": ("clip",)}, "extractor: unknown name 'clip'; one of own, efficientnet, pixels"),
        ({"baselines": ("truth",)}, "baselines: unknown name 'truth'; one of reference-copied"),
        ({"alphas": (0.5, 0.5)}, "ratio: .* names one twice"),
        ({"count": 1}, "count: 1 is too few"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_anything_is_loaded(
    dataset: Dataset, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        evaluate_catalog(CatalogRequest(tmp_path / "nowhere", **change), dataset, tmp_path, lambda *_: None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int4"], "compute.precision"),
        (["--device", "abacus"], "compute.device"),
        (["--compare", "."], "do not go with --dataset"),
        (["--trained"], "do not go with --dataset"),
    ],
)
def test_options_of_an_evaluation_on_a_data_set_count_or_are_refused(
    dataset: Dataset, checkpoint: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    asked = ["evaluate", str(checkpoint), "--dataset", str(dataset.folder), "--output", str(tmp_path), *options]
    result = CliRunner().invoke(build_app(), asked)
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_the_likelihood_is_of_the_masked_codes_and_does_not_depend_on_the_batch(
    dataset: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    model = load_model(checkpoint)
    codes = image_codes(dataset, model, tmp_path, lambda *_: None)
    chosen = choose(dataset, 4, 7, (0.0,))
    own = masked_likelihood(model, dataset, codes, chosen, shift=0, seed=5)
    assert np.array_equal(own, masked_likelihood(model, dataset, codes, chosen, shift=0, seed=5))
    other = masked_likelihood(model, dataset, codes, chosen, shift=1, seed=5)
    assert own.shape == (4,)
    assert (own < 0).all()
    assert not np.array_equal(own, other)


def test_redrawn_pictures_are_compared_with_their_originals(dataset: Dataset, checkpoint: Path) -> None:
    found = redraw(dataset.folder, load_model(checkpoint), count=9)
    assert found.images == 9
    assert 0 <= found.recognised <= 1
    assert -1 <= found.ssim <= 1
    assert (dataset.folder / "redrawn.webp").stat().st_size > 500


def test_a_whole_checkpoint_with_the_adapter_loads_and_has_it(
    dataset: Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    adapter = run(dataset, checkpoint, tmp_path / "out").adapter
    write_checkpoint(checkpoint, adapter, tmp_path / "whole")
    ours, theirs = load_model(tmp_path / "whole").personalizer, load_model(checkpoint).personalizer
    load_adapter(theirs, adapter)
    state = theirs.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    with pytest.raises(InputError, match="is there already"):
        write_checkpoint(checkpoint, adapter, tmp_path / "whole")
