"""Settings of the device that trains, scores and evaluates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.settings_group import Group


class ComputeSettings(Group):
    """Where the network is computed outside of Triton: training, scoring, evaluation, export."""

    device: str = Field(
        "cpu",
        description="torch's name of the device: cpu, cuda, cuda:1; auto is the first GPU, and the CPU where there is none.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 on a GPU that computes in it, fp32 elsewhere. fp16 draws and does not train. Log-probabilities, "
        "losses, decisions and the VAE are always fp32.",
    )
    part_rows: int | None = Field(
        None,
        ge=1,
        description="Pairs (stage 1: rows) computed at once; more of a batch are accumulated, which changes memory and not the result. "
        "All at once when empty.",
    )
    checkpointing: bool = Field(
        False,
        description="Compute LLaMA's activations again in the backward pass instead of keeping them: slower, and less memory.",
    )
