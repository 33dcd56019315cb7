"""`pigeon evaluate`: rows whose figures are known by construction.

And the whole command on a small world and a tiny model.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from typer.testing import CliRunner

from generator.cli import build_app
from generator.datasets.fetch import versions_key
from generator.datasets.icons import Concept
from generator.pigeon.checkpoint import save_model
from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.pipeline import Item, PigeonPipeline, Task
from generator.pigeon.presets import tiny
from generator.training.evaluation.extractors import EfficientNet, Own, Pixels
from generator.training.evaluation.gallery import Gallery, art_key
from generator.training.evaluation.measure import Judge, Measured
from generator.training.evaluation.report import markdown
from generator.training.evaluation.rows import drawn, indifferent_masks
from generator.training.evaluation.run import ALL_BASELINES, ALPHAS, Request, check, evaluate
from generator.training.evaluation.samples import Truth
from generator.training.nano.samples import IconSamples, palettes_of
from schemas.errors import InputError, ModelError
from tests.support.flat_samples import SIDE, Flat, flat, wanted

THINGS = (
    *("cat", "dog", "rocket", "tree", "car", "clock", "fish", "horse", "key", "lamp", "boat", "crown", "guitar"),
    *("camera", "owl", "snail", "apple", "bell", "candle", "drum"),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> PigeonModel:
    torch.manual_seed(5)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    return new_model(tiny(), words).eval()


def test_truth_is_found_by_construction(model: PigeonModel, tmp_path: Path) -> None:
    world, pixels = Flat(), Pixels()
    gallery = Gallery(world, tmp_path)
    chosen = [wanted(5, 1, 1), wanted(8, 4, 2)]
    gallery.fill(gallery.missing([pixels], [(1, 1), (4, 2)]), lambda _: None)
    rows = {
        "right": np.stack([flat(5.2, 1.2, 1.1), flat(8, 4, 2)]),
        # Of concept 5 the nearest to 3.3 are 3, 4 and 2: three are nearer. Style 3.2 is 3 and not 1.
        "third, other style": np.stack([flat(3.3, 3.2, 1), flat(8.4, 4, 0.4)]),
        "far": np.stack([flat(19, 1, 1), flat(0.2, 4, 2)]),
    }
    done: list[int] = []
    judge = Judge(world, gallery, [pixels], Own(model))
    measured = judge.measure(chosen, rows, done.append)
    assert done == [2]

    def shares(row: str) -> list[list[float]]:
        names = ("style", "palette", "concept@1", "concept@5", "all@1", "all@5")
        return [measured.values[row][f"pixels.{name}"].tolist() for name in names]

    assert shares("right") == [[1, 1]] * 6
    assert shares("third, other style") == [[0, 1], [1, 0], [0, 1], [1, 1], [0, 1], [1, 1]]
    # 19 is shown by no film: among the first twelve 6..11 are nearer to it than 5, among all 6..19.
    assert shares("far")[2:] == [[0, 0], [0, 0], [0, 0], [0, 0]]
    assert measured.values["right"]["pixels.truth"][1] == pytest.approx(100)
    assert measured.values["right"]["ssim.truth"][1] == pytest.approx(1)
    assert measured.frechet("right")["pixels"] < measured.frechet("far")["pixels"]


def test_likeness_is_a_mean_over_the_history(model: PigeonModel, tmp_path: Path) -> None:
    sample = wanted(5, 1, 1)
    rows = {"first": sample.task.history[0].image[None], "copy": sample.task.reference.image[None]}
    own = Own(model)
    values = Judge(Flat(), Gallery(Flat(), tmp_path), [], own).measure([sample], rows, lambda _: None).values
    vectors = own.encode(np.stack([*(item.image for item in sample.task.history), sample.task.reference.image])).vectors
    cosine = 100 * vectors @ vectors.T
    assert values["first"]["own.history"][0] == pytest.approx((100 + cosine[0, 1]) / 2, abs=1e-3)
    assert values["copy"]["own.reference"][0] == pytest.approx(100, abs=1e-3)
    assert values["first"]["own.reference"][0] == pytest.approx(cosine[0, 2], abs=1e-3)
    words = 100 * vectors @ own.texts(["w4", "w2"]).T
    assert values["copy"]["cs.reference"][0] == pytest.approx(words[2, 0], abs=1e-3)
    assert values["copy"]["cs.history"][0] == pytest.approx(words[2, 1], abs=1e-3)
    halves = 0.5 * values["copy"]["cs.reference"][0] + 0.5 * values["copy"]["own.history"][0]
    assert values["copy"]["score"][0] == pytest.approx(halves)
    assert "own.style" not in values["copy"]  # not asked for, so no gallery was needed


def test_the_best_scored_candidate_is_chosen_per_sample() -> None:
    values = {
        "a": {"score": np.array([3.0, 1.0, 2.0]), "x": np.array([1.0, 2.0, 3.0])},
        "b": {"score": np.array([2.0, 5.0, 2.0]), "x": np.array([10.0, 20.0, 30.0])},
    }
    features = {"pixels": {"a": np.zeros((3, 2), np.float32), "b": np.ones((3, 2), np.float32)}}
    measured = Measured(values, features, {"pixels": np.zeros((3, 2), np.float32)})
    assert measured.choose("best", ["a", "b"]) == [0, 1, 0]
    assert measured.values["best"]["x"].tolist() == [1, 20, 3]
    assert measured.features["pixels"]["best"].tolist() == [[0, 0], [1, 1], [0, 0]]


def test_drawings_are_encoded_once(tmp_path: Path) -> None:
    world, pixels = Flat(), Pixels()
    gallery = Gallery(world, tmp_path)
    done: list[int] = []
    gallery.fill(gallery.missing([pixels], [(0, 1), (3, 2)]), done.append)
    assert sum(done) == 40
    assert gallery.missing([pixels], [(0, 1), (3, 2), (3, 1)]) == {(3, 1): [pixels]}
    slab = gallery.slab(pixels, 3, 2)
    np.testing.assert_array_equal(slab[7], pixels.encode(flat(7, 3, 2)[None]).vectors[0])

    class Repainted(Flat):
        def draw(self, truth: Truth) -> np.ndarray:
            return (0.9 * super().draw(truth)).astype(np.uint8)

    assert art_key(Repainted()) != art_key(world)
    assert Gallery(Repainted(), tmp_path).missing([pixels], [(3, 2)])


def test_efficientnet_sees_likeness() -> None:
    extractor = EfficientNet()
    rows, columns = np.mgrid[:64, :64]
    disc = np.where((rows - 32) ** 2 + (columns - 32) ** 2 < 400, 220, 30).astype(np.uint8)[..., None].repeat(3, 2)
    speck = np.random.default_rng(0).integers(-12, 13, disc.shape)
    stripes = np.where(columns // 8 % 2, 220, 30).astype(np.uint8)[..., None].repeat(3, 2)
    encoded = extractor.encode(np.stack([disc, (disc + speck).astype(np.uint8), stripes]))
    assert encoded.vectors.shape == (3, 1280 + 2 * (16 + 24 + 40 + 112 + 320))
    np.testing.assert_allclose(np.linalg.norm(encoded.vectors, axis=1), 1, rtol=1e-5)
    likeness = encoded.vectors @ encoded.vectors.T
    assert likeness[0, 1] > likeness[0, 2]
    assert extractor.key == EfficientNet().key


def tasks(alphas: tuple[float, ...]) -> list[Task]:
    def item(n: int) -> Item:
        image = np.random.default_rng(n).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return Item(f"w{n} w{n + 1}", image, "w5 w6")

    return [Task([item(row), item(row + 5)], item(20 + row), seed=row, alphas=alphas) for row in range(2)]


def test_rows_draw_what_the_pipeline_draws(model: PigeonModel) -> None:
    pipeline, asked = PigeonPipeline(model), tasks((0.0, 0.5))
    ours = drawn(pipeline, asked)
    theirs = np.stack([[candidate.image for candidate in result.candidates] for result in pipeline(asked)])
    np.testing.assert_array_equal(ours, theirs)


def test_a_history_may_be_dropped_and_masks_may_be_random(model: PigeonModel) -> None:
    pipeline, asked = PigeonPipeline(model), tasks((0.5,))
    history, references = pipeline.encode(asked)
    mutual = pipeline.mask(asked, history, references)[0]
    with indifferent_masks(model):
        random = pipeline.mask(asked, history, references)[0]
    again = pipeline.mask(asked, history, references)[0]
    assert [row.tolist() for row in again] == [row.tolist() for row in mutual]  # the model has its own masks back
    spans = [sum(map(len, row)) for row in history]
    for ours, theirs, span in zip(mutual, random, spans, strict=True):
        assert ours[:span].sum() == theirs[:span].sum()
        assert ours.sum() == theirs.sum()
    alone = [Task([], task.reference, task.seed, task.alphas) for task in asked]
    assert drawn(pipeline, alone).shape == (2, 1, SIDE, SIDE, 3)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with the data of a small world.

    Twenty things, each a blot of its own in each style, and films that name them.
    """
    folder = tmp_path_factory.mktemp("state")
    cache = folder / "cache"
    (cache / f"art-{versions_key()}").mkdir(parents=True)
    (cache / "ml-100k").mkdir()
    rng = np.random.default_rng(0)
    blots = rng.integers(0, 256, (len(THINGS), 6, 8, 8, 4), dtype=np.uint8).repeat(8, axis=2).repeat(8, axis=3)
    concepts = [Concept(name, name, (), "objects", "thing", "x", (name,) * 6) for name in THINGS]
    index = cache / f"icons-{versions_key()}-64.json"
    index.write_text(json.dumps([asdict(concept) for concept in concepts]))
    np.save(index.with_suffix(".npy"), blots)
    films = [f"{n}\tThe {name.title()}\t1977\tDrama" for n, name in enumerate(THINGS, 1)]
    (cache / "ml-100k/ml-100k.item").write_text("\n".join(["id\ttitle\tyear\tclass", *films]) + "\n")
    clicks = [f"1\t{n}\t5\t{n}" for n in range(1, len(THINGS) + 1)]
    (cache / "ml-100k/ml-100k.inter").write_text("\n".join(["user\titem\trating\ttime", *clicks]) + "\n")
    return folder


def test_any_samples_can_be_evaluated(model: PigeonModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "checkpoint")
    request = Request(tmp_path / "checkpoint", 2, extractors=("pixels",), baselines=("truth",), alphas=(0.5,))
    found = evaluate(request, Flat(), tmp_path / "vectors", lambda *_: None)
    assert list(found.rows) == ["pigeon", "pigeon@0.5", "truth"]
    assert found.rows["truth"].estimates["pixels.all@1"].mean == 1.0
    assert (found.concepts, found.looks) == ((12, 20), (6, 3))
    assert Flat.about in markdown(found)


def test_samples_keep_their_promises(state: Path) -> None:
    samples = IconSamples(state / "cache")
    world = samples.world
    assert world.shown.all()
    chosen = samples.choose(9, 3, ALPHAS, held_out=True)
    pairs = [sample.target[:2] for sample in chosen]
    held_out = int((~world.trained).sum())
    assert len(set(pairs)) == min(9, held_out)
    for sample in chosen:
        concept, style, palette = sample.target
        assert not world.trained[concept, style]
        assert sample.reference[0] == concept
        assert sample.reference[1] != style
        assert palette in palettes_of(world, style)
        assert world.trained[tuple(sample.reference[:2])]
        assert world.trained[sample.history[:, 0], sample.history[:, 1]].all()
        assert (sample.history[:, 1] == style).sum() >= 4
        assert (sample.history[:, 2] == palette).all()
        assert concept not in sample.history[:, 0]
        assert len(sample.task.history) == 5
    again = samples.choose(9, 3, ALPHAS, held_out=True)
    assert [s.task.seed for s in again] == [s.task.seed for s in chosen]
    assert [s.target for s in samples.choose(9, 4, ALPHAS, held_out=True)] != [s.target for s in chosen]
    trained = samples.choose(5, 3, ALPHAS, held_out=False)
    assert all(world.trained[sample.target[:2]] for sample in trained)
    assert {palette for style in range(6) for palette in palettes_of(world, style)} == set(
        range(1, len(world.palettes))
    )


def test_the_command(state: Path, model: PigeonModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEON_STATE_DIR", str(state))
    save_model(model, tmp_path / "stage2")
    save_model(model, tmp_path / "stage1")
    output = tmp_path / "out"
    asked = ["evaluate", str(tmp_path / "stage2"), "--compare", str(tmp_path / "stage1"), "--output", str(output)]
    asked += ["--count", "2", "--extractor", "own", "--extractor", "pixels", "--ratio", "0", "--ratio", "0.5"]
    result = CliRunner().invoke(build_app(), asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "Known truth by softened pixels" in result.output
    assert "Seconds per sample: draw " in result.output

    report = json.loads((output / "evaluation.json").read_text())
    grids = ["pigeon", "other", "pigeon@0", "pigeon@0.5", "other@0", "other@0.5"]
    assert list(report["rows"]) == [*grids, *ALL_BASELINES]
    truth = report["rows"]["truth"]["figures"]
    assert truth["pixels.concept@1"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}
    assert truth["own.style"]["mean"] == 1.0
    assert report["rows"]["truth"]["frechet_distance"]["pixels"] == pytest.approx(0, abs=1e-6)
    copied = report["rows"]["reference-copied"]["figures"]
    assert copied["pixels.style"]["mean"] == 0.0
    assert copied["own.reference"]["mean"] == pytest.approx(100, abs=1e-3)
    assert report["chance"]["style"] == pytest.approx(1 / 6)
    # The other checkpoint is the same one, so it draws the same pictures.
    same, masked, dropped = report["differences"]
    assert (same["row"], same["minus"]) == ("pigeon", "other")
    assert {figure["mean"] for figure in same["figures"].values()} == {0.0}
    assert (masked["row"], masked["minus"]) == ("pigeon@0.5", "random-mask")
    assert (dropped["row"], dropped["minus"]) == ("pigeon@0", "no-personalization")

    table = (output / "evaluation.md").read_text()
    assert "**Known truth by own scorer.**" in table
    assert "| the true drawing | 100 ±0 % |" in table
    assert "| chance | 16.7 % | 10.0 % |" in table
    # History; reference, two alphas, best, other, no history, random mask, redrawn, truth: ten groups with gaps between.
    assert (output / "contact-sheet.webp").stat().st_size < 150_000
    with Image.open(output / "contact-sheet.webp") as sheet:
        assert sheet.format == "WEBP"
        assert sheet.size == (14 * 64 + 9 * 6, 14 + 2 * 64)
    assert (output / "alpha.svg").read_text().lstrip().startswith("<?xml")
    with Image.open(output / "alpha.png") as plot:
        assert plot.size[0] > 200

    # Once more: real drawings come from the cache, and figures are the same.
    before = sorted(path.stat().st_mtime_ns for path in (state / "cache/evaluation").rglob("*.npy"))
    CliRunner().invoke(build_app(), [*asked, "--baselines", "none"], catch_exceptions=False)
    assert before == sorted(path.stat().st_mtime_ns for path in (state / "cache/evaluation").rglob("*.npy"))
    second = json.loads((output / "evaluation.json").read_text())
    assert list(second["rows"]) == grids
    for figure, estimate in second["rows"]["pigeon"]["figures"].items():
        assert estimate["mean"] == pytest.approx(report["rows"]["pigeon"]["figures"][figure]["mean"], abs=1e-3), figure


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "count: 0 is too few"),
        ({"alphas": (0.0, 1.5)}, r"ratio: \[0.0, 1.5\] must be"),
        ({"alphas": (0.5, 0.5)}, "names one twice"),
        ({"baselines": ("copied",)}, "baselines: unknown name 'copied'; one of no-personalization"),
        ({"extractors": ("clip",)}, "extractor: unknown name 'clip'; one of own, efficientnet, pixels"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_loaded(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(Request(Path("nowhere"), **fields))


def test_missing_data_and_checkpoints_are_named(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEON_STATE_DIR", str(tmp_path))
    asked = ["evaluate", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(build_app(), asked)
    assert isinstance(result.exception, InputError)
    assert "pigeon train stage text" in str(result.exception)
    monkeypatch.setenv("PIGEON_STATE_DIR", str(state))
    assert isinstance(CliRunner().invoke(build_app(), asked).exception, ModelError)
    (tmp_path / "file").touch()
    blocked = CliRunner().invoke(build_app(), ["evaluate", "--output", str(tmp_path / "file/out")])
    assert isinstance(blocked.exception, InputError)
    assert str(blocked.exception).startswith("output: ")
