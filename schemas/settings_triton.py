"""The settings of the inference servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from schemas.settings_group import Group, Seconds


def _joined(addresses: Any) -> Any:
    """A list of addresses, as TOML has them, in one line."""
    return ",".join(addresses) if isinstance(addresses, list | tuple) else addresses


Addresses = Annotated[str, BeforeValidator(_joined)]


class TritonSettings(Group):
    """The inference server, or several that serve the same models."""

    url: Addresses = Field(
        "127.0.0.1:8001",
        description="host:port of gRPC; of several servers a comma-separated list (in TOML a list will do). All are asked, the "
        "one with the fewest requests first; admin_key must be that of all of them.",
    )
    metrics_url: str | None = None
    admin_key: SecretStr | None = Field(None, description="Key that guards model control; see deploy/local.")
    tls: bool = Field(
        False, description="Talk TLS to all servers; without it admin_key, which lets run code, goes in clear text."
    )
    ca_file: Path | None = Field(
        None, description="PEM certificates that prove the servers; empty = the system's. Needs tls."
    )
    cert_file: Path | None = Field(
        None, description="Our PEM certificate, where the servers ask for one. Needs tls and key_file."
    )
    key_file: Path | None = Field(None, description="The PEM key of cert_file, without a passphrase.")
    model_repository: Path | None = Field(None, description="The folder the server reads models from.")
    engine_socket: Path | None = Field(
        None,
        description="Unix socket of the process that runs LLaMA for models built with --engine vllm, as the server sees it; empty = "
        "engine.sock in the state folder.",
    )
    network_timeout_seconds: Seconds = 10.0
    inference_timeout_seconds: Seconds = 60.0
    start_timeout_seconds: Seconds = 120.0
    shared_memory: bool = Field(
        False,
        description="Give pictures to and take them from servers on this host through shared memory (/dev/shm), which saves "
        "gRPC's copies; needs admin_key where the server guards it. Servers elsewhere are refused.",
    )
    max_in_flight: int = Field(
        2,
        ge=1,
        description="Requests that one process of a night keeps under way; about 2 for each server keep it busy.",
    )

    @property
    def addresses(self) -> tuple[str, ...]:
        """host:port of each server."""
        return tuple(address.strip() for address in self.url.split(","))

    @field_validator("url")
    @classmethod
    def _addresses_are_distinct(cls, url: str) -> str:
        addresses = [address.strip() for address in url.split(",")]
        if not all(addresses) or len(set(addresses)) < len(addresses):
            raise ValueError(f"{url!r} names a server twice, or nothing between two commas; write host:port,host:port")
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit() or "/" in address:
                raise ValueError(
                    f"{address!r} is not host:port of the server's gRPC, such as triton:8001; whether to talk TLS is triton.tls"
                )
        return url

    @model_validator(mode="after")
    def _tls_fits_together(self) -> Self:
        for name in ("ca_file", "cert_file", "key_file"):
            path = getattr(self, name)
            if path is not None and not self.tls:
                raise ValueError(f"triton.{name} is set, but triton.tls is false: it would be ignored")
            if path is not None and not path.is_file():
                raise ValueError(f"triton.{name} {path}: no such file")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("triton.cert_file and triton.key_file go together: one of them is empty")
        return self
