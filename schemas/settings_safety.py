"""Settings of the safety verdict."""

from __future__ import annotations

from pydantic import Field

from schemas.settings_group import Group


class SafetySettings(Group):
    """Whether a model looks for unsafe pictures before anybody is shown them."""

    enabled: bool = Field(
        False, description="Have each distinct picture judged once; unsafe ones are refused. Needs the extra `safety`."
    )
    threshold: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Score, 0 (harmless) to 1, from which a picture is unsafe. The model's authors take 0.8 and more for unsafe "
        "and less than 0.2 for harmless.",
    )
    recheck_minutes: float = Field(
        30.0,
        gt=0,
        description="Time that one `pigeon night upkeep` spends on judging stored pictures again after a change; the next one "
        "goes on.",
    )
