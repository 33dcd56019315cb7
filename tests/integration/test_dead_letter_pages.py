"""Pages of open dead letters, from their index alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from consumers import dead_letters
from schemas.events import DLQ_SUFFIX, INTERACTIONS
from schemas.settings import Settings
from tests.support.consume_world import connected, query

pytestmark = pytest.mark.integration


def dlq(settings: Settings) -> str:
    return settings.kafka.topic_prefix + INTERACTIONS + DLQ_SUFFIX


def test_a_page_is_found_by_the_index_and_the_list_goes_on_behind_it(settings: Settings) -> None:
    now = datetime(2026, 11, 29, 3, tzinfo=UTC)
    query(
        settings,
        """INSERT INTO dead_letters (topic, topic_id, partition, "offset", source, source_timestamp, reason, detail, written_at)
           SELECT %s, '', 0, n, 'x/0/' || n, n, 'invalid', '', %s::timestamptz + n * interval '1 second'
           FROM generate_series(1, 30000) AS n""",
        dlq(settings),
        now,
    )
    query(settings, "INSERT INTO dead_letter_marks VALUES ('t', '', 0, 0, now())")
    query(settings, "ANALYZE dead_letters")
    first = dead_letters.listed(settings, limit=50)
    assert [letter.offset for letter in first.letters] == list(range(1, 51))
    assert first.count == dead_letters.COUNTED + 1
    second = dead_letters.listed(settings, after=first.letters[-1].place, limit=50)
    assert [letter.offset for letter in second.letters] == list(range(51, 101))
    gone = dead_letters.listed(settings, after=f"{dlq(settings)}/0/99999", limit=1)
    assert gone.letters == first.letters[:1], "behind what has gone the list begins again"
    values = dead_letters._wanted(settings, INTERACTIONS, None)
    query_text = (
        f"EXPLAIN SELECT {dead_letters._COLUMNS} {dead_letters._OPEN}{dead_letters._AFTER}{dead_letters._ORDER}"
    )
    with connected(settings) as cursor:
        cursor.execute(
            query_text,
            values | {"limit": 50, "at": now, "after_topic": dlq(settings), "after_partition": 0, "after_offset": 9},
        )
        plan = "\n".join(line for (line,) in cursor)
    assert "ix_dead_letters_written_at" in plan
