"""Our sampler inside an engine's batch, whose requests come, go and change rows.

The answers are those of `AnswerSampler`.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
import pytest
import torch

from generator.pigeon.sampling import AnswerSampler, GenerationConfig, SamplingRule
from generator.serving.engine.answers import UNTOUCHED, AnswerRows
from generator.serving.engine.processor import ANSWER_KEY, logits_processor

END, VOCABULARY = 21, 40
CONFIG = GenerationConfig(
    min_new_tokens=3, max_new_tokens=12, top_k=5, temperature=0.7, suppressed=((0, 21),), taste_positions=((0, 4),)
)
TEMPERATURES = (0.0, 0.7, 1.3, 2.0, 0.01, None)


class Wanted:
    """Answers as the CPU path samples them, each alone, on logits (places, V) of its own."""

    def __init__(self, count: int, seed: int, end: float = 2.0) -> None:
        rng = np.random.default_rng(seed)
        self.logits = rng.normal(size=(count, CONFIG.max_new_tokens, VOCABULARY)).astype(np.float32) * 2
        self.logits[:, :, :21] += 50  # text ids would win if they were not suppressed
        self.logits[:, :, END] += end
        self.streams = [(seed + 2**63, number) for number in range(count)]
        self.temperatures = [TEMPERATURES[number % len(TEMPERATURES)] for number in range(count)]
        self.samplers = [self._sampled(number) for number in range(count)]

    def _sampled(self, number: int) -> AnswerSampler:
        asked = self.temperatures[number]
        sampler = AnswerSampler(CONFIG, [self.streams[number]], END, VOCABULARY, None if asked is None else [asked])
        for row in self.logits[number]:
            if not sampler.done:
                sampler.step(row[None])
        return sampler


@dataclass
class Engine:
    """An engine's batch as vLLM keeps it: filled from the lowest free row, its gaps closed from the end."""

    rows: AnswerRows
    wanted: Wanted
    rng: np.random.Generator
    batch: list[int | None] = field(default_factory=list)
    outputs: dict[int, list[int]] = field(default_factory=dict)

    def change(self, gone: list[int], new: list[int]) -> None:
        """Removed rows are filled by new requests first; what is still free then is closed by the last rows."""
        free = sorted(self.batch.index(number) for number in gone)
        for row in free:
            self.batch[row] = None
        added, moved = [], []
        for number in new:
            row = free.pop(0) if free else len(self.batch)
            if row == len(self.batch):
                self.batch.append(None)
            self.batch[row] = number
            added.append((row, str(number), self.outputs.setdefault(number, [])))
        removed = sorted(free, reverse=True)
        while free:
            while self.batch and self.batch[-1] is None:
                self.batch.pop()
            free = [row for row in free if row < len(self.batch)]
            if free:
                first, row = len(self.batch) - 1, free.pop(0)
                self.batch[row] = self.batch.pop()
                moved.append((first, row, False))
        if len(self.batch) > 1:  # an attention backend may sort the batch
            first, second = self.rng.choice(len(self.batch), 2, replace=False).tolist()
            self.batch[first], self.batch[second] = self.batch[second], self.batch[first]
            moved.append((first, second, True))
        self.rows.update(removed, added, moved)

    def step(self) -> list[int]:
        """Draw for all rows and return which have ended; what a part of a prompt drew is thrown away."""
        numbers = [number for number in self.batch if number is not None]
        logits = np.stack([self.wanted.logits[number, len(self.outputs[number])] for number in numbers])
        partial = self.rng.random(len(numbers)) < 0.2
        logits[partial] += self.rng.normal(size=(int(partial.sum()), VOCABULARY)).astype(np.float32)
        ended = []
        for number, thrown_away, token in zip(numbers, partial, self.rows.draw(logits).tolist(), strict=True):
            if not thrown_away:
                self.outputs[number].append(token)
                if token == END or len(self.outputs[number]) == CONFIG.max_new_tokens:
                    ended.append(number)
        return ended


@pytest.mark.parametrize("seed", range(4))
def test_answers_in_rows_that_come_go_and_move_are_those_of_the_cpu_sampler(seed: int) -> None:
    """Ids and both log-probabilities to the last bit, however often the engine computes a step."""
    wanted = Wanted(40, seed)
    rows = AnswerRows(SamplingRule(CONFIG, END, VOCABULARY))
    engine = Engine(rows, wanted, np.random.default_rng(seed))
    waiting, ended, paused = list(range(40)), [], []
    done: set[int] = set()
    for number, (stream, asked) in enumerate(zip(wanted.streams, wanted.temperatures, strict=True)):
        rows.open(str(number), *stream, asked)
    while waiting or paused or set(engine.outputs) - done:
        going = [number for number in engine.batch if number is not None and number not in ended]
        stopped = [going[0]] if len(going) > 3 and engine.rng.random() < 0.2 else []  # preempted, comes back later
        back, paused = (paused, stopped) if engine.rng.random() < 0.5 else ([], paused + stopped)
        room = max(0, 9 - len(going))
        new, waiting = waiting[:room], waiting[room:]
        engine.change(ended + stopped, back + new)
        ended = engine.step() if engine.batch else []
        done.update(ended)
    assert len({len(engine.outputs[number]) for number in range(40)}) > 3, "answers of several lengths"
    for number, sampler in enumerate(wanted.samplers):
        answer = rows.close(str(number))
        assert answer.drawn == engine.outputs[number]
        assert answer.tokens(END) == sampler.rows[0]
        assert answer.logprob == sampler.logprobs[0]
        assert answer.sampling_logprob == sampler.sampling_logprobs[0]
        assert answer.problem is None


def test_a_uniform_on_a_boundary_falls_where_the_cpu_sampler_lets_it_fall() -> None:
    """Two equally likely ids divide [0, 1) at exactly one half; the half itself belongs to the second."""
    rule = SamplingRule(GenerationConfig(0, 3, 2), 0, 6)
    logits = np.zeros((3, 6), dtype=np.float32)
    logits[:, 3] = logits[:, 5] = 1
    uniforms = np.array([np.nextafter(0.5, 0), 0.5, np.nextafter(1, 0)])
    assert rule.draw(logits, [0, 1, 2], uniforms, [1.0] * 3).ids.tolist() == [3, 5, 5]
    logits[:, [1, 3, 4, 5]] = 1  # three more at the k-th logit: the lower ids are the candidates
    assert rule.draw(logits, [0, 1, 2], uniforms, [1.0] * 3).ids.tolist() == [1, 3, 3]


def test_an_answer_on_logits_that_are_not_finite_ends_alone() -> None:
    wanted = Wanted(3, seed=5, end=-9.0)
    rows = AnswerRows(SamplingRule(CONFIG, END, VOCABULARY))
    engine = Engine(rows, wanted, np.random.default_rng(0))
    for number in range(3):
        rows.open(str(number), *wanted.streams[number], wanted.temperatures[number])
    engine.change([], [0, 1, 2])
    wanted.logits[1, 2, 30] = np.nan
    while engine.batch:
        engine.change(engine.step(), [])
    answers = [rows.close(str(number)) for number in range(3)]
    assert answers[1].problem is not None
    assert "logits of step 2 are not finite" in answers[1].problem
    for number in (0, 2):
        assert answers[number].problem is None
        assert answers[number].tokens(END) == wanted.samplers[number].rows[0]


def test_a_temperature_out_of_range_is_refused_before_the_engine_sees_it() -> None:
    rows = AnswerRows(SamplingRule(CONFIG, END, VOCABULARY))
    with pytest.raises(ValueError, match=r"must each be 0 \(greedy\) or lie in 0.01..100.0"):
        rows.open("a", 1, 0, 0.001)


class MoveDirectionality(Enum):
    """As in vllm.v1.sample.logits_processor."""

    UNIDIRECTIONAL = auto()
    SWAP = auto()


@pytest.fixture
def vllm_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two names of vLLM that the processor imports; vLLM itself runs in `make engine`."""
    names = {"LogitsProcessor": type("LogitsProcessor", (), {}), "MoveDirectionality": MoveDirectionality}
    module = types.ModuleType("vllm.v1.sample.logits_processor")
    vars(module).update(names)
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def request(key: str | None) -> types.SimpleNamespace:
    """vLLM's SamplingParams, as far as the processor reads them."""
    return types.SimpleNamespace(extra_args=None if key is None else {ANSWER_KEY: key})


@pytest.mark.usefixtures("vllm_interface")
def test_the_processor_leaves_vllm_the_drawn_id_alone_and_other_requests_as_they_are() -> None:
    wanted = Wanted(2, seed=7)
    rows = AnswerRows(SamplingRule(CONFIG, END, VOCABULARY))
    processor = logits_processor(rows)(None, torch.device("cpu"), False)
    assert not processor.is_argmax_invariant(), "vLLM would leave it out of greedy sampling"
    for number in range(2):
        rows.open(str(number), *wanted.streams[number], wanted.temperatures[number])
    outputs: list[list[int]] = [[], []]
    added = [(0, request("0"), None, outputs[0]), (1, request(None), None, []), (2, request("1"), None, outputs[1])]
    moved = [(2, 0, MoveDirectionality.SWAP)]
    processor.update_state(types.SimpleNamespace(removed=[], added=added, moved=moved))
    processor.update_state(None)
    theirs = np.linspace(-1, 1, VOCABULARY, dtype=np.float32)
    logits = torch.from_numpy(np.stack([wanted.logits[1, 0], theirs, wanted.logits[0, 0]]))
    left = processor.apply(logits.clone())
    for row, number in ((2, 0), (0, 1)):
        token = (wanted.samplers[number].rows[0] or [END])[0]
        assert left[row].argmax() == token
        assert torch.isneginf(left[row]).sum() == VOCABULARY - 1
    assert torch.equal(left[1], logits[1])
    processor.update_state(
        types.SimpleNamespace(removed=[1], added=[], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)])
    )
    assert rows.draw(np.stack([wanted.logits[1, 0], wanted.logits[0, 0]])).tolist() == [
        int(left[0].argmax()),
        int(left[2].argmax()),
    ]
    processor.update_state(types.SimpleNamespace(removed=[1, 0], added=[], moved=[]))
    assert rows.draw(wanted.logits[:, 0]).tolist() == [UNTOUCHED] * 2
