"""Every metric that is read from Postgres, by name and unit."""

from __future__ import annotations

from schemas.runtime.metrics import Metric

REACHABLE = Metric(
    "pigeon_database_reachable", "1 when Postgres answered this scrape; without it the others are missing."
)

NIGHT_STATUS = Metric("pigeon_night_status", "1 for the status of the latest night.", ("status",))
NIGHT_DATE = Metric("pigeon_night_date_timestamp_seconds", "Logical date of the latest night, as its midnight in UTC.")
NIGHT_STARTED = Metric("pigeon_night_started_timestamp_seconds", "When the latest night was planned.")
NIGHT_PROGRESS = Metric(
    "pigeon_night_progress_timestamp_seconds", "When the latest night last stored what it has drawn, or ended."
)
NIGHT_TASKS = Metric("pigeon_night_tasks", "Tasks of the latest night.", ("status",))
NIGHT_SKIPPED = Metric("pigeon_night_skipped", "Users and items that the latest night leaves out.", ("reason",))
NIGHT_POSTERS = Metric(
    "pigeon_night_posters",
    "Posters of the latest night: drawn, carried over, withheld; since it is published.",
    ("kind",),
)
NIGHT_PICTURES = Metric("pigeon_night_pictures", "Pictures of the latest night, drawn and reused.", ("kind",))
NIGHT_REFUSALS = Metric(
    "pigeon_night_refused_pictures", "Pictures that tasks of the latest night did not keep.", ("reason",)
)
NIGHT_SECONDS = Metric(
    "pigeon_night_drawing_seconds", "Time that the latest night has drawn, all its processes together."
)
NIGHT_STAGE_SECONDS = Metric(
    "pigeon_night_stage_seconds", "Time at work in the latest night, of several at once.", ("stage",)
)
NIGHT_RETRIES = Metric("pigeon_night_model_retries", "Requests that the latest night sent to Triton again.")
NIGHT_UPLOADED = Metric("pigeon_night_uploaded_bytes", "Bytes that the latest night has uploaded.")
NIGHT_REQUESTS = Metric(
    "pigeon_night_triton_requests", "Requests of the latest night, answered and failed.", ("server", "outcome")
)
NIGHT_UNUSED = Metric(
    "pigeon_night_triton_unused", "1 where the latest night did not use a Triton server.", ("server",)
)
PUBLISHED = Metric("pigeon_published_timestamp_seconds", "When the newest published night was published.")
PUBLISHED_DATE = Metric(
    "pigeon_published_date_timestamp_seconds", "Logical date of the newest published night, as its midnight in UTC."
)
UNANNOUNCED = Metric("pigeon_unannounced_nights", "Published nights whose events Kafka has not taken yet.")

VERSIONS = Metric("pigeon_model_versions", "Model versions.", ("state",))
CHANGES = Metric("pigeon_model_changes", "Changes of versions' states, all together.", ("to",))
CHAMPION = Metric("pigeon_champion_number", "Number of the adapter that serves; 0 is the checkpoint as shipped.")
CANARY_AGE = Metric("pigeon_canary_age_seconds", "Time since the running canary began; missing without one.")
CANARY_OVERDUE = Metric(
    "pigeon_canary_overdue_seconds", "Time since the running canary was to end by canary.max_days; 0 before."
)
CLICK_MODEL_AGE = Metric(
    "pigeon_click_model_age_seconds", "Time since the end of the active click model's window; missing without one."
)
PAIRS = Metric("pigeon_snapshot_pairs", "Preference pairs of the newest snapshot.", ("split",))
SNAPSHOT = Metric("pigeon_snapshot_timestamp_seconds", "When the newest snapshot of pairs was made.")

ERASURES_OPEN = Metric("pigeon_erasures_open", "Requests to erase a user that are not completed.")
ERASURE_AGE = Metric(
    "pigeon_erasure_oldest_seconds", "Age of the oldest request to erase a user that is open; 0 without."
)
WITHDRAWALS = Metric("pigeon_withdrawals", "Withdrawals in force.", ("kind",))
DATABASE_BYTES = Metric("pigeon_database_bytes", "Size of the database.")
DISK_FREE = Metric("pigeon_disk_free_bytes", "Free bytes of the file system that state_dir is on.")
DISK_SIZE = Metric("pigeon_disk_size_bytes", "Size of the file system that state_dir is on.")

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order above."""
