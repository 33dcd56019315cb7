"""Posters and feedback over HTTP: a real server on real Postgres, S3 and Kafka."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer
from pydantic import SecretStr

from generator.nightly.plan import Scope
from generator.nightly.withdraw import withdraw
from generator.web.bodies import Page
from schemas.connections import kafka_options
from schemas.errors import ServerUnavailable
from schemas.events import FEEDBACK, Event, PosterFeedback
from schemas.settings import Settings
from tests.support.night_world import build, night
from tests.support.web_world import OLD_KEY, OPERATOR, ORIGIN, READER, SHOP, page, running, web_settings

pytestmark = pytest.mark.integration
ITEMS = ("item8", "item9", "item10", "item11")


class Sender:
    """A double of Kafka's sender that does what it is told."""

    def __init__(self, error: Exception | None = None, *, is_full: bool = False, is_silent: bool = False) -> None:
        self.events: list[Event] = []
        self._error, self._is_full, self._is_silent = error, is_full, is_silent

    def send(self, event: Event) -> Future[None]:
        if self._is_full:
            raise ServerUnavailable("5 events wait for Kafka already")
        self.events.append(event)
        done: Future[None] = Future()
        if self._error:
            done.set_exception(self._error)
        elif not self._is_silent:
            done.set_result(None)
        return done

    def close(self) -> None:
        pass


def drawn(web: Any, user: str = "u1") -> dict[str, Any]:
    """A poster of the user that was drawn."""
    return next(one for one in page(web, user, ITEMS, "r1")["posters"] if one["showing"])


def event(showing: str, action: str = "click", **more: Any) -> dict[str, Any]:
    return {"events": [{"showing": showing, "action": action, **more}]}


def test_a_page_shows_each_poster_and_names_what_is_unknown(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    with running(web_settings(settings)) as web:
        found = page(web, "u1", ["item9", "nothing", "item10"])
        Page.model_validate(found)
        assert [one["item"] for one in found["posters"]] == ["item9", "item10"]
        assert found["missing"] == ["nothing"]
        best = next(one for one in found["posters"] if one["source"] == "tonight")
        choice = web.context.reader.posters.poster_for("u1", best["item"])
        assert choice
        assert (best["poster_id"], best["propensity"]) == (choice.poster_id, choice.propensity)
        with urllib.request.urlopen(best["image_url"]) as image:  # noqa: S310 - the embedded store's
            assert image.read()[8:12] == b"WEBP"


def test_a_page_is_not_sent_again_until_it_has_changed(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    with running(web_settings(settings)) as web:
        where = "/v1/users/u1/posters?items=item9,item10"
        first = web.get(where)
        assert first.headers["cache-control"] == "private, no-cache"
        tag = first.headers["etag"]
        again = web.get(where, **{"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert web.get("/v1/users/u2/posters?items=item9,item10", **{"If-None-Match": tag}).status_code == 200
        assert web.get(where + "&request=other", **{"If-None-Match": tag}).status_code == 200
        withdraw(settings, "user", "u1", reason="a complaint")
        web.context.reader.posters.refresh()
        changed = web.get(where, **{"If-None-Match": tag})
        assert changed.status_code == 200
        assert {one["source"] for one in changed.json()["posters"]} <= {"item"}


def test_rotation_by_request_is_never_stored_and_needs_the_request(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    rotating = settings.model_copy(update={"reader": settings.reader.model_copy(update={"rotation": "request"})})
    with running(web_settings(rotating)) as web:
        without = web.get("/v1/users/u1/posters?items=item9")
        assert (without.status_code, "query.request" in without.json()["error"]) == (422, True)
        given = web.get("/v1/users/u1/posters?items=item9&request=r1")
        assert given.headers["cache-control"] == "private, no-store"
        assert "etag" not in given.headers
        shown = {drawn(web)["poster_id"] for _ in range(3)}
        assert len(shown) == 1, "one request sees one variant"


def test_feedback_reaches_kafka_with_what_the_token_says(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    with running(web_settings(settings)) as web:
        poster = drawn(web)
        sent = web.post("/v1/feedback", None, json=event(poster["showing"], position=3), headers={"Origin": ORIGIN})
        assert (sent.status_code, sent.json()["accepted"]) == (202, 1)
        assert sent.headers["access-control-allow-origin"] == ORIGIN
        again = web.post("/v1/feedback", None, json=event(poster["showing"], position=3))
        assert again.json()["event_ids"] == sent.json()["event_ids"], "the consumer counts it once"
    consumer = KafkaConsumer(
        settings.kafka.topic_prefix + FEEDBACK,
        **kafka_options(settings.kafka),
        auto_offset_reset="earliest",
        consumer_timeout_ms=10_000,
    )
    record = next(consumer)
    consumer.close()
    stored = PosterFeedback.model_validate_json(record.value)
    assert (stored.user_id, stored.item_id, stored.poster_id) == ("u1", poster["item"], poster["poster_id"])
    assert (stored.propensity, stored.request_id, stored.position) == (poster["propensity"], "r1", 3)
    assert record.key == b"u1"


def test_what_kafka_does_not_take_is_refused_and_may_come_again(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    patient = web_settings(settings, feedback_seconds=0.2)
    for sender in (Sender(is_full=True), Sender(ServerUnavailable("gone")), Sender(is_silent=True)):
        with running(patient, sender=sender) as web:
            refused = web.post("/v1/feedback", None, json=event(drawn(web)["showing"]))
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert "send the same events again" in refused.json()["error"]


def test_no_part_of_a_batch_with_a_bad_token_is_sent(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    sender = Sender()
    with running(web_settings(settings), sender=sender) as web:
        good = drawn(web)["showing"]
        both = {"events": [{"showing": good, "action": "click"}, {"showing": good[:-1] + "-", "action": "click"}]}
        assert web.post("/v1/feedback", None, json=both).status_code == 422
        assert sender.events == []


def test_keys_rotate_while_tokens_are_about(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    with running(web_settings(settings, signing_key=OLD_KEY)) as web:
        showing = drawn(web)["showing"]
    sender = Sender()
    with running(web_settings(settings, previous_signing_key=OLD_KEY), sender=sender) as web:
        assert web.post("/v1/feedback", None, json=event(showing)).status_code == 202
    with running(web_settings(settings), sender=sender) as web:
        assert web.post("/v1/feedback", None, json=event(showing)).status_code == 422


def test_nothing_but_health_is_answered_without_a_token(settings: Settings) -> None:
    with running(web_settings(settings)) as web:
        assert web.get("/live", None).status_code == 200
        assert web.get("/ready", None).text == "ok\n"
        for path in ("/metrics", "/v1/openapi.json", "/v1/users/u1/posters?items=a", "/nothing"):
            answer = web.get(path, None)
            assert (answer.status_code, answer.headers["www-authenticate"][:6]) == (401, "Bearer"), path
            assert web.get(path, "guess" * 8).status_code == 401
        assert web.get("/console", None).headers["location"] == "/console/login"
        assert web.get("/metrics", SHOP).status_code == 403
        assert "pigeon_web_request_seconds" in web.get("/metrics", READER).text
        assert web.get("/v1/users/u1/posters?items=a", OPERATOR).status_code == 403


def test_limits_count_by_client_and_say_when_to_come_again(settings: Settings) -> None:
    with running(web_settings(settings, reads_per_second=0.5, max_body_bytes=1_024, max_items=3)) as web:
        where = "/v1/users/u1/posters?items=a"
        statuses = [web.get(where).status_code for _ in range(3)]
        assert statuses == [200, 429, 429]
        assert int(web.get(where).headers["retry-after"]) >= 1
        large = web.post("/v1/feedback", None, content=b"x" * 2_000, headers={"Content-Type": "application/json"})
        assert large.status_code == 413
        chunks = (b"x" * 600 for _ in range(4))
        assert web.post("/v1/feedback", None, content=chunks).status_code == 413
    with running(web_settings(settings, max_items=3)) as web:
        assert "web.max_items" in web.get("/v1/users/u1/posters?items=a,b,c,d").json()["error"]


def test_other_origins_are_told_nothing(settings: Settings) -> None:
    with running(web_settings(settings)) as web, web.client() as client:
        asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
        allowed = client.options("/v1/feedback", headers=asked)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, ORIGIN)
        other = client.options("/v1/feedback", headers={**asked, "Origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in other.headers


def test_without_s3_it_starts_and_says_so(settings: Settings) -> None:
    away = settings.s3.model_copy(
        update={
            "endpoint_url": "http://127.0.0.1:9",
            "max_attempts": 1,
            "access_key_id": "a",
            "secret_access_key": SecretStr("b"),
        }
    )
    with running(web_settings(settings.model_copy(update={"s3": away}))) as web:
        assert web.get("/live", None).status_code == 200
        ready = web.get("/ready", None)
        assert (ready.status_code, ready.text) == (503, "away: manifest\n")
        answer = web.get("/v1/users/u1/posters?items=a")
        assert answer.status_code == 503
        assert "no manifest could be read yet" in answer.json()["error"]
        assert "retry-after" in answer.headers


def test_every_hostile_request_is_answered_in_words(settings: Settings, tmp_path: Path) -> None:
    """100 requests of our own making: no 500, a problem's body, and every header that is promised."""
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    texts = [
        "%00", "%ff%fe", "../../etc/passwd", "%2e%2e%2f", "a" * 300, "'; DROP TABLE posters; --", "<script>", "%F0%9F%90%A6",
        "%ED%A0%80", "\u00e9", "%20a", "a%20", "null", "-1", "1e999", "%25", "a;b", "a=b", "%0d%0aX: y", "__proto__",
    ]  # fmt: skip
    bodies: list[Any] = [
        None, [], {}, "text", 1, {"events": None}, {"events": []}, {"events": [None]}, {"events": [{}]},
        {"events": [{"showing": "", "action": "click"}]}, {"events": [{"showing": "x" * 9_000, "action": "click"}]},
        {"events": [{"showing": "a.b", "action": "buy"}]}, {"events": [{"showing": "é.é", "action": "click"}]},
        {"events": [{"showing": "a.b", "action": "click", "position": -1}]}, {"events": [{"showing": "a.b"}] * 300},
        {"events": [{"showing": "a.b", "action": "click", "occurred_at": "yesterday"}]}, {"events": {"0": 1}},
        {"events": [{"showing": "a.b", "action": "click", "event_id": "1"}]}, {"events": [[[[[[]]]]]]},
        {"events": [{"showing": "a.b", "action": "click", "propensity": 1}]},
    ]  # fmt: skip
    count = 0
    with running(web_settings(settings, feedback_per_second=1e6)) as web, web.client(SHOP) as client:
        requests = [
            *(("GET", f"/v1/users/{text}/posters?items=item9", b"") for text in texts),
            *(("GET", f"/v1/users/u1/posters?items={text}&request={text}", b"") for text in texts),
            *(("GET", f"/v1/users/u1/posters?{name}=x", b"") for name in ("", "item", "items[]", "ITEMS", "request")),
            *(("POST", "/v1/feedback", json.dumps(body).encode()) for body in bodies),
            *(("POST", "/v1/feedback", raw) for raw in (b"", b"{", b"\xff\xfe", b"[" * 9_000, b'{"events": [1e999]}')),
            *((verb, "/v1/feedback", b"") for verb in ("GET", "PUT", "DELETE", "PATCH", "HEAD", "TRACE", "FOO")),
            *((verb, "/v1/users/u1/posters?items=a", b"") for verb in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO")),
            *(("GET", path, b"") for path in ("/v1", "/v1/users", "/v1/users//posters?items=a", "//", "/v1/../metrics")),
            *(("GET", f"/console/{path}", b"") for path in ("posters?after=%00", "nights?after=x", "models?after=1e9", "%00")),
            *(("GET", f"/v1/users/u1/posters?items={'a,' * size}", b"") for size in (1, 199, 5_000)),
            ("GET", "/v1/users/u1/posters?items=" + "&items=".join(texts), b""),
            ("GET", "/v1/users/u1/posters?items=,,,", b""),
            ("GET", "/v1/users/u1/posters?items=%2C", b""),
            ("GET", "/v1/users/u1/posters?items=item9&request=", b""),
            ("GET", "/v1/users/u1/posters?items=item9&request=a&request=b", b""),
        ]  # fmt: skip
        for verb, path, body in requests:
            answer = client.request(
                verb, path, content=body, headers={"Content-Type": "application/json"} if body else {}
            )
            where = f"{verb} {path[:80]} {body[:60]!r}: {answer.status_code} {answer.text[:200]}"
            assert answer.status_code < 500, where
            count += 1
            if answer.text == "Invalid HTTP request received.":  # no HTTP: the parser's own answer
                assert answer.status_code == 400, where
                continue
            assert answer.headers["x-content-type-options"] == "nosniff", where
            assert answer.headers["content-security-policy"], where
            if answer.status_code == 200 and path.startswith("/v1/users/"):
                Page.model_validate(answer.json())
                assert answer.headers["cache-control"].startswith("private"), where
            elif answer.status_code >= 400 and verb != "HEAD" and not path.startswith("/console"):
                assert set(answer.json()) == {"error", "request_id"}, where
            if answer.status_code == 405:
                assert answer.headers["allow"], where
    assert count >= 100


def test_the_document_describes_both_calls(settings: Settings) -> None:
    with running(web_settings(settings)) as web:
        document = web.get("/v1/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {operation["operationId"] for path in document["paths"].values() for operation in path.values()} == {
        "posters",
        "feedback",
    }
    assert set(document["paths"]["/v1/feedback"]["post"]["responses"]) >= {"202", "413", "422", "429", "503"}


def test_a_client_that_offers_http2_is_answered_with_all_that_it_sent(settings: Settings, tmp_path: Path) -> None:
    """Java's own client does so with the first request of a connection."""
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    sender = Sender()
    with running(web_settings(settings), sender=sender) as web:
        body = event(drawn(web)["showing"])
        with web.client() as client:
            for _ in range(2):
                assert client.post("/v1/feedback", json=body, headers=offer).status_code == 202
    assert len(sender.events) == 2


def test_the_python_client_of_the_documents_shows_and_tells(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art")
    night(settings).run(Scope())
    client = Path(__file__).parents[2] / "deploy" / "clients" / "posters.py"
    sender = Sender()
    with running(web_settings(settings), sender=sender) as web:
        ended = subprocess.run(
            [sys.executable, str(client), "u1", ",".join(ITEMS)],
            env={"PIGEON_URL": web.address, "PIGEON_TOKEN": SHOP},
            check=True,
            capture_output=True,
            text=True,
        )
    actions = [one.action for one in sender.events if isinstance(one, PosterFeedback)]
    assert actions == ["impression"] * (len(actions) - 1) + ["click"]
    assert ended.stdout.endswith(f"told: {len(actions)}\n")
