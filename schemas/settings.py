"""Every setting of the product, with its default, unit and meaning.

Sources, strongest first: arguments, environment (`PIGEON_` prefix, `__` between levels; secrets also from files, by the same
names with `_FILE` behind them), the dotenv file that `pigeon up` writes (`<state_dir>/env`), a TOML file (`pigeon.toml`, or the
one named by `PIGEON_CONFIG_FILE`), defaults.
"""

from __future__ import annotations

import os
import re
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from schemas.errors import InputError
from schemas.settings_compute import ComputeSettings
from schemas.settings_group import Group as _Group
from schemas.settings_group import Seconds, Share
from schemas.settings_history import HistorySettings
from schemas.settings_kafka import KafkaSettings
from schemas.settings_loop import ClickSettings, ReaderSettings
from schemas.settings_models import ModelSettings
from schemas.settings_ray import RaySettings
from schemas.settings_retention import RetentionSettings
from schemas.settings_retrain import CanarySettings, RetrainSettings
from schemas.settings_s3 import S3Settings
from schemas.settings_safety import SafetySettings
from schemas.settings_secrets import SUFFIX, secret_variables, with_files_read
from schemas.settings_triton import TritonSettings
from schemas.settings_web import WebSettings

PREFIX = "PIGEON_"
NOT_SETTINGS = frozenset(
    {
        "PIGEON_CONFIG_FILE",
        "PIGEON_TRITON_VENV",
        "PIGEON_ENGINE_VENV",
        "PIGEON_TEST_KAFKA",
        "PIGEON_TEST_KAFKA_HOME",
        "PIGEON_CI_WITHOUT_KAFKA",
    }
)
"""Variables that `load_settings`, deploy.local or the tests read by themselves, before there are settings."""


class DatabaseSettings(_Group):
    """Postgres."""

    url: SecretStr = Field(
        SecretStr("postgresql+psycopg2://postgres@127.0.0.1:5432/pigeon"),
        description="SQLAlchemy URL; the driver must be named: postgresql+psycopg2://user:password@host:port/name",
    )
    pooler: Literal["none", "session"] = Field(
        "none",
        description="session: database.url leads to a pooler (PgBouncer) in session mode. Other modes cannot be used: the lease "
        "of a night is a lock of its session.",
    )
    pool_size: int = Field(5, ge=1)
    connect_timeout_seconds: Seconds = 10.0
    statement_timeout_seconds: Seconds = 60.0
    lock_timeout_seconds: Seconds = 10.0

    @field_validator("url")
    @classmethod
    def _driver_is_named(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith("postgresql+psycopg2://"):
            raise ValueError(
                "must start with postgresql+psycopg2:// (SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3)"
            )
        return url


class ConsumerSettings(_Group):
    """Kafka -> Postgres."""

    batch_max_records: int = Field(
        20_000, ge=1, description="A batch is one transaction; larger ones merge each user's history less often."
    )
    batch_max_bytes: int = Field(8 * 2**20, ge=1_024)
    batch_max_seconds: Seconds = 1.0
    max_event_bytes: int = Field(256 * 2**10, ge=64, description="A larger record is poison.")
    history_size: int = Field(50, ge=1, le=1_000, description="Items kept in a user's history row, the newest.")
    max_future_seconds: Seconds = Field(
        300.0, description="Events dated further ahead are clamped for ordering and counted."
    )
    dlq_max_count: int = Field(1_000, ge=0, description="Poison records per window past which the consumer stops...")
    dlq_max_share: Share = Field(
        0.5, description="...or this share of the window's records, once it holds 100 or more."
    )
    dlq_window_seconds: Seconds = 300.0
    outage_backoff_max_seconds: Seconds = 30.0
    stop_deadline_seconds: Seconds = 20.0
    metrics_host: str = Field("127.0.0.1", description="Address that metrics_port listens on.")
    metrics_port: int | None = Field(None, description="Prometheus, liveness and readiness; none when empty.")
    log_every_seconds: Seconds = 10.0
    stuck_loop_seconds: Seconds = Field(
        60.0, description="The stacks of all threads are logged when the loop stands still."
    )
    stuck_work_seconds: Seconds = Field(
        300.0,
        description="Records wait, no outage is known and nothing is stored: not alive, and the stacks are logged.",
    )
    on_topic_recreated: Literal["stop", "restart"] = Field(
        "stop",
        description="When the log is shorter than our offset: stop, or read it again from its start (event ids dedupe).",
    )
    positive_kinds: tuple[Annotated[str, StringConstraints(to_lower=True)], ...] = Field(
        ("click", "play", "like", "purchase"), description="Kinds that enter the history, in whatever case."
    )


class NightSettings(_Group):
    """The nightly batch."""

    engine: Literal["local", "ray"] = Field(
        "local", description="Where tasks are drawn from: threads of this process, or workers of a Ray cluster (ray.*)."
    )
    history_length: int = Field(5, ge=1, le=20, description="Pictures given to the model (the paper's H).")
    min_history: int = Field(3, ge=1, description="Users with fewer interactions are skipped, and counted.")
    targets_per_user: int = Field(4, ge=1)
    answers: int = Field(8, ge=1, le=256, description="Answers sampled per task; the first is the model's best.")
    alphas: tuple[Share, ...] = Field(
        (0.0, 0.3, 0.6, 0.9), min_length=1, description="Reference mask ratios that the answers cycle over."
    )
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 1.3, 1.6, 2.0),
        min_length=1,
        description="Sampling temperatures that all answers but the first cycle over.",
    )
    policy: Literal["auto", "model", "paper", "reward"] = Field(
        "auto",
        description="What chooses among a task's answers. model: its best one and others sampled by their probability; paper: by "
        "the previews' scores; reward: by the active click model; auto: reward where a click model is active, else model.",
    )
    variants: int = Field(2, ge=1, description="Answers drawn and kept per task, so that feedback can compare them.")
    max_draws: int = Field(
        4, ge=1, description="Pictures that a task may ask for when some are refused; never fewer than variants."
    )
    claim_seconds: Seconds = Field(
        60.0, description="A picture that a dead process was drawing is drawn by another one after this long."
    )
    exploration: Share = Field(
        0.06,
        description="Share of the showings that is spread evenly among the variants; the rest goes to the best. With two variants "
        "half of it shows the other one.",
    )
    reward_exploration: Share = Field(
        0.06, description="The same under the policy reward, whose other variants are near-best by the click model."
    )
    reference_weight: Share = Field(0.5, description="Weight of CS; 1 - this is the weight of the history CIS.")
    max_attempts: int = Field(3, ge=1, description="Per task and per picture.")
    min_reference_score: float = Field(0.0, description="CS below this is off-reference and refused (100 x cosine).")
    near_duplicate_distance: int = Field(
        2, ge=0, description="Perceptual-hash bits; closer to the reference's picture is refused."
    )
    blank_stddev: float = Field(
        4.0, ge=0, description="Pixel standard deviation (0-255) under which a picture is blank."
    )
    sizes: tuple[str, ...] = Field(
        ("400x600",), min_length=1, description="WIDTHxHEIGHT of composed posters; the first is the manifest's."
    )
    webp_quality: int = Field(88, ge=1, le=100)
    font: Path | None = Field(None, description="TrueType font of the titles; empty = DejaVu Sans Bold.")
    fonts: tuple[Path, ...] = Field(
        (),
        description="Further font files or folders, tried in this order for titles that `font` has no characters for.",
    )
    max_image_bytes: int = Field(
        20 * 2**20, ge=1_024, description="A larger catalogue picture is unreadable, for import and night alike."
    )
    image_timeout_seconds: Seconds = Field(
        10.0, description="For one picture as a whole: name lookup, redirects, retries and the last byte."
    )
    outage_seconds: float = Field(
        120.0,
        gt=0,
        description="Triton, Postgres or S3 away for longer stops the night; its tasks stay pending, and the scheduler tries again.",
    )
    max_users: int | None = Field(
        None,
        ge=1,
        description="Users drawn for per night; every night begins with others, so that all have their turn.",
    )
    failure_exit_share: Share = Field(0.5, description="Share of failed tasks past which nothing is published.")
    keep_manifests: int = Field(30, ge=2, description="Nights whose sets and reports stay in the bucket.")
    price_per_hour: float | None = Field(
        None,
        ge=0,
        description="Price of an hour in which a night draws (its GPUs and CPUs together), in any currency; with it the dry run "
        "and the report tell costs.",
    )

    @field_validator("sizes")
    @classmethod
    def _sizes_parse(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for size in sizes:
            width, _, height = size.partition("x")
            if not (width.isdigit() and height.isdigit() and 64 <= int(width) <= 4096 and 64 <= int(height) <= 4096):
                raise ValueError(f"{size!r} is not WIDTHxHEIGHT with 64..4096 each, for example 400x600")
        return sizes


class ImageSettings(_Group):
    """Catalogue pictures: where they may come from, and what is remembered of them."""

    allowed_schemes: tuple[Literal["http", "https", "s3", "file"], ...] = Field(
        ("http", "https", "s3"),
        description="file also lets the night open paths of its own machine; imports read paths anyway.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts of http(s) pictures, for example img.example.com or *.example.com; empty or * = any with a public "
        "address. A host that is named may have a private address.",
    )
    allowed_buckets: tuple[str, ...] = Field(
        (), description="Buckets beside s3.bucket that s3:// pictures are read from, with the keys of s3; * = any."
    )
    allowed_networks: tuple[str, ...] = Field(
        (),
        description="Private networks whose hosts may be asked, for example 10.0.0.0/8. Link-local and metadata addresses are "
        "refused even so.",
    )
    proxy: str | None = Field(
        None, description="http://host:port that http(s) pictures are fetched through; needs allowed_hosts."
    )
    per_host: int = Field(4, ge=1, le=64, description="Pictures fetched from one host at a time, per process.")
    attempts: int = Field(3, ge=1, description="Times that a busy or failing host is asked for one picture.")
    fresh_seconds: float = Field(
        12 * 3600.0, ge=0, description="A good picture that was looked at this recently is not asked for again."
    )
    cache_mib: int = Field(
        2_048, ge=1, description="Pictures kept in state_dir/cache/pictures; the least recently used go first."
    )
    away_share: Share = Field(
        0.1,
        description="Share of a night's addresses that were never seen and whose hosts are away, past which the night stops "
        "instead of going on without them.",
    )

    @field_validator("allowed_networks")
    @classmethod
    def _networks_parse(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)
        return networks

    @model_validator(mode="after")
    def _a_proxy_needs_the_hosts(self) -> Self:
        if self.proxy and not set(self.allowed_hosts) - {"*"}:
            raise ValueError(
                "images.proxy needs images.allowed_hosts: behind a proxy we cannot see which addresses are private"
            )
        return self


class OnlineSettings(_Group):
    """A store of the Redis protocol that each night's posters are exported to, for teams that read online."""

    redis_url: SecretStr | None = Field(
        None,
        description="redis://user:password@host:port/number (rediss:// for TLS); empty = no export. Extra `redis`.",
    )
    prefix: str = Field("pigeon", min_length=1, description="First part of every key.")
    expire_hours: float = Field(
        168.0, gt=0, description="Lifetime of a night's posters there; longer than nights may fail to come."
    )
    timeout_seconds: Seconds = 10.0


class ScheduleSettings(_Group):
    """`pigeon schedule`: cron expressions in one named time zone."""

    time_zone: str = "UTC"
    night_cron: str = Field(
        "0 2 * * *",
        description="minute hour day month weekday, as cron means them: 0 and 7 are Sunday; where day and weekday are both "
        "given, either of them will do.",
    )
    clicks_cron: str = Field(
        "0 1 * * *",
        description="When the click model is fitted that nights choose by; before the night, which never waits for it.",
    )
    retrain_cron: str = "0 5 * * mon"
    canary_cron: str = Field(
        "0 6 * * *", description="When the running canary is judged and old adapters are unloaded."
    )
    upkeep_cron: str = "30 0 * * *"
    erasure_cron: str = Field(
        "*/5 * * * *", description="Requests to erase users, and users' objections, reach readers and files this often."
    )
    misfire_grace_seconds: int = Field(
        4 * 3600, ge=1, description="A moment at which no scheduler was running is made up for within this time."
    )
    deadline_minutes: float = Field(
        480.0, gt=0, description="Counted from the due moment: a job that fails is tried again until then."
    )
    retry_first_seconds: Seconds = Field(
        60.0, description="Wait before the second try; doubled for each further one..."
    )
    retry_longest_seconds: Seconds = Field(900.0, description="...up to this. A held lease is tried at the first wait.")
    upkeep_yields_minutes: float = Field(
        15.0, ge=0, description="Upkeep does not start when the night is due within this time."
    )
    alarm_at: str | None = Field(
        None, description="HH:MM local: a night that is not published by then is an alarm; none when empty."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that metrics_port listens on.")
    metrics_port: int | None = Field(None, description="Prometheus, liveness and readiness; none when empty.")
    retention_months: int = Field(
        24,
        ge=1,
        description="Months of interactions this old, in which nothing came in since, are detached and dropped.",
    )
    partitions_ahead_months: int = Field(3, ge=1)

    @field_validator("alarm_at")
    @classmethod
    def _alarm_is_a_time(cls, alarm_at: str | None) -> str | None:
        if alarm_at is not None and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", alarm_at):
            raise ValueError(f"{alarm_at!r} is not HH:MM, for example 06:30")
        return alarm_at


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    state_dir: Path = Field(Path(".pigeon"), description="Embedded servers' data, logs, caches, work files.")
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    kafka: KafkaSettings = KafkaSettings()
    database: DatabaseSettings = DatabaseSettings()
    s3: S3Settings = S3Settings()
    triton: TritonSettings = TritonSettings()
    consumer: ConsumerSettings = ConsumerSettings()
    night: NightSettings = NightSettings()
    images: ImageSettings = ImageSettings()
    history: HistorySettings = HistorySettings()
    ray: RaySettings = RaySettings()
    online: OnlineSettings = OnlineSettings()
    safety: SafetySettings = SafetySettings()
    reader: ReaderSettings = ReaderSettings()
    clicks: ClickSettings = ClickSettings()
    retrain: RetrainSettings = RetrainSettings()
    canary: CanarySettings = CanarySettings()
    schedule: ScheduleSettings = ScheduleSettings()
    retention: RetentionSettings = RetentionSettings()
    models: ModelSettings = ModelSettings()
    web: WebSettings = WebSettings()
    compute: ComputeSettings = ComputeSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        secrets = secret_variables(settings_cls, PREFIX)
        for source in (env_settings, dotenv_settings):
            if isinstance(source, EnvSettingsSource):
                source.env_vars = with_files_read(source.env_vars, secrets)
        toml = TomlConfigSettingsSource(settings_cls, Path(os.environ.get("PIGEON_CONFIG_FILE", "pigeon.toml")))
        return init_settings, env_settings, dotenv_settings, toml


def _unknown_variable(name: str) -> str | None:
    """The innermost part of `name` that no setting has, or None when it is a setting."""
    model: type[BaseModel] = Settings
    for part in name.removeprefix(PREFIX).lower().split("__"):
        field = model.model_fields.get(part)
        if field is None:
            return part
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return None


def load_settings(**overrides: Any) -> Settings:
    """Read the effective settings.

    Raises:
        InputError: a setting is unknown or has a bad value; the message names it and the fix.
    """
    secrets = secret_variables(Settings, PREFIX)
    for name in os.environ:
        known = name in NOT_SETTINGS or name.removesuffix(SUFFIX) in secrets
        if name.startswith(PREFIX) and not known and _unknown_variable(name):
            raise InputError(f"unknown setting {name}: no such name; `pigeon settings` lists them all")
    config_file = os.environ.get("PIGEON_CONFIG_FILE")
    if config_file and not Path(config_file).is_file():
        raise InputError(f"PIGEON_CONFIG_FILE={config_file}: no such file")
    state_dir = Path(overrides.get("state_dir") or os.environ.get("PIGEON_STATE_DIR", ".pigeon"))
    env_file = state_dir / "env"
    try:
        return Settings(_env_file=env_file if env_file.is_file() else None, **overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"unknown setting {name}: `pigeon settings` lists them all") from None
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"setting {name} (PIGEON_{'__'.join(str(p) for p in first['loc']).upper()}): {message}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{config_file or 'pigeon.toml'}: not valid TOML: {error}") from None
