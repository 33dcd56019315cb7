"""The index of dead letters follows their topics; letters of erased users are hidden."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from consumers import dead_letter_topics, dead_letters
from consumers.kafka import clients
from schemas import faultpoints
from schemas.errors import Refused
from schemas.events import DLQ_SUFFIX, INTERACTIONS, Erasure
from schemas.settings import Settings
from tests.support.apache_kafka import BROKERS
from tests.support.consume_world import Victim, click, consume, query, send, send_raw

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(300)]
ROWS = 'SELECT partition, "offset", source, source_timestamp, reason, detail, user_ids, written_at FROM dead_letters ORDER BY 1, 2'


@pytest.fixture
def at_points() -> Iterator[None]:
    yield
    faultpoints.handler = None


def dlq(settings: Settings) -> str:
    return settings.kafka.topic_prefix + INTERACTIONS + DLQ_SUFFIX


def in_topic(settings: Settings) -> int:
    """Records of the dead-letter topic, read without the index."""
    with dead_letter_topics._reader(settings, [dlq(settings)]) as (consumer, topics):
        consumer.seek_to_beginning(*topics.beginnings)
        return sum(len(found) for _, found, _ in dead_letter_topics._pages(consumer, topics, set(topics.beginnings)))


@pytest.mark.parametrize("quick", [BROKERS[0], BROKERS[2]], indirect=True)
def test_fault_1_killed_between_the_topics_write_and_the_indexs(quick: Settings, at_points: None):
    """Fault 1: a dead letter is in its topic, and its row is not; nothing is lost, nothing is there twice."""
    send_raw(quick, INTERACTIONS, [b"{", b'{"user_id": "u7"'])
    with Victim(quick, "dead_letters_sent", 1) as victim:
        assert victim.ended() == -signal.SIGKILL
    sent = in_topic(quick)
    assert sent >= 1
    assert query(quick, ROWS) == [], "its transaction died with it"
    page = dead_letters.listed(quick)  # nobody consumes: who looks finds them all the same
    assert (len(page.letters), page.count, page.behind) == (sent, sent, "")
    consume(quick)
    copies = in_topic(quick)
    assert copies == sent + 2, "all were sent again"
    by_consumer = query(quick, ROWS)
    assert len(by_consumer) == copies, "the consumer's own rows are in its transaction"
    assert len(dead_letters.open_letters(quick)) == 2, "once per source record"

    def die(point: str) -> None:
        if point == "letters indexed":
            raise KeyboardInterrupt

    query(quick, "TRUNCATE dead_letters, dead_letter_marks")
    faultpoints.handler = die
    with pytest.raises(KeyboardInterrupt):
        dead_letters.catch_up(quick)
    faultpoints.handler = None
    readers = [threading.Thread(target=dead_letters.catch_up, args=(quick,)) for _ in range(2)]
    for one in readers:
        one.start()
    for one in readers:
        one.join()
    assert query(quick, ROWS) == by_consumer, "read from the topic the rows are the same"
    assert dead_letters.catch_up(quick) == dead_letters.CaughtUp(0, 0)

    ours = dead_letters.open_letters(quick, reason="bad_json")
    assert dead_letters.drop(quick, ours[:1]) == 1
    query(quick, "TRUNCATE dead_letters, dead_letter_marks")
    assert len(dead_letters.open_letters(quick)) == 1, "what was dealt with stays so when the index is made again"


@pytest.mark.parametrize("quick", BROKERS[1:], indirect=True)  # without topic ids, and with them
def test_rows_go_with_the_records_and_a_recreated_topic_is_indexed_anew(quick: Settings):
    """Fault 19: a dead-letter topic that was recreated, and one that retention has shortened."""
    send_raw(quick, INTERACTIONS, [b"{"] * 3)
    consume(quick)
    assert len(dead_letters.open_letters(quick)) == 3
    admin = clients.admin(quick.kafka)
    if quick.kafka.topic_prefix.startswith("apache."):  # the others do not delete records when asked
        ((partition, second),) = query(quick, 'SELECT partition, min("offset") + 1 FROM dead_letters GROUP BY 1')
        admin.delete_records({clients.TopicPartition(dlq(quick), partition): second})
        assert dead_letters.catch_up(quick).removed == 1
        assert len(dead_letters.open_letters(quick)) == 2
    admin.delete_topics([dlq(quick)])
    while dlq(quick) in clients.topic_ids(admin, [dlq(quick)]):
        pass
    admin.create_topics({dlq(quick): {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    send_raw(quick, INTERACTIONS, [b"["])
    consume(quick)
    (left,) = dead_letters.read(quick)
    assert left.value == b"["
    assert query(quick, "SELECT count(*) FROM dead_letters") == [(1,)]


@pytest.mark.parametrize("quick", BROKERS[:1], indirect=True)
def test_fault_18_letters_of_an_erased_user_are_hidden_and_never_sent_again(quick: Settings):
    """Fault 18: dead letters, which only retention takes out of their topic."""
    good = click(1, "u7").model_dump_json().encode()
    wrapped = b'{"payload": {"after": ' + good + b"}}"
    send_raw(quick, INTERACTIONS, [good[:-3], wrapped, b"\xff"], key=b"k")
    send_raw(quick, INTERACTIONS, [b"{"], key=b"u7")
    send_raw(quick, INTERACTIONS, [b"{"], key=b"u8")
    consume(quick)
    before = dead_letters.open_letters(quick)
    assert len(before) == 5
    send(quick, [Erasure(user_id="u7", occurred_at=datetime.now(UTC) + timedelta(seconds=1))])
    consume(quick, ["users.erasure.v1"])
    left = dead_letters.open_letters(quick)
    assert {letter.value for letter in dead_letters.read(quick)} == {b"\xff", b"{"}
    for letter in before:
        if letter in left:
            assert dead_letters.find(quick, letter.place).place == letter.place
        else:
            with pytest.raises(Refused, match="is hidden"):
                dead_letters.find(quick, letter.place)
    assert [one.count for one in dead_letters.stats(quick)] == [2]
    assert dead_letters.listed(quick).count == 2
