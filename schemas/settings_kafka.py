"""The settings of Kafka: brokers, login, group."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from schemas.settings_group import Group


class KafkaSettings(Group):
    """The broker and how clients connect to it."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="Comma-separated host:port list.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: (
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM", "GSSAPI"] | None
    ) = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    oauth_token_url: str | None = Field(
        None,
        description="Where OAUTHBEARER gets its tokens: the token endpoint of an OIDC provider (client credentials).",
    )
    oauth_client_id: str | None = None
    oauth_client_secret: SecretStr | None = None
    oauth_scope: str | None = None
    oauth_cafile: Path | None = Field(
        None, description="PEM certificates that prove the token endpoint; empty = the system's."
    )
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    topic_prefix: str = Field("", description="Put before every topic name; lets several installations share a broker.")
    group_id: str = Field("pigeon", description="Consumer group and the key of our stored offsets.")
    group_instance_id: str | None = Field(
        None, description="This member's fixed name, so that a restart causes no rebalance; each member needs its own."
    )
    rebalance: Literal["eager", "cooperative"] = Field(
        "eager",
        description="cooperative: members keep what stays theirs while others come and go. All members of a group alike: stop "
        "them all to change it.",
    )
    session_timeout_ms: int = Field(45_000, ge=1_000, description="The embedded broker wants 2000-6000.")
    max_poll_interval_ms: int = Field(300_000, ge=1_000)
    request_timeout_ms: int = Field(30_000, ge=1_000)
    dlq_retention_days: int = Field(
        7,
        ge=1,
        le=3_650,
        description="`pigeon topics create` has dead-letter topics keep records for this long, and for up to a day more, and an "
        "erasure's proof counts on it; `pigeon doctor` names topics that keep them for longer.",
    )
