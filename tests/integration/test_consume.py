"""`pigeon consume` on real servers: what comes in by each topic ends in its table, once."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consumers.files.produce import Producer
from schemas.connections import s3_client, s3_options
from schemas.events import (
    CATALOG,
    CONSUMED,
    INTERACTIONS,
    CatalogItem,
    Erasure,
    Interaction,
    Objection,
    PosterFeedback,
    Recommendations,
)
from schemas.settings import Settings
from tests.support.consume_world import START, changed, click, consume, event_id, query, send, send_raw

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]  # a hang ends, a busy machine does not fail
Pigeon = Callable[..., "subprocess.CompletedProcess[str]"]


def test_every_topic_ends_in_its_table_once(settings: Settings):
    later = START + timedelta(days=1)
    send(
        settings,
        [
            CatalogItem(item_id="i1", title="A\ttitle\\n", genres=["x|y", "{z}", '"'], attributes={"a": ["\n", None]}),
            click(1),
            click(2, kind="skip"),
            Recommendations(user_id="u1", item_ids=["b", "a"], occurred_at=later),
            Recommendations(user_id="u1", item_ids=["old"], occurred_at=START),
            PosterFeedback(
                event_id=event_id(9),
                poster_id="p1",
                user_id="u1",
                item_id="i1",
                action="click",
                position=3,
                surface="home",
                propensity=0.25,
                occurred_at=later,
            ),
            Objection(user_id="u1", objects=True, occurred_at=later, reason="no drawings, please"),
            Objection(user_id="u1", objects=False, occurred_at=START),
        ],
    )
    summary = consume(settings, CONSUMED)
    assert (summary.records, summary.poison) == (8, 0)
    assert query(settings, "SELECT title, genres, attributes FROM items") == [
        ("A\ttitle\\n", ["x|y", "{z}", '"'], {"a": ["\n", None]})
    ]
    assert query(settings, "SELECT count(*) FROM interactions") == [(2,)]
    assert query(settings, "SELECT item_ids FROM recommendations") == [(["b", "a"],)]
    assert query(settings, "SELECT poster_id, position, propensity FROM poster_feedback") == [("p1", 3, 0.25)]
    assert query(settings, "SELECT user_id, objects, occurred_at, reason FROM user_objections") == [
        ("u1", True, later, "no drawings, please")
    ]
    ((entries, count),) = query(settings, "SELECT entries, interaction_count FROM user_histories")
    assert ([entry["item_id"] for entry in entries], count) == (["i1"], 1), "a skip is no sign of taste"
    assert consume(settings, CONSUMED).records == 0, "the second run goes on where the first ended"


def expected_history(events: Iterable[Interaction], user: str, size: int, positive: tuple[str, ...]) -> list[str]:
    mine = {e.event_id: e for e in events if e.user_id == user and e.kind in positive}
    newest = sorted(mine.values(), key=lambda e: (e.occurred_at, e.event_id), reverse=True)
    return [str(e.event_id) for e in newest[:size]]


def test_histories_do_not_depend_on_order_or_repetition(settings: Settings):
    chance = random.Random(20261123)
    events = [
        click(
            number,
            f"u{chance.randrange(5)}",
            START + timedelta(minutes=chance.randrange(40)),  # many ties
            kind=chance.choice(["click", "like", "skip"]),
        )
        for number in range(400)
    ]
    small = changed(settings, "consumer", batch_max_records=37, history_size=20)
    expected = {f"u{n}": expected_history(events, f"u{n}", 20, settings.consumer.positive_kinds) for n in range(5)}
    for _ in range(2):  # the second round brings nothing new
        shuffled = events + chance.sample(events, 100)
        chance.shuffle(shuffled)
        send(settings, shuffled)
        consume(small)
        rows = query(settings, "SELECT user_id, entries, interaction_count, fingerprint FROM user_histories")
        assert {user: [e["event_id"] for e in entries] for user, entries, _, _ in rows} == expected
        positive = [e for e in events if e.kind in settings.consumer.positive_kinds]
        assert {user: count for user, _, count, _ in rows} == {
            user: sum(e.user_id == user for e in positive) for user in expected
        }
        assert query(settings, "SELECT count(*), count(DISTINCT event_id) FROM interactions") == [(400, 400)]


def test_a_clock_that_runs_ahead_does_not_lead_the_history(settings: Settings):
    far = datetime(2150, 1, 1, tzinfo=UTC)
    send(settings, [click(1, at=far), click(2, at=datetime.now(UTC) + timedelta(seconds=30))])
    assert consume(settings).clamped == 1
    send(settings, [click(1, at=far)])
    assert consume(settings).written.duplicates == 1, "clamped to another time, still the same event"
    rows = query(settings, "SELECT event_id::text, occurred_at <= now(), claimed_at FROM interactions ORDER BY 1")
    assert rows == [(str(event_id(1)), True, far), (str(event_id(2)), False, None)]
    ((entries,),) = query(settings, "SELECT entries FROM user_histories")
    assert [e["event_id"] for e in entries] == [str(event_id(2)), str(event_id(1))]
    assert query(settings, "SELECT count(*) FROM pg_class WHERE relname LIKE 'interactions_215%%'") == [(0,)]


def test_the_catalogue_keeps_what_is_newest(settings: Settings):
    def item(title: str, day: int) -> CatalogItem:
        return CatalogItem(item_id="i1", title=title, occurred_at=START + timedelta(days=day))

    def stored() -> list[tuple[Any, ...]]:
        return query(settings, "SELECT title, deleted_at IS NOT NULL FROM items")

    send(settings, [item("second", 2), item("first", 1)])
    summary = consume(settings, [CATALOG])
    assert (stored(), summary.written.stale) == ([("second", False)], 1)
    send(settings, [item("older still", 0)])
    consume(settings, [CATALOG])
    assert stored() == [("second", False)]
    with Producer(settings.kafka) as producer:
        producer.delete_item("i1")
        producer.delete_item("never-seen")
    consume(settings, [CATALOG])
    assert query(settings, "SELECT title FROM items WHERE item_id = 'i1' AND deleted_at IS NOT NULL") == [("second",)]
    send(settings, [CatalogItem(item_id="i1", title="back")])
    consume(settings, [CATALOG])
    assert query(settings, "SELECT title, deleted_at FROM items WHERE item_id = 'i1'") == [("back", None)]


def test_an_erased_user_is_gone_and_stays_gone(settings: Settings):
    asked = START + timedelta(hours=10)
    before, after = asked - timedelta(hours=1), asked + timedelta(hours=1)

    def shown(number: int, user: str, at: datetime) -> PosterFeedback:
        return PosterFeedback(
            event_id=event_id(number), poster_id="p", user_id=user, item_id="i", action="impression", occurred_at=at
        )

    send(
        settings,
        [
            *(
                event
                for user in ("gone", "stays")
                for event in (
                    click(1 if user == "gone" else 2, user, before),
                    shown(3 if user == "gone" else 4, user, before),
                    Recommendations(user_id=user, item_ids=["a"], occurred_at=before),
                    Objection(user_id=user, objects=True, occurred_at=before),
                )
            ),
        ],
    )
    consume(settings, CONSUMED)
    send(settings, [Erasure(user_id="gone", occurred_at=asked)])
    summary = consume(settings, CONSUMED)
    assert summary.written.erased == 5
    for table in ("interactions", "user_histories", "recommendations", "poster_feedback", "user_objections"):
        assert query(settings, f"SELECT DISTINCT user_id FROM {table}") == [("stays",)]  # noqa: S608 - names of ours
    ((requested, completed, proof),) = query(settings, "SELECT requested_at, completed_at, proof FROM erasures")
    assert (requested, completed) == (asked, None), "images and manifests are the night's to erase"
    assert "erased_at" in proof["consumer"]

    # What comes late is dropped and counted; what they do afterwards is a new beginning. Twice, as queues do.
    late = [
        click(5, "gone", before),
        shown(6, "gone", before),
        Recommendations(user_id="gone", item_ids=["a"], occurred_at=before),
        Objection(user_id="gone", objects=True, occurred_at=before),
    ]
    send(settings, [*late, click(7, "gone", after), Erasure(user_id="gone", occurred_at=asked)])
    summary = consume(settings, CONSUMED)
    assert summary.written.forgotten == 4
    assert query(settings, "SELECT event_id::text FROM interactions WHERE user_id = 'gone'") == [(str(event_id(7)),)]
    ((entries, count),) = query(
        settings, "SELECT entries, interaction_count FROM user_histories WHERE user_id = 'gone'"
    )
    assert ([e["event_id"] for e in entries], count) == ([str(event_id(7))], 1)


POISON: list[tuple[bytes | None, str]] = [
    (b"\xff\x00\xfe", "bad_json"),
    (b"{", "bad_json"),
    (None, "null_value"),
    (b"[]", "invalid"),
    (b'{"schema_version": 2}', "invalid"),
    (b'{"user_id": "\\ud800"}', "bad_json"),
    (json.dumps({**json.loads(click(1).model_dump_json()), "user_id": "a\x00b"}).encode(), "invalid"),
    (b"x" * 900_000, "too_large"),
]


def test_poison_goes_aside_alone_and_can_be_replayed(settings: Settings, pigeon: Pigeon):
    good = [click(number).model_dump_json().encode() for number in range(200)]
    mixed: list[bytes | None] = list(good)
    for index, (value, _) in enumerate(POISON):
        mixed.insert(20 * index + 7, value)
    send_raw(settings, INTERACTIONS, mixed)
    summary = consume(settings)
    assert (summary.records, summary.poison) == (208, 8)
    assert query(settings, "SELECT count(*) FROM interactions") == [(200,)]

    listed = pigeon("dlq", "list")
    assert listed.stdout.splitlines()[-1] == "dead letters: 8 open", listed.stderr
    reasons = [line.split()[1] for line in listed.stdout.splitlines()[:-1]]
    assert reasons == [reason for _, reason in POISON]
    place = listed.stdout.split()[0]
    shown = pigeon("dlq", "show", place).stdout
    assert "from: test" in shown
    assert f"pigeon-source-topic: {settings.kafka.topic_prefix}{INTERACTIONS}" in shown
    assert "value: \\xff" in shown

    # With a higher limit one of them is no poison any more... it is still no JSON, and comes back with a reason of its own.
    assert pigeon("dlq", "replay", "--reason", "too_large").stdout.endswith("1 replayed\n")
    assert consume(changed(settings, "consumer", max_event_bytes=2**20)).poison == 1
    assert pigeon("dlq", "drop").returncode == 2, "everything at once must be asked for"
    assert pigeon("dlq", "drop", "--reason", "invalid", "--limit", "2").stdout.endswith("2 dropped\n")
    after = pigeon("dlq", "list").stdout
    assert after.endswith("dead letters: 6 open\n"), after
    assert "too_large" not in after


def test_a_row_that_only_postgres_refuses_goes_aside_alone(settings: Settings):
    query(settings, "ALTER TABLE interactions ADD CONSTRAINT no_seven CHECK (item_id <> 'i7')")
    send(settings, [click(number) for number in range(50)])
    summary = consume(settings)
    assert summary.written.rows[INTERACTIONS] == 49
    assert query(settings, "SELECT count(*), count(*) FILTER (WHERE item_id = 'i7') FROM interactions") == [(49, 0)]
    ((entries,),) = query(settings, "SELECT entries FROM user_histories")
    assert len(entries) == 49


def test_a_year_of_long_ago_without_a_partition_is_made(settings: Settings):
    send(
        settings,
        [click(1, at=datetime(1997, 12, 31, 23, 59, 59, tzinfo=UTC)), click(2, at=datetime(1998, 1, 1, tzinfo=UTC))],
    )
    assert consume(settings).written.partitions_made == 2
    assert query(settings, "SELECT tableoid::regclass::text FROM interactions ORDER BY 1") == [
        ("interactions_1997",),
        ("interactions_1998",),
    ]


def test_a_catalogue_file_comes_in_with_its_pictures(settings: Settings, pigeon: Pigeon, tmp_path: Path):
    (tmp_path / "art").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "art" / "one.png")
    rows = [
        {
            "item_id": "m1",
            "title": "One",
            "genres": ["Drama"],
            "image_uri": "art/one.png",
            "attributes": {"synthetic": True},
        },
        {"item_id": "m2", "title": "Two", "image_uri": "art/none.png"},
    ]
    file = tmp_path / "catalog.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    done = pigeon("catalog", "import", str(file))
    assert done.returncode == 7, done.stderr  # half of its rows are no small share
    assert done.stdout.splitlines()[-1].startswith(
        "catalog.jsonl: 1 rows, 1 pictures uploaded; 1 skipped (unreadable picture: 1)"
    )
    assert "line 2: image" in done.stderr
    assert "none.png" in done.stderr
    ended = pigeon("consume", "--until-idle", "0.5")
    assert ended.returncode == 0, ended.stderr
    ((uri, attributes),) = query(settings, "SELECT image_uri, attributes FROM items")
    assert attributes == {"synthetic": True}
    s3 = settings.s3
    client = s3_client(**s3_options(s3))
    stored = client.get_object(Bucket=s3.bucket, Key=uri.removeprefix(f"s3://{s3.bucket}/"))
    assert stored["ContentType"] == "image/png"
    assert stored["Body"].read() == (tmp_path / "art" / "one.png").read_bytes()
    client.close()
    again = pigeon("catalog", "import", str(file))
    assert ", 1 pictures" not in again.stdout, "the same content is not uploaded twice"
