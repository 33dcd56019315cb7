"""INPUTS 31 and 32, FLAWS F34 and F35: logins and rights on Apache Kafka, refused by name."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from consumers import dead_letters
from consumers.doctor import PROBES
from consumers.kafka import clients, rights
from consumers.kafka.acknowledged import AcknowledgedSender
from generator.nightly.announce import KafkaAnnouncer
from schemas import kafka_access, kafka_token
from schemas.errors import InputError
from schemas.events import DLQ_SUFFIX, FEEDBACK, INTERACTIONS, PUBLISHED, PosterFeedback, PosterPublished, all_topics
from schemas.kafka_rights import Right
from schemas.runtime.checkup import look
from schemas.settings import Settings, load_settings
from schemas.settings_kafka import KafkaSettings
from tests.support.apache_kafka import ApacheBroker, needs_apache, one_broker
from tests.support.apache_kafka_server import Options
from tests.support.certificates import Authority
from tests.support.consume_world import changed, click, consume, make_topics, query, send, send_raw
from tests.support.token_server import AUDIENCE, ISSUER, TokenServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), needs_apache]
USER, PASSWORD = "pigeon", "pw-not-to-be-seen"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
OAUTH = "org.apache.kafka.common.security.oauthbearer"


@dataclass
class Guarded:
    """A broker that asks who is there: by password, over TLS, by token; its plain port may do anything."""

    broker: ApacheBroker
    ports: dict[str, int]
    authority: Authority
    tokens: TokenServer

    def login(self, listener: str, **values: Any) -> KafkaSettings:
        """The settings that fit a listener, but for `values`."""
        scram = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": USER, "sasl_password": PASSWORD}
        fitting = {
            "PASSWORD": {"security_protocol": "SASL_PLAINTEXT", **scram},
            "SECURE": {"security_protocol": "SASL_SSL", "ssl_cafile": self.authority.certificate, **scram},
            "TOKEN": {
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "OAUTHBEARER",
                "oauth_token_url": f"http://127.0.0.1:{self.tokens.port}/token",
                "oauth_client_id": USER,
                "oauth_client_secret": PASSWORD,
            },
            "PLAIN": {},
        }[listener]
        address = self.broker.address if listener == "PLAIN" else f"127.0.0.1:{self.ports[listener]}"
        return KafkaSettings.model_validate({"bootstrap_servers": address, **fitting, **values})


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(folder)
    certificate, key = authority.sign("broker")
    (folder / "both.pem").write_text(key.read_text() + certificate.read_text())
    ports: dict[str, int] = {}
    with TokenServer(folder, USER, PASSWORD) as tokens:
        keys = f"http://127.0.0.1:{tokens.port}/keys"

        def options(free: list[int]) -> Options:
            ports.update(zip(("PASSWORD", "SECURE", "TOKEN"), free, strict=False))
            protocols = {"PASSWORD": "SASL_PLAINTEXT", "SECURE": "SASL_SSL", "TOKEN": "SASL_PLAINTEXT"}
            return Options(
                listeners={name: (protocol, ports[name]) for name, protocol in protocols.items()},
                passwords={USER: PASSWORD},
                properties={
                    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                    "super.users": "User:ANONYMOUS",
                    **{
                        f"listener.name.{name}.sasl.enabled.mechanisms": "SCRAM-SHA-512"
                        for name in ("password", "secure")
                    },
                    **{
                        f"listener.name.{name}.scram-sha-512.sasl.jaas.config": SCRAM for name in ("password", "secure")
                    },
                    "listener.name.secure.ssl.keystore.type": "PEM",
                    "listener.name.secure.ssl.keystore.location": str(folder / "both.pem"),
                    "listener.name.token.sasl.enabled.mechanisms": "OAUTHBEARER",
                    "listener.name.token.oauthbearer.sasl.jaas.config": f"{OAUTH}.OAuthBearerLoginModule required;",
                    "listener.name.token.oauthbearer.sasl.server.callback.handler.class": (
                        f"{OAUTH}.OAuthBearerValidatorCallbackHandler"
                    ),
                    "listener.name.token.sasl.oauthbearer.jwks.endpoint.url": keys,
                    "listener.name.token.sasl.oauthbearer.expected.audience": AUDIENCE,
                    "listener.name.token.sasl.oauthbearer.expected.issuer": ISSUER,
                },
                java=(f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys}",),
            )

        broker = one_broker(folder / "state", options)
        yield Guarded(broker, ports, authority, tokens)
        broker.kill()


@pytest.fixture
def there(guarded: Guarded, database_url: str) -> Settings:
    """Settings of topics of the test's own, by the plain port."""
    prefix = f"{database_url.rpartition('/')[2]}."
    kafka = {
        "bootstrap_servers": guarded.broker.address,
        "topic_prefix": prefix,
        "group_id": f"{prefix}pigeon",
        "session_timeout_ms": 6_000,
    }
    settings = load_settings(database={"url": database_url}, kafka=kafka, consumer={"batch_max_seconds": 0.3})
    make_topics(settings, partitions=1)
    return settings


def as_user(guarded: Guarded, settings: Settings, listener: str = "PASSWORD") -> Settings:
    """The same topics and group, logged in as somebody whose rights count."""
    same = {name: getattr(settings.kafka, name) for name in ("topic_prefix", "group_id", "session_timeout_ms")}
    return settings.model_copy(update={"kafka": guarded.login(listener, **same)})


def change_rights(settings: Settings, changes: Iterable[Right], *, grant: bool = True) -> None:
    """Grant, or refuse again, rights of USER."""
    kinds = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}
    permission = ACLPermissionType.ALLOW if grant else ACLPermissionType.DENY
    admin = clients.admin(settings.kafka)
    wanted = list(changes)
    admin.create_acls(
        [
            ACL(
                principal=f"User:{USER}",
                host="*",
                operation=ACLOperation[right.operation],
                permission_type=permission,
                resource_pattern=ResourcePattern(kinds[right.resource], right.name),
            )
            for right in wanted
        ]
    )
    asked = ACLFilter(
        f"User:{USER}",
        "*",
        ACLOperation.ANY,
        permission,
        ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY),
    )
    names = {right.name for right in wanted}
    while not names <= {acl.resource_pattern.resource_name for acl in admin.describe_acls(asked)[0]}:
        time.sleep(0.05)  # the broker learns of it from the controller
    admin.close()


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "password": ("PASSWORD", {"sasl_password": "another"}, r"^kafka\.sasl_username .* is refused by"),
    "user": ("SECURE", {"sasl_username": "nobody"}, r"^kafka\.sasl_username .* is refused by"),
    "mechanism": (
        "PASSWORD",
        {"sasl_mechanism": "SCRAM-SHA-256"},
        r"^kafka\.sasl_mechanism .* it offers SCRAM-SHA-512",
    ),
    "plain text to a login": (
        "PASSWORD",
        PLAIN := {
            "security_protocol": "PLAINTEXT",
            "sasl_mechanism": None,
            "sasl_username": None,
            "sasl_password": None,
        },
        r"^kafka\.security_protocol .* wants a login",
    ),
    "plain text to TLS": ("SECURE", {**PLAIN, "ssl_cafile": None}, r"^kafka\.security_protocol .* speaks TLS"),
    "login in plain text to TLS": (
        "SECURE",
        {"security_protocol": "SASL_PLAINTEXT", "ssl_cafile": None},
        r"^kafka\.security_protocol .* speaks TLS",
    ),
    "TLS to plain text": ("PLAIN", {"security_protocol": "SSL"}, r"^kafka\.security_protocol .* does not speak TLS"),
    "login where there is none": (
        "PLAIN",
        {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "p"},
        r"^kafka\.security_protocol .* takes no login",
    ),
    "another authority": ("SECURE", {"ssl_cafile": None}, r"^kafka\.ssl_cafile .* does not prove"),
    "secret of the token's client": (
        "TOKEN",
        {"oauth_client_secret": "another"},
        r"^kafka\.oauth_client_id .*invalid_client",
    ),
    "no token endpoint": ("TOKEN", {"oauth_token_url": None}, r"^kafka\.oauth_token_url .* is empty"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_login_that_does_not_fit_is_refused_by_its_setting(guarded: Guarded, what: str) -> None:
    """FLAWS F34, INPUTS 31."""
    listener, values, words = WRONG[what]
    for make in (clients.admin, clients.producer, KafkaAnnouncer):
        with pytest.raises(InputError, match=words) as refused:
            make(guarded.login(listener, **values))
        assert PASSWORD not in str(refused.value)


def test_a_refused_login_is_said_at_once_and_not_after_the_time_of_an_outage(guarded: Guarded) -> None:
    """FLAWS F34: kafka-python alone gives up after 15 s, and says that no broker answers."""
    started = time.monotonic()
    with pytest.raises(InputError):
        clients.admin(guarded.login("PASSWORD", sasl_password="another"))
    assert time.monotonic() - started < clients.BOOTSTRAP_TIMEOUT_MS / 1000 / 2


@pytest.mark.parametrize("listener", ["PASSWORD", "SECURE", "TOKEN"])
def test_with_the_least_rights_consuming_works(guarded: Guarded, there: Settings, listener: str) -> None:
    """INPUTS 31 and 32: by each login; events, a dead letter, and announcements."""
    topic = there.kafka.topic_prefix + INTERACTIONS
    needed = rights.to_consume(there.kafka, [topic])
    change_rights(there, needed)
    user = as_user(guarded, there, listener)
    rights.require(user.kafka, needed)
    send(there, [click(1), click(2)])
    send_raw(there, INTERACTIONS, [b"{"])
    assert consume(user).records == 3
    assert query(user, "SELECT count(*) FROM interactions") == [(2,)]
    assert len(dead_letters.read(there)) == 1
    change_rights(there, rights.to_produce([topic]))
    send(user, [click(3)])
    assert consume(user).records == 1


@pytest.mark.parametrize("number", range(3))
def test_each_right_that_is_missing_is_named_at_the_start(guarded: Guarded, there: Settings, number: int) -> None:
    """FLAWS F35, INPUTS 32."""
    needed = rights.to_consume(there.kafka, [there.kafka.topic_prefix + INTERACTIONS])
    lacking = needed.pop(number)
    change_rights(there, needed)
    user = as_user(guarded, there)
    with pytest.raises(InputError, match=str(lacking).replace(".", r"\.")) as refused:
        rights.require(user.kafka, [*needed, lacking])
    assert "kafka-acls" in str(refused.value)
    (finding,) = [one for one in look(PROBES, user) if one.subject == "rights"]
    assert finding.verdict == "wrong"
    assert str(lacking) in finding.text
    assert f"WRITE on topic {there.kafka.topic_prefix}{PUBLISHED}" in finding.text


def test_a_right_that_is_withdrawn_ends_the_consumer_and_is_no_outage(guarded: Guarded, there: Settings) -> None:
    """FLAWS F35: the first poison after it."""
    topic = there.kafka.topic_prefix + INTERACTIONS
    needed = rights.to_consume(there.kafka, [topic])
    change_rights(there, needed)
    user = as_user(guarded, there)
    change_rights(there, [Right("topic", topic + DLQ_SUFFIX, "WRITE")], grant=False)
    send_raw(there, INTERACTIONS, [b"{"])
    with pytest.raises(InputError, match=r"dead letters cannot be written: .* lacks WRITE on topic"):
        consume(changed(user, "kafka", request_timeout_ms=2_000))
    assert query(user, "SELECT coalesce(sum(next_offset), 0) FROM consumer_offsets") == [(0,)]


def test_tokens_are_fetched_again_before_they_run_out(guarded: Guarded) -> None:
    """INPUTS 31."""
    credentials = kafka_token.ClientCredentials(guarded.login("TOKEN"))
    before = guarded.tokens.given
    assert credentials.token() == credentials.token()
    assert guarded.tokens.given == before + 1
    guarded.tokens.lifetime_seconds = 0.01
    try:
        other = kafka_token.ClientCredentials(guarded.login("TOKEN"))
        other.token()
        time.sleep(0.02)
        other.token()
    finally:
        guarded.tokens.lifetime_seconds = 300.0
    assert guarded.tokens.given == before + 3


def test_the_second_broker_is_asked_where_the_first_is_away(guarded: Guarded) -> None:
    """Beside F34: one broker that is down is not what is wrong with a password."""
    good = guarded.login("PASSWORD")
    both = good.model_copy(update={"bootstrap_servers": f"127.0.0.1:1,{good.bootstrap_servers}"})
    kafka_access.check_login(both)
    with pytest.raises(InputError, match="is refused"):
        kafka_access.check_login(both.model_copy(update={"sasl_username": "nobody"}))
    with pytest.raises(InputError, match="is not host:port"):
        kafka_access.check_login(good.model_copy(update={"bootstrap_servers": "broker"}))


def test_commands_of_people_and_nights_work_with_the_rights_that_the_page_lists(
    guarded: Guarded, there: Settings
) -> None:
    """INPUTS 32: `pigeon dlq`, `night run`, `serve` and `topics create`, each with just those."""
    prefix = there.kafka.topic_prefix
    topic, user = prefix + INTERACTIONS, as_user(guarded, there)
    send_raw(there, INTERACTIONS, [b"{"])
    consume(there)
    letters = [name for name in all_topics(prefix) if name.endswith(DLQ_SUFFIX)]
    change_rights(there, [Right("topic", name, "READ") for name in letters])
    (letter,) = dead_letters.read(user)
    change_rights(there, rights.to_produce([topic]))
    assert dead_letters.replay(user, [letter]) == 1
    change_rights(there, rights.to_produce([prefix + PUBLISHED, prefix + FEEDBACK]))
    poster = {"poster_id": "p", "user_id": "u", "item_id": "i", "occurred_at": datetime.now(UTC)}
    announcer = KafkaAnnouncer(user.kafka)
    more = {"variant": 0, "image_key": "k", "manifest_key": "m", "propensity": 0.5, "model_version": "nano-1"}
    announcer.send([PosterPublished.model_validate(poster | more)])
    announcer.close()
    sender = AcknowledgedSender(user.kafka, in_flight=1)
    shown = PosterFeedback.model_validate(poster | {"event_id": uuid4(), "action": "impression"})
    sender.send(shown).result(60)
    sender.close()
    new = user.kafka.model_copy(update={"topic_prefix": f"{prefix}new."})
    change_rights(there, [Right("topic", name, "CREATE") for name in all_topics(new.topic_prefix)])
    made, _ = clients.create_topics(new, partitions=1, replication=1)
    assert sorted(made) == sorted(all_topics(new.topic_prefix))
