"""A night's events read back from a real broker; the model is a test double."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from generator.nightly.announce import KafkaAnnouncer
from generator.nightly.plan import Scope
from generator.storage.objects import Store
from schemas.events import PUBLISHED, PosterPublished
from schemas.manifest import POINTER_KEY, Pointer
from schemas.settings import Settings
from schemas.settings_kafka import KafkaSettings
from tests.support.night_world import build, night, reader

pytestmark = pytest.mark.integration


def read_topic(settings: KafkaSettings) -> list[tuple[str, PosterPublished]]:
    """Key and event of every record of `posters.published.v1` up to its present end."""
    consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap_servers, group_id=None, enable_auto_commit=False)
    topic = settings.topic_prefix + PUBLISHED
    partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    found: list[tuple[str, PosterPublished]] = []
    deadline = time.monotonic() + 60
    # The embedded broker's `end_offsets` are wrong; its fetches know where the log ends.
    while any((end := consumer.highwater(one)) is None or consumer.position(one) < end for one in partitions):
        assert time.monotonic() < deadline
        for records in consumer.poll(timeout_ms=500).values():
            found += [(r.key.decode(), PosterPublished.model_validate_json(r.value)) for r in records]
    consumer.close()
    return found


def test_events_read_back_from_the_broker_are_the_manifests_posters(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    night(settings, announcements=KafkaAnnouncer(settings.kafka)).run(Scope())
    pointer = Store(settings.s3).get(POINTER_KEY)
    assert pointer
    manifest_key = Pointer.parse(pointer.body).current.manifest_key
    rows = {row["poster_id"]: row for row in reader(settings).rows().to_pylist()}
    events = read_topic(settings.kafka)
    assert sorted(event.poster_id for _, event in events) == sorted(rows), "each poster once, and nothing else"
    for key, event in events:
        row = rows[event.poster_id]
        for name in ("user_id", "item_id", "variant", "image_key", "model_version"):
            assert getattr(event, name) == row[name], name
        assert event.propensity == pytest.approx(row["propensity"])
        assert event.manifest_key == manifest_key
        assert key == event.user_id
    night(settings, announcements=KafkaAnnouncer(settings.kafka)).run(Scope())
    assert len(read_topic(settings.kafka)) == len(events), "the same night again announces nothing"
