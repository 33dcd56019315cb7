"""Feedback's figures, without servers."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from generator.web import metrics
from generator.web.api import FeedbackDesk
from generator.web.bodies import Feedback
from generator.web.showings import Showing, seal
from generator.web.signing import Signer
from schemas.errors import ServerUnavailable
from schemas.settings_web import WebSettings

SIGNER = Signer(SecretStr("k" * 40))


class Sender:
    """Kafka's sender that notes how many events wait, and refuses after some."""

    def __init__(self, taken: int) -> None:
        self.waiting: list[float] = []
        self._taken = taken

    def send(self, event: Any) -> Future[None]:
        self.waiting.append(metrics.WAITING._value.get())
        if len(self.waiting) > self._taken:
            raise ServerUnavailable("too many wait")
        done: Future[None] = Future()
        done.set_result(None)
        return done


def body(count: int) -> Feedback:
    showing = seal(SIGNER, Showing("u1", "m5", "p" * 32, 0.5, None, int(time.time())))
    return Feedback.model_validate(
        {"events": [{"showing": showing, "action": "click", "position": n} for n in range(count)]}
    )


def desk(sender: Sender) -> FeedbackDesk:
    context: Any = SimpleNamespace(sender=sender, signer=SIGNER, settings=SimpleNamespace(web=WebSettings()))
    return FeedbackDesk(context)


def test_the_gauge_counts_events_that_wait_and_not_requests() -> None:
    sender = Sender(taken=3)
    asyncio.run(desk(sender).take(body(3)))
    assert sender.waiting == [3, 3, 3]
    assert metrics.WAITING._value.get() == 0


def test_the_gauge_is_back_at_nothing_after_a_refusal() -> None:
    with pytest.raises(ServerUnavailable, match="too many wait"):
        asyncio.run(desk(Sender(taken=1)).take(body(3)))
    assert metrics.WAITING._value.get() == 0
