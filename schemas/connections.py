"""Options of the Kafka, S3 and Postgres clients, made from settings in one place for all.

Importing this module imports no client library: boto3 is imported where a client is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from schemas import kafka_network, kafka_token, s3_keys
from schemas.runtime import kafka_login
from schemas.s3_prefix import add_prefix

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

    from schemas.settings import DatabaseSettings
    from schemas.settings_kafka import KafkaSettings
    from schemas.settings_s3 import S3Settings

_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""Seconds without traffic before a probe, seconds between probes, and unanswered probes that end a connection."""


def kafka_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options of every kafka-python client: the brokers, the timeout of a request, the network, the login.

    Raises:
        InputError: the login's settings do not fit together (schemas/runtime/kafka_login.py).
    """
    options = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "request_timeout_ms": settings.request_timeout_ms,
        "kafka_client": kafka_network.network,
        **kafka_login.options(settings),
    }
    if settings.security_protocol.startswith("SASL") and settings.sasl_mechanism == "OAUTHBEARER":
        options["sasl_oauth_token_provider"] = kafka_token.provider(settings)
    return options


def s3_options(settings: S3Settings) -> dict[str, Any]:
    """Arguments of `s3_client` that the settings give."""
    secret, token = settings.secret_access_key, settings.session_token
    return {
        "endpoint_url": settings.endpoint_url,
        "region": settings.region,
        "addressing_style": settings.addressing_style,
        "access_key_id": settings.access_key_id,
        "secret_access_key": secret.get_secret_value() if secret else None,
        "session_token": token.get_secret_value() if token else None,
        "prefixed": (settings.bucket, settings.prefix),
        "key_files": s3_keys.key_files(),
        "connect_timeout_seconds": settings.connect_timeout_seconds,
        "read_timeout_seconds": settings.read_timeout_seconds,
        "max_attempts": settings.max_attempts,
        "checksums": settings.checksums,
    }


def s3_client(
    *,
    endpoint_url: str | None = None,
    region: str = "us-east-1",
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    addressing_style: Literal["auto", "path", "virtual"] = "auto",
    prefixed: tuple[str, str] = ("", ""),
    key_files: Mapping[str, Path] | None = None,
    connect_timeout_seconds: float = 5.0,
    read_timeout_seconds: float = 30.0,
    max_attempts: int = 5,
    checksums: Literal["when_required", "when_supported"] = "when_required",
    pool_connections: int = 16,
) -> S3Client:
    """Make a boto3 client.

    Keys that are not given come from where boto3 looks (environment, profile, role).

    Args:
        addressing_style: "path" is host/bucket/key, "virtual" bucket.host/key.
        prefixed: a bucket, and what all keys in it begin with (schemas/s3_prefix.py).
        key_files: files of keys, which are read again whenever something is signed (schemas/s3_keys.py).
        max_attempts: tries of a request, the first included.
        checksums: when botocore adds and checks its extra checksums.
        pool_connections: connections kept open, for as many threads.
    """
    import boto3
    from botocore.config import Config

    keys = {
        "access_key_id": access_key_id,
        "secret_access_key": secret_access_key,
        "session_token": session_token,
    }
    client = (s3_keys.session(keys, key_files) if key_files else boto3).client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=None if key_files else access_key_id,
        aws_secret_access_key=None if key_files else secret_access_key,
        aws_session_token=None if key_files else session_token,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": addressing_style},
            connect_timeout=connect_timeout_seconds,
            read_timeout=read_timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": max_attempts},
            max_pool_connections=pool_connections,
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        ),
    )
    if prefixed[1]:
        add_prefix(client, *prefixed)
    return client


def postgres_options(
    settings: DatabaseSettings, application: str, *, end_idle_transactions: bool = False
) -> dict[str, Any]:
    """libpq's options of every Postgres connection: name, timeouts, UTC, and notice of a dead peer.

    Behind a pooler, which refuses start-up options, timeouts and time zone are left to `set_session`.

    Args:
        application: the name that pg_stat_activity shows.
        end_idle_transactions: whether the server ends a transaction that idles for as long as a statement may take, so that
            a stalled process keeps no locks.
    """
    session = _session_settings(settings, end_idle_transactions=end_idle_transactions)
    return {
        "application_name": application,
        "connect_timeout": max(1, round(settings.connect_timeout_seconds)),
        **_KEEPALIVES,
        "tcp_user_timeout": round(settings.statement_timeout_seconds * 1000),
        **(
            {"options": " ".join(f"-c {name}={value}" for name, value in session.items())}
            if settings.pooler == "none"
            else {}
        ),
    }


def set_session(connection: Any, settings: DatabaseSettings, *, end_idle_transactions: bool = False) -> None:
    """Give a new psycopg2 connection the timeouts and time zone that a pooler let no start-up option set."""
    before, connection.autocommit = connection.autocommit, True
    with connection.cursor() as cursor:
        for name, value in _session_settings(settings, end_idle_transactions=end_idle_transactions).items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
    connection.autocommit = before


def _session_settings(settings: DatabaseSettings, *, end_idle_transactions: bool) -> dict[str, int | str]:
    statement_ms = round(settings.statement_timeout_seconds * 1000)
    return {
        "statement_timeout": statement_ms,
        "lock_timeout": round(settings.lock_timeout_seconds * 1000),
        **({"idle_in_transaction_session_timeout": statement_ms} if end_idle_transactions else {}),
        "timezone": "UTC",
    }
