"""The console: its pages, who may change what, and what is written down about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from generator.feedback import registry
from generator.nightly.plan import Scope
from generator.web import audit
from schemas.connections import kafka_options
from schemas.events import ERASURE, INTERACTIONS, Erasure
from schemas.settings import Settings
from schemas.tables import PreferenceSnapshot
from tests.support.night_world import START, build, night, reader
from tests.support.web_world import OPERATOR, READER, Web, running, web_settings

pytestmark = pytest.mark.integration
PAGES = ("", "/nights", "/posters", "/models", "/withdrawals", "/dead-letters", "/erasures", "/settings", "/audit")


@contextmanager
def signed_in(web: Web, token: str = OPERATOR) -> Iterator[httpx2.Client]:
    with web.client() as client:
        answer = client.post("/console/login", data={"token": token})
        assert answer.status_code == 303, answer.text
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        yield client


def csrf_of(client: httpx2.Client) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/console").text)
    assert found
    return found[1]


def test_every_page_of_an_empty_house_says_so(settings: Settings) -> None:
    with running(web_settings(settings)) as web:
        for path in PAGES:
            answer = web.get(f"/console{path}", READER)
            assert answer.status_code == 200, (path, answer.text)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "script" not in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(r"<script|style=|\son\w+=", answer.text), "a policy without scripts and styles inside"
        assert "No night yet" in web.get("/console", READER).text


def test_a_night_is_shown_with_its_posters_and_what_they_were_drawn_from(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    with running(web_settings(settings)) as web:
        page = web.get("/console", READER).text
        assert "night-20260301" in page
        assert "published" in page
        row = reader(settings).rows().to_pylist()[0]
        cards = web.get(f"/console/posters?user={row['user_id']}", READER).text
        assert f"/console/posters/{row['poster_id']}" in cards
        assert "Film of" in cards
        detail = web.get(f"/console/posters/{row['poster_id']}", READER).text
        assert "Answers that it was chosen from" in detail
        assert detail.count("variant 0") >= 1
        assert web.get("/console/posters/nothing", READER).status_code == 404


def test_lists_go_on_behind_their_last_row(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=12, targets=3)
    night(settings).run(Scope())
    expected = {row["poster_id"] for row in reader(settings).rows().to_pylist()}
    with running(web_settings(settings)) as web:
        seen: list[str] = []
        where = "/console/posters"
        while where:
            page = web.get(where, READER).text
            seen += dict.fromkeys(re.findall(r"/console/posters/([0-9a-f]{32})", page))
            more = re.search(r'rel="next" href="([^"]+)"', page)
            where = more[1].replace("&amp;", "&") if more else ""
    assert len(seen) == len(set(seen))
    assert set(seen) >= expected


def test_an_items_posters_are_found_by_an_index(settings: Settings, engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(text("SET enable_seqscan = off"))
        plan = session.execute(
            text("EXPLAIN SELECT * FROM posters WHERE item_id = 'a' AND poster_id > 'b' ORDER BY poster_id LIMIT 25")
        )
        assert "ix_posters_item_id_poster_id" in str(plan.all())


def test_a_poster_is_withdrawn_and_lifted_with_a_reason_that_is_kept(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    row = reader(settings).rows().to_pylist()[0]
    with running(web_settings(settings)) as web, signed_in(web) as client:
        form = {"csrf": csrf_of(client), "kind": "poster", "subject": row["poster_id"], "reason": "an ugly one"}
        done = client.post("/console/withdrawals", data=form)
        assert done.status_code == 303, done.text
        assert "withdrawn; readers leave it out" in client.get(done.headers["location"]).text
        assert row["poster_id"] in web.context.reader.posters.withdrawn.poster, "this server follows at once"
        without = client.post("/console/withdrawals", data={**form, "reason": " "})
        assert (without.status_code, "reason: say why" in without.text) == (422, True)
        lifted = client.post("/console/withdrawals/lift", data={**form, "reason": "on second thoughts"})
        assert lifted.status_code == 303
        unknown = client.post("/console/withdrawals", data={**form, "subject": "<b>none</b>"})
        assert unknown.status_code == 422
        assert "<b>none" not in unknown.text
    entries = [(one.actor, one.action, one.outcome, one.reason) for one in audit.read_page(engine, None, 10)]
    assert entries == [
        ("ann", "withdrawals", "refused", "an ugly one"),
        ("ann", "withdrawals/lift", "done", "on second thoughts"),
        ("ann", "withdrawals", "done", "an ugly one"),
    ]


def test_a_form_that_is_not_ours_changes_nothing(settings: Settings, engine: Engine) -> None:
    with running(web_settings(settings)) as web, signed_in(web) as client, signed_in(web) as other:
        form = {"kind": "user", "subject": "u1", "reason": "because"}
        for csrf in ("", "x.y", csrf_of(other)):
            assert client.post("/console/withdrawals", data={**form, "csrf": csrf}).status_code == 409
        own = {**form, "csrf": csrf_of(client)}
        evil = client.post("/console/withdrawals", data=own, headers={"Origin": "https://evil.example.com"})
        assert (evil.status_code, "another site" in evil.text) == (409, True)
        assert client.post("/console/withdrawals", json=own).status_code == 422
        assert audit.read_page(engine, None, 10) == []
        assert client.post("/console/withdrawals", data=own, headers={"Origin": web.address}).status_code == 303


def test_who_reads_changes_nothing(settings: Settings, engine: Engine) -> None:
    with running(web_settings(settings)) as web, signed_in(web, READER) as client:
        assert "read only" in client.get("/console").text
        assert '<button class="danger"' not in client.get("/console/withdrawals").text
        form = {"csrf": csrf_of(client), "kind": "user", "subject": "u1", "reason": "because"}
        for path in (
            "withdrawals",
            "withdrawals/lift",
            "nights/rollback",
            "models/change",
            "dead-letters/replay",
            "erasures",
        ):
            assert client.post(f"/console/{path}", data=form).status_code == 403, path
        assert client.post("/console/logout", data=form).status_code == 303
    assert audit.read_page(engine, None, 10) == []


def test_a_wrong_token_does_not_sign_in(settings: Settings) -> None:
    with running(web_settings(settings)) as web, web.client() as client:
        wrong = client.post("/console/login", data={"token": "guess"})
        assert (wrong.status_code, "not known" in wrong.text, "set-cookie" in wrong.headers) == (401, True, False)
        code = web.context.access.make_link_code()
        assert code in client.get(f"/console/login?code={code}").text
        assert client.post("/console/login", data={"token": code}).status_code == 303
        assert "sign-in-link" in client.get("/console").text


def test_a_dead_letter_is_looked_at_and_replayed_once(settings: Settings, engine: Engine, pigeon: object) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(**kafka_options(settings.kafka))
    topic = settings.kafka.topic_prefix + INTERACTIONS
    producer.send(topic, key=b"u1", value=b"<script>alert(1)</script>").get(timeout=20)
    producer.close()
    assert callable(pigeon)
    assert pigeon("consume", "--until-idle", "1").returncode == 0
    with running(web_settings(settings)) as web, signed_in(web) as client:
        listed = client.get("/console/dead-letters").text
        place = re.search(r'href="/console/dead-letters/([^"?]+/\d+/\d+)"', listed)
        assert place, listed
        shown = client.get(f"/console/dead-letters/{place[1]}")
        assert "&lt;script&gt;alert(1)" in shown.text
        form = {"csrf": csrf_of(client), "place": place[1], "reason": "the producer is mended"}
        first = client.post("/console/dead-letters/replay", data=form)
        assert first.status_code == 303, first.text
        assert "1 dead letter replayed" in client.get(first.headers["location"]).text
        second = client.post("/console/dead-letters/replay", data=form)
        assert (second.status_code, "dealt with already" in second.text) == (409, True)
        assert client.get("/console/dead-letters/nothing/0/0").status_code == 404
    assert [one.outcome for one in audit.read_page(engine, None, 10)] == ["refused", "done"]


def test_an_erasure_is_asked_for_by_event(settings: Settings) -> None:
    from kafka import KafkaConsumer

    with running(web_settings(settings)) as web, signed_in(web) as client:
        form = {"csrf": csrf_of(client), "user": "u7", "again": "u8", "reason": "a letter of 1 March"}
        assert "exactly alike" in client.post("/console/erasures", data=form).text
        done = client.post("/console/erasures", data={**form, "again": "u7"})
        assert done.status_code == 303, done.text
        assert "No request for this user" in client.get(done.headers["location"]).text
    consumer = KafkaConsumer(
        settings.kafka.topic_prefix + ERASURE,
        **kafka_options(settings.kafka),
        auto_offset_reset="earliest",
        consumer_timeout_ms=10_000,
    )
    assert [Erasure.model_validate_json(next(consumer).value).user_id] == ["u7"]
    consumer.close()


def test_a_refused_model_is_shown_with_its_numbers_and_stays_refused(settings: Settings, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        champion = registry.ensure_champion(session, "nano", "ab" * 32)
        session.add(
            PreferenceSnapshot(
                snapshot_id="s1",
                key="k",
                window_start=START,
                window_end=START,
                train_pairs=1,
                holdout_pairs=1,
                counts={},
            )
        )
        session.flush()
        made = registry.register(session, "nano", champion, "s1", "r1", "trained")
        made.metrics = {**made.metrics, "gate": {"accuracy": 0.481}}
        registry.change_state(session, made.version, "refused", "accuracy 0.481 is too low", {"accuracy": 0.481})
        name = made.version
    with running(web_settings(settings)) as web, signed_in(web) as client:
        shown = client.get(f"/console/models/{name}").text
        assert "0.481" in shown
        assert "accuracy 0.481 is too low" in shown
        form = {"csrf": csrf_of(client), "move": "champion", "version": name, "reason": "I want it"}
        refused = client.post("/console/models/change", data=form)
        assert refused.status_code == 409, refused.text
        assert client.post("/console/models/change", data={**form, "move": "unknown"}).status_code == 422
    with Session(engine) as session:
        assert registry.get(session, name).state == "refused"


def test_settings_are_shown_and_secrets_are_not(settings: Settings) -> None:
    with running(web_settings(settings)) as web:
        page = web.get("/console/settings", READER).text
    assert "feedback_per_second" in page
    for secret in (OPERATOR, READER, "k" * 40, settings.database.url.get_secret_value()):
        assert secret not in page


def test_without_postgres_the_console_says_so_and_posters_are_still_shown(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    url = "postgresql+psycopg2://nobody@127.0.0.1:9/nothing"
    away = settings.database.model_copy(update={"url": type(settings.database.url)(url), "connect_timeout_seconds": 2})
    with running(web_settings(settings.model_copy(update={"database": away}))) as web:
        page = web.get("/console", READER)
        assert (page.status_code, "Postgres" in page.text, "Traceback" in page.text) == (503, True, False)
        assert web.get("/v1/users/u1/posters?items=item9").status_code == 200
        assert web.get("/ready", None).status_code == 200
        change = web.post("/console/withdrawals", data={"kind": "user", "subject": "u1", "reason": "because"})
        assert change.status_code == 503, "what cannot be written down is not done"
