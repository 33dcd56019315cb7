"""Stop signals reach the part that runs, and the handlers before it come back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from schemas.runtime.stop_signals import STOP, stop_signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_stops_the_part_and_is_named():
    before = [signal.getsignal(number) for number in STOP]
    asked: list[int] = []
    with stop_signals(asked.append) as received:
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert asked == received == [signal.SIGTERM, signal.SIGINT]
    assert 128 + received[0] == 143
    assert [signal.getsignal(number) for number in STOP] == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT, which a shell that starts the tests in the background has it ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_acts_as_before_when_one_is_enough():
    asked: list[int] = []
    with stop_signals(asked.append, once=True):
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert asked == [signal.SIGINT]


def test_what_a_handler_raises_leaves_the_block_with_the_handlers_restored():
    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stop_signals(interrupt, numbers=(signal.SIGTERM,)):
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_handle_nothing():
    handlers: list[object] = []

    def work() -> None:
        with stop_signals(lambda _: None):
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
