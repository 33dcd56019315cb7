"""`python -m tests.engine`: nano's answers on vLLM and on ONNX Runtime, counted.

Exits with 1 where they differ and no rounding explains it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.local.engine_env import engine_environment, open_engine_environment
from generator.pigeon.checkpoint import load_model
from generator.pigeon.sampling import AnswerSampler, SamplingRule
from generator.serving.backends.engine_client import EngineClient, EngineUnavailable
from generator.serving.backends.engine_protocol import Message
from generator.serving.backends.generation import AnswerGenerator, shared_prefix
from generator.serving.backends.graph import Graph
from generator.serving.backends.task import TaskConfig
from generator.serving.build import build_repository
from generator.serving.engine_folder import FOLDER
from generator.serving.repository import default_checkpoint
from generator.serving.tensor_hash import content_hash
from schemas.settings import load_settings
from tests.engine.compare import Agreement, parted
from tests.engine.process import RunningEngine, running_engine
from tests.engine.tasks import ALPHAS, TEMPERATURES, PersonalizerTask, nano_tasks
from tests.support.served_networks import ServedNetworks
from tests.support.standin_engine import engine_build

BLOCK = 32
TOGETHER = 4
"""Tasks that are asked at the same time."""
OTHER_ADAPTER = 1.25
"""Factor of the second adapter's matrices."""


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 -- a command prints


@dataclass(frozen=True)
class Ours:
    """The CPU path: the exported step graph with one adapter."""

    step: Graph
    rule: SamplingRule
    lora: dict[str, NDArray[np.float32]]
    max_positions: int

    def answers(self, task: PersonalizerTask) -> AnswerSampler:
        generator = AnswerGenerator(self.step, self.lora, self.rule.config, self.rule.end_id, self.max_positions)
        return generator.generate(task.prompts, task.condition, task.streams, temperatures=TEMPERATURES)

    def logits(self, task: PersonalizerTask, row: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits (V,) behind some tokens of an answer."""
        ids = np.concatenate([task.prompts[row], np.array(tokens, dtype=np.int64)])[None]
        layers, _, heads, _, width = self.step.inputs["past_key"][1]
        empty = np.zeros((layers, 1, heads, 0, width), dtype=np.float32)
        feeds = {"input_ids": ids, "condition": task.condition[row : row + 1], "past_key": empty, "past_value": empty}
        logits: NDArray[np.float32] = self.step({**feeds, **self.lora})["logits"][0]
        return logits


def compared(ours: Ours, tasks: Sequence[PersonalizerTask], replies: Sequence[Message]) -> Agreement:
    """Every answer of both paths."""
    found = Agreement()
    for number, (task, reply) in enumerate(zip(tasks, replies, strict=True)):
        sampler = ours.answers(task)
        for row, stream in enumerate(task.streams):
            tokens = reply.tensors["tokens"][row][: reply.tensors["counts"][row]].tolist()
            why = parted(
                ours.rule,
                sampler.rows[row],
                tokens,
                stream,
                TEMPERATURES[row],
                partial(ours.logits, task, row),
            )
            found.answers[why] += 1
            if why == "unexplained":
                found.unexplained.append(f"task {number}, answer {row}: {sampler.rows[row]} here, {tokens} there")
            if why == "equal":
                apart = np.abs(reply.tensors["logprobs"][row] - sampler.logprobs[row])
                found.logprob = max(found.logprob, float(apart))
                apart = np.abs(reply.tensors["sampling_logprobs"][row] - sampler.sampling_logprobs[row])
                found.sampling_logprob = max(found.sampling_logprob, float(apart))
    return found


def prefill(tasks: Sequence[PersonalizerTask], replies: Sequence[Message]) -> str:
    """Prompt tokens that were computed, and what one prefill up to the reference's place costs."""
    asked = sum(task.prompts.size for task in tasks)
    done = sum(int(reply.fields["prefilled"]) for reply in replies)
    count = len(ALPHAS)
    lengths = [(task.prompts.shape[1], shared_prefix(task.prompts)) for task in tasks]
    blocks = sum(length + (count - 1) * (length - prefix // BLOCK * BLOCK) for length, prefix in lengths)
    best = sum(prefix + count * (length - prefix) for length, prefix in lengths)
    return (
        f"{done} of {asked} prompt tokens computed for {count} answers a task; one prefill up to the reference and {count} "
        f"rests is {best}, with whole blocks of {BLOCK} {blocks}"
    )


def ask_all(
    engine: RunningEngine, base: str, lora: dict[str, NDArray[np.float32]], tasks: Sequence[PersonalizerTask]
) -> list[Message]:
    """The tasks' answers, several tasks at the same time, a connection each."""

    def ask(task: PersonalizerTask) -> Message:
        client = EngineClient(engine.socket, base, content_hash(lora), lora)
        try:
            return client.answer(task.seed, task.tensors())
        finally:
            client.close()

    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(ask, tasks))


def ask_each(
    engine: RunningEngine, base: str, lora: dict[str, NDArray[np.float32]], tasks: Sequence[PersonalizerTask]
) -> list[Message]:
    """The tasks' answers, one task after the other."""
    client = EngineClient(engine.socket, base, content_hash(lora), lora)
    replies = [client.answer(task.seed, task.tensors()) for task in tasks]
    client.close()
    return replies


def refused(engine: RunningEngine, lora: dict[str, NDArray[np.float32]]) -> str:
    """What an engine says to a model of other weights.

    Raises:
        SystemExit: it answers.
    """
    try:
        EngineClient(engine.socket, "0123456789abcdef", content_hash(lora), lora).check()
    except EngineUnavailable as error:
        return str(error).rpartition(": ")[2]
    raise SystemExit("the engine answered a model of other weights")


@dataclass(frozen=True)
class Prepared:
    """Both paths on the same tasks, each with the checkpoint's adapter and with another."""

    tasks: list[PersonalizerTask]
    ours: Ours
    others: Ours
    folder: Path
    """The engine's."""
    base: str


def prepare(cache: Path, count: int) -> Prepared:
    """Build nano's repository with and without an engine, and make the tasks."""
    plain, forwarding = cache / "tests" / "nano-repository", cache / "tests" / "nano-engine-repository"
    plain.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = default_checkpoint()
    build_repository(checkpoint, "nano", plain, report=say)
    manifest = engine_build(checkpoint, plain, forwarding, Path("/run/engine.sock"))[0].manifest
    model = load_model(checkpoint)
    config = TaskConfig.from_folder(plain / "answers" / "1")
    tasks = nano_tasks(model, config, ServedNetworks.exported(model, plain), cache, count)
    with np.load(plain / "personalizer" / "1" / "adapter.npz") as stored:
        lora = {name: stored[name] for name in ("lora_a", "lora_b")}
    ids = model.config.ids
    ours = Ours(
        Graph(plain / "personalizer" / "graph" / "model.onnx"),
        SamplingRule(model.config.generation, ids.image_end, ids.vocab_size),
        lora,
        model.config.language.max_positions,
    )
    others = replace(ours, lora={name: value * np.float32(OTHER_ADAPTER) for name, value in lora.items()})
    return Prepared(tasks, ours, others, forwarding / "personalizer" / FOLDER, manifest.adapter_base)


def in_float32(python: Path, given: Prepared) -> list[str]:
    """Print what the engine answers in float32; returns the answers that nothing explains."""
    tasks, ours, others, base = given.tasks, given.ours, given.others, given.base
    unexplained: list[str] = []
    with running_engine(python, given.folder) as engine:
        client = EngineClient(engine.socket, base, content_hash(ours.lora), ours.lora)
        say(f"engine: {client.check()}; listens after {engine.start_seconds:.0f} s")
        client.close()
        say(f"other weights: {refused(engine, ours.lora)}")
        began = time.monotonic()
        alone = ask_each(engine, base, ours.lora, tasks)
        seconds = time.monotonic() - began
        tokens = sum(int(reply.tensors["counts"].sum()) for reply in alone)
        say(f"one task at a time: {len(tasks)} tasks in {seconds:.1f} s, {tokens / seconds:.0f} answer tokens/s")
        say(f"  prefill: {prefill(tasks, alone)}")
        for name, path, replies in (
            ("one task at a time", ours, alone),
            (f"{TOGETHER} tasks at a time", ours, ask_all(engine, base, ours.lora, tasks)),
            ("another adapter", others, ask_all(engine, base, others.lora, tasks)),
        ):
            agreement = compared(path, tasks, replies)
            unexplained += agreement.unexplained
            say(f"  float32, {name}: {agreement}")
    return unexplained


def in_float16(python: Path, given: Prepared, count: int) -> None:
    """Print how many answers are the same in float16; it is no condition."""
    tasks = given.tasks[:count]
    with running_engine(python, given.folder, "--dtype", "float16") as engine:
        replies = ask_each(engine, given.base, given.ours.lora, tasks)
        say(f"  float16, one task at a time: {compared(given.ours, tasks, replies)}")


def main() -> int:
    """1 where an answer differs and nothing explains it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--half-tasks", type=int, default=4, help="tasks in float16, 0 for none")
    asked = parser.parse_args()
    state = load_settings().state_dir
    python = open_engine_environment(engine_environment(state), say)
    given = prepare(state.absolute() / "cache", asked.tasks)
    unexplained = in_float32(python, given)
    for line in unexplained:
        say(f"UNEXPLAINED {line}")
    if asked.half_tasks:
        in_float16(python, given, asked.half_tasks)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
