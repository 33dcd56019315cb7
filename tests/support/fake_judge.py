"""A test double of the safety model: scores are given by image, or by a rule."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable

from generator.safety.judge import Pixels


def by_content(image: Pixels) -> float:
    """A number in [0, 1) that differs from image to image, and is the same for the same one."""
    return int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16) / 2**32


class FakeJudge:
    """Test double of `SafetyJudge`; `asked` counts how often each image came."""

    def __init__(self, rule: Callable[[Pixels], float] = by_content, version: str = "fake-judge-1") -> None:
        self.version = version
        self.asked: Counter[str] = Counter()
        self._rule = rule
        self._lock = threading.Lock()

    def score(self, image: Pixels) -> float:
        with self._lock:
            self.asked[hashlib.sha256(image.tobytes()).hexdigest()] += 1
        return self._rule(image)
