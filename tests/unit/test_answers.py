"""Stored answers come back as they were; what is no answer set says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.answers import AnswerSet, StoredAnswer

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ANSWERS = st.builds(
    StoredAnswer,
    codes=st.lists(st.integers(0, 2**32 - 1), max_size=20).map(tuple),
    alpha=FLOATS,
    temperature=FLOATS,
    logprob=FLOATS,
    sampling_logprob=FLOATS,
    preview=st.just(np.array([0.5, -0.25, 1.0], dtype=np.float32)),
    cs=FLOATS,
    cis_history=FLOATS,
    variant=st.integers(-1, 100),
    chosen_with=FLOATS,
)


@given(st.lists(ANSWERS, min_size=1, max_size=10), st.text(max_size=40).filter(lambda t: len(t.encode()) < 256))
def test_what_is_packed_comes_back(answers: list[StoredAnswer], chooser: str):
    whole = AnswerSet(tuple(answers), chooser)
    again = AnswerSet.unpack(whole.pack())
    assert again == whole
    for ours, theirs in zip(whole.answers, again.answers, strict=True):
        assert np.array_equal(ours.preview, theirs.preview)


def test_a_score_that_is_missing_stays_missing():
    answer = StoredAnswer((1, 2), 0.3, 0.0, -1.5, 0.0, np.ones(4, dtype=np.float32))
    (back,) = AnswerSet.unpack(AnswerSet((answer,)).pack()).answers
    assert math.isnan(back.cs)
    assert math.isnan(back.cis_history)


def test_what_is_no_answer_set_is_refused():
    whole = AnswerSet((StoredAnswer((1, 2), 0.3, 0.0, -1.5, 0.0, np.ones(4, dtype=np.float32)),)).pack()
    for damaged in (b"", b"PGA", b"XXXX" + whole[4:], whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="answers: "):
            AnswerSet.unpack(damaged)
    with pytest.raises(ValueError, match="none given"):
        AnswerSet(()).pack()
