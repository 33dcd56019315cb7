"""Whether a server still serves the weights that an answer is taken for.

Asked after the answer came: a server may be restarted with another repository, or be given another build model by model, while
a night is drawn, and would answer on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from generator.serving.api import InferenceUnavailable
from generator.serving.repository import DRAWING_PARAMETER, TOKENIZER_PARAMETER, WEIGHTS_PARAMETER
from schemas.errors import ModelError, ServerUnavailable

MODELS_OF: Mapping[str, tuple[str, ...]] = {
    TOKENIZER_PARAMETER: ("visual_tokenizer", "image_scorer"),
    WEIGHTS_PARAMETER: ("mask_generator", "token_decoder", "personalizer", "answers"),
    DRAWING_PARAMETER: ("token_decoder", "unet", "vae_decoder", "pictures"),
}
"""Models whose weights a version stands for: each has it in its configuration."""


def check_still_served(read: Callable[[str, str], str], parameter: str, expected: str) -> None:
    """Refuse an answer when one of the models that gave it has other weights by now.

    Args:
        read: (model, parameter) -> its value on the server that answered.
        parameter: one of MODELS_OF.
        expected: what the caller takes the answer for.

    Raises:
        ModelError: a model has other weights; the message names it and the fix.
        InferenceUnavailable: the server cannot be asked now; the answer counts for nothing.
    """
    for model in MODELS_OF[parameter]:
        try:
            found = read(model, parameter)
        except (ServerUnavailable, ModelError) as error:
            raise InferenceUnavailable(f"{model}: whose answer it was cannot be asked: {error}") from error
        if found != expected:
            raise ModelError(
                f"Triton serves {model} with {parameter} {found} since we began with {expected}: the answer was not used. "
                "Serve the old repository again, or plan another --date"
            )
