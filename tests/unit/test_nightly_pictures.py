"""What a picture is known by, and what is wrong with one for everybody."""

from __future__ import annotations

import numpy as np

from generator.nightly.pictures import flaw, picture_key, picture_seed
from generator.serving.api import Picture

UNIT = np.array([1, 0], np.float32)


def test_a_picture_is_known_by_what_draws_it_and_by_its_codes() -> None:
    keys = {picture_key(version, codes) for version in ("a", "b") for codes in ((1, 2), (12,), (2, 1), (1, 2, 3))}
    assert len(keys) == 8
    assert picture_key("a", (1, 2)) == picture_key("a", [np.int64(1), np.int64(2)])
    assert 0 <= picture_seed("a", (1, 2)) < 2**53
    assert picture_seed("a", (1, 2)) != picture_seed("a", (1, 3))
    # Known values: another key would draw every picture again.
    assert picture_key("a", (1, 2)) == "573974218f3175c16dc899cf46da1a99"
    assert picture_seed("a", (1, 2)) == 8148244959257140


def test_blank_and_broken_pictures_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    good = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert flaw(Picture(good, UNIT), 4.0) is None
    assert flaw(Picture(np.full((32, 32, 3), 90, np.uint8), UNIT), 4.0) == "blank"
    for image, embedding in (
        (good.astype(np.float32), UNIT),
        (good[..., 0], UNIT),
        (good[:4], UNIT),
        (good, np.array([np.nan, 1], np.float32)),
    ):
        assert flaw(Picture(image, embedding), 4.0) == "corrupt"
