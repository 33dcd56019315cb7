"""Settings of the loop: pairs, training, the gate, the canary."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from schemas.settings_group import Group, Seconds, Share

Probability = Annotated[float, Field(gt=0, lt=1)]


class RetrainSettings(Group):
    """The loop: pairs, DPO, gate, promotion."""

    window_days: int = Field(28, ge=1)
    min_pairs: int = Field(50, ge=1, description="Below this nothing is trained.")
    score_pairs_share: Share = Field(
        0.5, description="At most this share of the pairs may be the paper's score-ranked ones."
    )
    holdout_share: Share = Field(0.2, description="Users held out of training, for the gate.")
    reward_certainty: Probability = Field(
        0.8,
        description="A reward-ranked pair is used when the click model is this certain (0-1) that its better answer is better.",
    )
    beta: float = Field(1.0, gt=0, description="DPO's β: the larger, the closer to the champion.")
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(8, ge=1)
    epochs: int = Field(4, ge=1)
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="Share of the preferences that is taken to be wrong.")
    max_displacement: float | None = Field(
        1.0,
        gt=0,
        description="Training stops when log π of the chosen answers has fallen by this many nats below the champion's, mean of "
        "an epoch's last steps; never when empty.",
    )
    cross_validate: bool = Field(
        False,
        description="Choose β and rate from a grid around the settings by cross-validation over the snapshot's training users.",
    )
    seed: int = 0
    erased_adapters: Literal["keep", "delete"] = Field(
        "keep",
        description="Adapters that were trained on users erased since. keep: named, nothing else; delete: those that do not serve "
        "are retired and deleted from the bucket, champion and canary are named until a retrain replaces them.",
    )
    gate_confidence: Probability = Field(
        0.95, description="Of the gate's two-sided intervals over users; the worse bound is what passes or refuses."
    )
    gate_min_accuracy: float | None = Field(
        0.5, description="Preference accuracy on held-out users, exceeded by the lower bound; none refuses."
    )
    gate_min_margin: float | None = Field(
        0.0, description="Mean reward margin on held-out users, exceeded by the lower bound; none refuses."
    )
    gate_max_kl: float | None = Field(5.0, description="KL to the champion in nats per answer; none refuses.")
    gate_max_chosen_fall: float | None = Field(
        2.0,
        description="Nats that log π of held-out users' chosen answers may fall below the champion's; none refuses.",
    )
    gate_max_cs_drop: float | None = Field(2.0, description="Points of reference CS that may be lost; none refuses.")
    gate_max_cis_drop: float | None = Field(2.0, description="Points of history CIS that may be lost; none refuses.")
    gate_max_length_change: float | None = Field(
        0.25, description="Share by which answers may become longer or shorter; none refuses."
    )
    gate_max_user_diversity_drop: float | None = Field(
        0.25, description="Share of user pairs whose answers for an item differ: what may be lost of it; none refuses."
    )
    gate_max_answer_diversity_drop: float | None = Field(
        0.25, description="Share of a task's answers that are distinct: what may be lost of it; none refuses."
    )
    gate_max_information_drop: float | None = Field(
        0.5, description="Share of the mutual information of user and answer that may be lost; none refuses."
    )
    gate_min_off_policy_gain: float | None = Field(
        0.0,
        description="Clicks per showing that the challenger's choices gain by the log: refused when even the upper bound is below; "
        "none refuses.",
    )
    gate_min_pairs: int = Field(8, ge=1, description="Held-out feedback pairs below which nothing is trained.")
    gate_judges_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Held-out users that judge one retraining, others each time; more when they have fewer than gate_min_pairs.",
    )
    gate_tasks: int = Field(48, ge=1, description="Held-out tasks drawn by champion and challenger each.")
    gate_users: int = Field(16, ge=2, description="Held-out users whose answers for the same items are compared.")
    gate_items: int = Field(3, ge=1, description="Items that they are compared for.")
    gate_answers: int = Field(4, ge=2, description="Answers sampled for each of these users and items.")
    off_policy_tasks: int = Field(
        500,
        ge=0,
        description="Held-out tasks with showings whose answers are scored for the off-policy value; 0 = none.",
    )
    off_policy_min_samples: float = Field(
        100.0, ge=1, description="Effective sample size (showings) below which the off-policy value cannot be judged."
    )
    off_policy_min_clicks: float = Field(
        50.0, ge=1, description="Effective number of clicks below which it cannot be judged either."
    )
    canary_share: Share = Field(0.1, description="Users of the next night that a canary draws for.")
    unload_after_hours: float = Field(
        72.0, ge=0, description="Retired and refused adapters are taken out of Triton after this long."
    )


class CanarySettings(Group):
    """The test that a canary goes through: by user, at any time."""

    alpha: Probability = Field(
        0.05, description="Chance that a canary which equals the champion is ever promoted or withdrawn by the test."
    )
    expected_lift: float = Field(
        0.1, gt=0, description="Relative lift of the click rate that the test is most sensitive to."
    )
    max_days: float = Field(
        28.0, gt=0, description="A canary without a verdict after this long is withdrawn as undecided."
    )
    min_users: int = Field(30, ge=2, description="Users shown posters, per side, before anything is decided.")
    min_clicks: int = Field(20, ge=1, description="Clicks, per side, before anything is decided.")
    before_days: int = Field(
        28, ge=0, description="Days before the canary whose click rates adjust for how much each user clicks anyway."
    )
    promotes: bool = Field(
        True, description="Whether a better canary becomes champion by itself; else it is only reported."
    )
    webhook_url: SecretStr | None = Field(
        None, description="http(s) address that is told of promotions and withdrawals by a JSON POST; none when empty."
    )
    webhook_hosts: tuple[str, ...] = Field((), description="Hosts that webhook_url may name.")
    webhook_timeout_seconds: Seconds = 5.0

    @model_validator(mode="after")
    def _the_webhooks_host_is_allowed(self) -> Self:
        if self.webhook_url is None:
            return self
        parts = urlsplit(self.webhook_url.get_secret_value())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("canary.webhook_url is no http(s) address")
        if parts.hostname not in self.webhook_hosts:
            raise ValueError(f"canary.webhook_url: host {parts.hostname} is not in canary.webhook_hosts")
        return self
