"""What Prometheus is told of nights and of the loop: rows of real nights, read at a scrape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from sqlalchemy.orm import Session

from generator.metrics import names
from generator.metrics.collector import StoredMetrics
from generator.nightly.plan import Scope
from generator.storage.postgres import connect
from schemas.manifest_metrics import ReaderMetrics
from schemas.settings import Settings
from schemas.tables import ClickModel, Erasure, ModelEvent, ModelVersion, PreferenceSnapshot, Withdrawal
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night, reader

pytestmark = pytest.mark.integration


def scrape(settings: Settings) -> CollectorRegistry:
    """A registry that shows the settings' database as it is now."""
    made = CollectorRegistry()
    made.register(StoredMetrics(settings))
    return made


def midnight() -> float:
    return datetime(NIGHT.year, NIGHT.month, NIGHT.day, tzinfo=UTC).timestamp()


def test_a_database_without_nights_is_reachable_and_shows_nothing_of_them(settings: Settings) -> None:
    shown = scrape(settings)
    assert shown.get_sample_value("pigeon_database_reachable") == 1
    assert shown.get_sample_value("pigeon_night_started_timestamp_seconds") is None
    assert shown.get_sample_value("pigeon_champion_number") == 0
    assert shown.get_sample_value("pigeon_erasure_oldest_seconds") == 0
    assert (shown.get_sample_value("pigeon_database_bytes") or 0) > 1e6
    assert shown.get_sample_value("pigeon_disk_free_bytes")


def test_a_published_night_shows_in_figures(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    began = datetime.now(UTC).timestamp()
    night(settings, FakePigeon()).run(Scope())
    shown = scrape(settings)

    def value(name: str, **labels: str) -> float | None:
        return shown.get_sample_value(name, labels)

    assert value("pigeon_night_status", status="published") == 1
    assert value("pigeon_night_status", status="running") == 0
    assert value("pigeon_night_tasks", status="done") == 6
    assert value("pigeon_night_tasks", status="pending") == 0
    posters = len(reader(settings).rows())
    assert value("pigeon_night_posters", kind="drawn") == posters
    assert value("pigeon_night_pictures", kind="drawn")
    assert value("pigeon_night_uploaded_bytes")
    assert (
        value("pigeon_night_date_timestamp_seconds") == value("pigeon_published_date_timestamp_seconds") == midnight()
    )
    for name in ("pigeon_night_started_timestamp_seconds", "pigeon_night_progress_timestamp_seconds"):
        assert began - 60 < (value(name) or 0) < began + 600
    assert (value("pigeon_published_timestamp_seconds") or 0) >= began - 1
    assert value("pigeon_unannounced_nights") == 0

    of_reader = CollectorRegistry()
    of_reader.register(ReaderMetrics(reader(settings)))
    assert of_reader.get_sample_value("pigeon_reader_set_date_timestamp_seconds") == midnight()
    assert of_reader.get_sample_value("pigeon_reader_set_posters") == posters
    assert of_reader.get_sample_value("pigeon_reader_alarms_total", {"alarm": "manifest_missing"}) == 0


def test_the_loop_and_what_waits_show(settings: Settings) -> None:
    now = datetime.now(UTC)
    overdue = settings.canary.max_days + 2
    with Session(connect(settings.database)) as session, session.begin():
        session.add(ModelVersion(version="nano-1", number=1, state="champion", base_sha256="b", metrics={}))
        session.add(ModelVersion(version="nano-2", number=2, state="canary", base_sha256="b", metrics={}))
        session.flush()
        for days, state in ((overdue + 1, "challenger"), (overdue, "canary")):
            at = now - timedelta(days=days)
            session.add(ModelEvent(version="nano-2", to_state=state, reason="r", actor="a", at=at, figures={}))
        session.add(Erasure(user_id="u1", requested_at=now - timedelta(hours=3), proof={}))
        session.add(Erasure(user_id="u2", requested_at=now - timedelta(days=9), completed_at=now, proof={}))
        session.add(Withdrawal(kind="item", subject="i", reason="r", actor="a"))
        window = {"window_start": now - timedelta(days=30), "window_end": now - timedelta(days=2)}
        session.add(PreferenceSnapshot(snapshot_id="s", key="k", train_pairs=90, holdout_pairs=10, counts={}, **window))
        session.add(
            ClickModel(
                model_id="c",
                number=1,
                state="active",
                reason="",
                base_weights="b",
                artifact=b"",
                metrics={},
                counts={},
                **window,
            )
        )
    shown = scrape(settings)
    assert shown.get_sample_value("pigeon_champion_number") == 1
    assert shown.get_sample_value("pigeon_model_versions", {"state": "canary"}) == 1
    assert shown.get_sample_value("pigeon_model_changes", {"to": "canary"}) == 1
    assert shown.get_sample_value("pigeon_canary_age_seconds") == pytest.approx(overdue * 86_400, abs=300)
    assert shown.get_sample_value("pigeon_canary_overdue_seconds") == pytest.approx(2 * 86_400, abs=300)
    assert shown.get_sample_value("pigeon_click_model_age_seconds") == pytest.approx(2 * 86_400, abs=300)
    assert shown.get_sample_value("pigeon_snapshot_pairs", {"split": "holdout"}) == 10
    assert shown.get_sample_value("pigeon_erasures_open") == 1
    assert shown.get_sample_value("pigeon_erasure_oldest_seconds") == pytest.approx(3 * 3600, abs=300)
    assert shown.get_sample_value("pigeon_withdrawals", {"kind": "item"}) == 1


def test_postgres_that_is_away_is_a_metric_and_no_failed_scrape(settings: Settings) -> None:
    nowhere = SecretStr("postgresql+psycopg2://nobody@127.0.0.1:1/none")
    away = settings.model_copy(update={"database": settings.database.model_copy(update={"url": nowhere})})
    shown = scrape(away)
    assert shown.get_sample_value("pigeon_database_reachable") == 0
    assert shown.get_sample_value("pigeon_erasures_open") is None
    assert shown.get_sample_value("pigeon_disk_size_bytes")


def test_metrics_of_one_name_have_one_meaning() -> None:
    assert len({metric.name for metric in names.ALL}) == len(names.ALL)
