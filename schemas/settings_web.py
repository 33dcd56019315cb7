"""Settings of `pigeon serve`; composed by schemas/settings.py."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from schemas.settings_group import Group, Seconds

Role = Literal["recommend", "read", "operate"]
SHORTEST_SECRET = 32


class ApiToken(Group):
    """A client of the API, or a person at the console, known by a token of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    token: SecretStr
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]

    @field_validator("token")
    @classmethod
    def _hard_to_guess(cls, token: SecretStr) -> SecretStr:
        return _long_enough(token)


class WebSettings(Group):
    """`pigeon serve`: posters and feedback over HTTP, and the operators' console."""

    host: str = Field("127.0.0.1", description="Address that it listens on; TLS is a proxy's work.")
    port: int = Field(8_080, ge=0, le=65_535)
    metrics_port: int | None = Field(
        None, description="/metrics, /live and /ready on a port of their own, without a token; none when empty."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that metrics_port listens on.")
    public_url: str | None = Field(
        None,
        description="Address that browsers use, as https://pigeon.example.com; with https cookies are for https only.",
    )
    signing_key: SecretStr | None = Field(
        None,
        description="Signs showing tokens and sessions, 32 characters or more; `pigeon serve --new-key` draws one.",
    )
    previous_signing_key: SecretStr | None = Field(
        None, description="What this key has signed is still taken: keep the old key here while tokens of it are about."
    )
    tokens: tuple[ApiToken, ...] = Field(
        (),
        description="Who may ask: name, token (32 characters or more) and roles. recommend reads posters; read looks at the "
        "console and /metrics; operate also changes things there.",
    )
    proxy_networks: tuple[str, ...] = Field(
        (),
        description="Networks of proxies, for example 10.0.0.7/32, whose X-Forwarded-For is believed, and which may say who a "
        "person is; nobody else may.",
    )
    proxy_user_header: str | None = Field(
        None, description="Header in which such a proxy gives the signed-in person, for example X-Forwarded-User."
    )
    proxy_groups_header: str = Field("X-Forwarded-Groups", description="Header with the person's groups, by commas.")
    proxy_read_groups: tuple[str, ...] = Field((), description="Groups with the role read.")
    proxy_operate_groups: tuple[str, ...] = Field((), description="Groups with the role operate.")
    session_hours: float = Field(12.0, gt=0, description="A browser is signed in for this long.")
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose pages may post feedback, for example https://shop.example.com."
    )
    showing_seconds: float = Field(
        6 * 3600.0, ge=60, description="Lifetime of a showing token; at least half of it is left when it is handed out."
    )
    images_url: str | None = Field(
        None, description="Public address of the bucket, for example of a CDN; empty = signed addresses of S3."
    )
    image_seconds: float = Field(
        6 * 3600.0,
        ge=60,
        le=7 * 86400,
        description="Lifetime of a signed address; at least half of it is left when it is handed out.",
    )
    refresh_seconds: Seconds = Field(60.0, description="A new night, and what was withdrawn, is looked for this often.")
    max_items: int = Field(200, ge=1, le=1_000, description="Items of one page.")
    max_body_bytes: int = Field(64 * 1024, ge=1_024)
    reads_per_second: float = Field(1_000.0, gt=0, description="Of one API client, each for itself; 429 above.")
    feedback_per_second: float = Field(
        50.0, gt=0, description="Requests with feedback of one address (behind a proxy: of X-Forwarded-For); 429 above."
    )
    console_per_second: float = Field(20.0, gt=0, description="Requests to the console of one person or address.")
    feedback_in_flight: int = Field(
        5_000, ge=1, description="Events that wait for Kafka; more are refused with 503 and Retry-After."
    )
    feedback_seconds: Seconds = Field(5.0, description="Kafka is waited for this long before a request gets a 503.")

    @field_validator("signing_key", "previous_signing_key")
    @classmethod
    def _keys_are_long(cls, key: SecretStr | None) -> SecretStr | None:
        return _long_enough(key) if key else None

    @field_validator("proxy_networks")
    @classmethod
    def _networks_parse(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)
        return networks

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path or parts.query:
                raise ValueError(f"{origin!r} is no origin, for example https://shop.example.com")
        return origins

    @field_validator("public_url", "images_url")
    @classmethod
    def _urls_are_urls(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc):
            raise ValueError(f"{url!r} is no address, for example https://pigeon.example.com")
        return url.rstrip("/") if url else None

    @model_validator(mode="after")
    def _names_fit_each_other(self) -> Self:
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError("web.tokens: each name once: the audit log tells people and clients apart by it")
        if self.proxy_user_header and not self.proxy_networks:
            raise ValueError("web.proxy_user_header needs web.proxy_networks: anybody could send that header")
        return self


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < SHORTEST_SECRET:
        raise ValueError(f"must have {SHORTEST_SECRET} characters or more; `pigeon serve --new-key` draws one")
    return secret
