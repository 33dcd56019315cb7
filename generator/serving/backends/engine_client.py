"""Asks the personalizer's engine on behalf of one adapter; standard library and numpy."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from generator.serving.backends.engine_protocol import VERSION, Closed, Message, ProtocolError, receive, taker

POLL_SECONDS = 0.05
"""Seconds between two looks at whether somebody still waits for the answer."""
CONNECT_SECONDS = 5.0
TRANSFER_SECONDS = 60.0
"""Seconds that the rest of a message may take after its first byte."""

T = TypeVar("T")
Tensors = Mapping[str, NDArray[Any]]


class EngineUnavailable(Exception):
    """No engine answers, or it serves other weights; trying again later may help."""


class EngineRefused(Exception):
    """The engine's own error; `label` is one of "rejected", "corrupt" and "failed"."""

    def __init__(self, label: str, reason: str) -> None:
        super().__init__(reason)
        self.label = label


class EngineClient:
    """One connection, opened when it is needed; for one thread."""

    def __init__(self, path: Path, base: str, adapter: str, matrices: Tensors) -> None:
        """path: the engine's socket; base: hash of the weights it has to serve; adapter: hash of `matrices`."""
        self._path = path
        self._base = base
        self._adapter = adapter
        self._matrices = matrices
        self._connection: socket.socket | None = None

    def close(self) -> None:
        """Close the connection; the engine gives up what it still computes for it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def check(self) -> str:
        """Connect and give the engine the adapter; returns what the engine calls itself.

        Raises:
            EngineUnavailable, EngineRefused: as `answer`.
        """

        def work() -> str:
            engine = self._hello(lambda: None)
            self._give_adapter(lambda: None)
            return engine

        return self._retried(work)

    def answer(self, seed: int, tensors: Tensors, checkpoint: Callable[[], None] = lambda: None) -> Message:
        """Answers to prompt_ids (N, T), condition (N, E), variants (N,), and optionally temperatures (N,).

        -> tokens (N, max_new), counts, logprobs and sampling_logprobs (N,). `checkpoint` is called while it waits and may
        raise: then the engine is left alone. A connection that breaks is opened again once.

        Raises:
            EngineUnavailable: no engine answers, or it serves other weights.
            EngineRefused: the engine answered with an error.
        """

        def work() -> Message:
            if self._connection is None:
                self._hello(checkpoint)
            question = Message({"op": "answer", "adapter": self._adapter, "seed": seed}, tensors)
            reply = self._ask(question, checkpoint)
            if reply.fields.get("error") == "unknown adapter":  # an engine that was started again knows none
                self._give_adapter(checkpoint)
                reply = self._ask(question, checkpoint)
            return _good(reply)

        return self._retried(work)

    def _retried(self, work: Callable[[], T]) -> T:
        for attempt in (1, 2):
            try:
                return work()
            except (OSError, Closed, ProtocolError) as error:
                self.close()
                if attempt == 2:
                    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
                    raise EngineUnavailable(
                        f"engine at {self._path}: does not answer ({reason}); start it, or look into its log"
                    ) from error
            except EngineRefused:
                raise  # a whole answer: the connection is as good as before
            except BaseException:
                self.close()
                raise
        raise AssertionError

    def _hello(self, checkpoint: Callable[[], None]) -> str:
        self.close()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection = connection
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(str(self._path))
        reply = self._ask(Message({"op": "hello", "version": VERSION, "base": self._base}), checkpoint)
        if reply.fields.get("error") == "other weights":
            raise EngineUnavailable(f"engine at {self._path}: {reply.fields['reason']}")
        return str(_good(reply).fields["engine"])

    def _give_adapter(self, checkpoint: Callable[[], None]) -> None:
        _good(self._ask(Message({"op": "adapter", "sha256": self._adapter}, self._matrices), checkpoint))

    def _ask(self, question: Message, checkpoint: Callable[[], None]) -> Message:
        connection = self._connection
        if connection is None:
            raise Closed
        connection.settimeout(TRANSFER_SECONDS)
        connection.sendall(question.to_bytes())
        while not select.select([connection], [], [], POLL_SECONDS)[0]:
            checkpoint()
        return receive(taker(connection))


def _good(reply: Message) -> Message:
    if (label := reply.fields.get("error")) is not None:
        raise EngineRefused(str(label), str(reply.fields.get("reason", "")))
    return reply
