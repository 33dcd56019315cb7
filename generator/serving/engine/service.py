"""Questions in, answers out: what lies between the socket and vLLM's loop.

Connections put questions from threads of their own; one thread, which alone touches vLLM, takes them, runs its steps and
answers. Questions that are open at the same time are one batch.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from generator.serving.backends.engine_protocol import VERSION, Message
from generator.serving.engine.answers import AnswerRows, SampledAnswer
from generator.serving.engine.weights import BadRequest, EngineWeights, WrongWeights

log = logging.getLogger("pigeon.engine")

IDLE_SECONDS = 0.2


@dataclass(frozen=True)
class Finished:
    """A request that the engine has ended."""

    key: str
    tokens: Sequence[int]
    shared: int
    """Prompt tokens that the engine had computed before, for another answer to the same prompt."""


class Core(Protocol):
    """The engine itself, for one thread."""

    @property
    def name(self) -> str: ...

    @property
    def busy(self) -> bool: ...

    def add(self, key: str, embeds: Tensor, adapter: Path) -> None:
        """Begin a request: embeds (T, C) float32; raises ValueError where it does not fit."""

    def abort(self, keys: Sequence[str]) -> None: ...

    def step(self) -> Sequence[Finished]: ...


@dataclass
class Question:
    """A message that waits for its answer."""

    message: Message
    reply: Message | None = None
    given_up: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    answers: list[SampledAnswer] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    shared: int = 0

    def end(self, reply: Message) -> None:
        self.reply = reply
        self.done.set()


def failure(label: str, reason: object) -> Message:
    """The message that says what went wrong."""
    return Message({"error": label, "reason": str(reason)})


class EngineService:
    """Answers questions in the order in which vLLM ends them."""

    def __init__(self, weights: EngineWeights, core: Core, rows: AnswerRows, adapters: Path) -> None:
        """adapters: an empty folder for adapters as they come in."""
        self._weights = weights
        self._core = core
        self._rows = rows
        self._adapters = adapters
        self.stopped = threading.Event()
        """Set when nothing that is put in will be answered any more."""
        self._new: SimpleQueue[Question] = SimpleQueue()
        self._open: list[Question] = []
        self._count = 0

    def put(self, message: Message) -> Question:
        """Hand in a message from any thread; its `done` is set when there is a reply."""
        question = Question(message)
        self._new.put(question)
        return question

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set.

        An error of the engine itself ends all open questions and is raised: what it would compute after it is not known.
        """
        try:
            while not stop.is_set():
                self.turn(IDLE_SECONDS)
        finally:
            self.stopped.set()
            for question in self._open:
                question.end(failure("failed", "the engine is stopping; try again later"))

    def turn(self, wait_seconds: float) -> None:
        """Take what has come in and run one step; waits for a message while nothing is open."""
        for question in self._arrived(wait_seconds):
            self._begin(question)
        for question in [one for one in self._open if one.given_up]:
            self._give_up(question)
        if self._core.busy:
            for finished in self._core.step():
                self._take(finished)

    def _arrived(self, wait_seconds: float) -> list[Question]:
        found: list[Question] = []
        try:
            if not self._core.busy:
                found.append(self._new.get(timeout=wait_seconds))
            while True:
                found.append(self._new.get_nowait())
        except Empty:
            return found

    def _begin(self, question: Question) -> None:
        fields = question.message.fields
        work = {"hello": self._hello, "adapter": self._adapter, "answer": self._answer}.get(fields.get("op", ""))
        if work is None:
            question.end(failure("rejected", f"op {fields.get('op')!r}: must be hello, adapter or answer"))
            return
        try:
            work(question)
        except (BadRequest, WrongWeights) as error:
            question.end(failure("rejected", error))
        except (KeyError, TypeError, ValueError) as error:
            question.end(failure("rejected", f"question: {type(error).__name__}: {error}"))
        except Exception as error:  # one question must not end the others, whatever it holds
            log.exception("a question failed")
            question.end(failure("failed", f"{type(error).__name__}: {error}"))

    def _hello(self, question: Question) -> None:
        base, version = question.message.fields["base"], question.message.fields["version"]
        if version != VERSION:
            question.end(
                failure("other weights", f"speaks version {VERSION} of the messages, not {version}; build both again")
            )
        elif base != self._weights.base:
            question.end(
                failure(
                    "other weights", f"serves weights {self._weights.base}, not {base}; start it on this repository"
                )
            )
        else:
            question.end(Message({"engine": self._core.name}))

    def _adapter(self, question: Question) -> None:
        folder = self._adapter_folder(question.message.fields["sha256"])
        if not folder.is_dir():
            staging = folder.with_suffix(".new")
            shutil.rmtree(staging, ignore_errors=True)
            self._weights.write_adapter(question.message.fields["sha256"], question.message.tensors, staging)
            staging.rename(folder)
        question.end(Message({}))

    def _adapter_folder(self, sha256: Any) -> Path:
        if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise BadRequest(f"adapter {sha256!r}: must be a SHA-256")
        return self._adapters / sha256

    def _answer(self, question: Question) -> None:
        fields, tensors = question.message.fields, question.message.tensors
        adapter = self._adapter_folder(fields["adapter"])
        if not adapter.is_dir():
            question.end(failure("unknown adapter", fields["adapter"]))
            return
        prompts, variants, seed = tensors["prompt_ids"], tensors["variants"].tolist(), int(fields["seed"])
        asked = tensors["temperatures"].tolist() if "temperatures" in tensors else [None] * len(prompts)
        if not len(prompts) == len(variants) == len(asked):
            raise BadRequest(
                f"{len(prompts)} prompts, {len(variants)} variants, {len(asked)} temperatures: give as many of each"
            )
        if not 0 <= seed < 2**64 or min(variants, default=0) < 0:
            raise BadRequest(f"seed {seed} and variants {variants} must be numbers from 0 to 2**64 - 1")
        embeds = self._weights.prompt_embeddings(prompts, tensors["condition"])
        self._open.append(question)
        try:
            for own, variant, temperature in zip(embeds, variants, asked, strict=True):
                self._count += 1
                key = f"answer-{self._count}"
                question.answers.append(self._rows.open(key, seed, variant, temperature))
                question.waiting.add(key)
                self._core.add(key, own, adapter)
        except Exception as error:
            self._give_up(question)
            if isinstance(error, ValueError):
                raise BadRequest(str(error)) from error
            raise

    def _give_up(self, question: Question) -> None:
        self._open.remove(question)
        self._core.abort(list(question.waiting))
        for key in question.waiting:
            self._rows.close(key)

    def _take(self, finished: Finished) -> None:
        question = next((one for one in self._open if finished.key in one.waiting), None)
        if question is None:
            return
        question.waiting.remove(finished.key)
        question.shared += finished.shared
        answer = self._rows.close(finished.key)
        if answer.problem is None and answer.drawn != list(finished.tokens):
            answer.problem = (
                f"engine: kept {list(finished.tokens)} where {answer.drawn} was drawn; is this its version?"
            )
        if not question.waiting:
            self._open.remove(question)
            question.end(self._reply(question))

    def _reply(self, question: Question) -> Message:
        for answer in question.answers:
            if answer.problem is not None:
                return failure("corrupt", answer.problem)
        rows = [answer.tokens(self._weights.ids.image_end) for answer in question.answers]
        tokens = np.full((len(rows), self._weights.generation.max_new_tokens), -1, dtype=np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
        prompts = question.message.tensors["prompt_ids"]
        return Message(
            {"prefilled": int(prompts.size) - question.shared, "shared": question.shared},
            {
                "tokens": tokens,
                "counts": np.array([len(row) for row in rows], dtype=np.int64),
                "logprobs": np.array([answer.logprob for answer in question.answers]),
                "sampling_logprobs": np.array([answer.sampling_logprob for answer in question.answers]),
            },
        )
