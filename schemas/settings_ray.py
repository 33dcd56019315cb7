"""Settings of nights that are drawn on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from schemas.settings_group import Group


class RaySettings(Group):
    """`--engine ray`: a night's tasks drawn by workers on several machines. Extra `ray`."""

    address: str | None = Field(
        None,
        description="host:port of the cluster's head, as `ray start --head` prints it; empty = workers on this machine, in a "
        "cluster of their own that ends with the night.",
    )
    token: SecretStr | None = Field(
        None,
        description="The cluster's token, RAY_AUTH_TOKEN of its nodes; empty = as RAY_AUTH_TOKEN here says. A cluster of the "
        "night's own draws one.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Processes that draw, each with up to triton.max_in_flight requests under way; empty = as many as the "
        "cluster has CPUs for.",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(
        1.0, description="CPUs that Ray sets aside for each; what draws is Triton, a worker composes and stores."
    )
    shard_tasks: int = Field(
        512,
        ge=1,
        description="Tasks of neighbouring users that a worker gets at a time, and a dead one's successor again.",
    )
    start_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        120.0,
        description="Time within which the cluster must start a first worker, or one in place of the last that died.",
    )
