"""A night whose model is in its own process, without Triton: a diffusers pipeline (models.preset)."""

from __future__ import annotations

from collections.abc import Callable

from generator.nightly.announce import Announcer
from generator.nightly.run import NightContext
from generator.safety.judge import SafetyCheck
from generator.serving.pipeline.model import ServedPipeline
from schemas.errors import InputError
from schemas.settings import Settings


def pipeline_context(
    settings: Settings, announcer: Callable[[], Announcer], echo: Callable[[str], None], safety: SafetyCheck | None
) -> NightContext:
    """What a night works with; weights are loaded when the first of them is needed.

    Raises:
        InputError: the night is to be drawn by Ray's workers, a setting of models.pipeline is wrong, or packages are missing.
    """
    if settings.night.engine != "local":
        raise InputError(
            f"night.engine is {settings.night.engine}: a pipeline (models.preset) draws in the night's own process; "
            "--engine local, or PIGEON_NIGHT__ENGINE=local"
        )
    model = ServedPipeline(settings)
    return NightContext(settings, lambda: model, announcer, echo, safety=safety)
