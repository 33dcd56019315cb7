"""INPUTS 31: logins by AWS IAM, against a broker of the tests' own; nothing here has run on MSK."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumers.kafka import clients
from schemas import kafka_access
from schemas.errors import InputError
from schemas.settings_kafka import KafkaSettings
from tests.support.certificates import Authority
from tests.support.iam_broker import IamBroker

REGION = "eu-central-1"
SECRETS = {"AKIDFIRST": "first-secret", "AKIDSECOND": "second-secret"}


@pytest.fixture
def own_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No keys and no region but the test's own."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "DEFAULT_REGION", "REGION", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("iam"))


@pytest.fixture
def broker(own_aws: None, authority: Authority) -> Iterator[IamBroker]:
    with IamBroker(*authority.sign("broker"), SECRETS, REGION) as made:
        yield made


def keys(monkeypatch: pytest.MonkeyPatch, name: str, token: str = "", region: str = REGION) -> None:
    """As a role or a person sets them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS.get(name, "unknown"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)


def settings(broker: IamBroker, authority: Authority, **changes: Any) -> KafkaSettings:
    values = {
        "bootstrap_servers": f"127.0.0.1:{broker.port}",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "AWS_MSK_IAM",
        "ssl_cafile": authority.certificate,
    }
    return KafkaSettings.model_validate(values | changes)


@pytest.mark.parametrize("token", ["", "of/a+role=="])
def test_host_region_and_signature_are_those_that_aws_computes(
    broker: IamBroker, authority: Authority, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """INPUTS 31: the broker compares the signature with botocore's own."""
    keys(monkeypatch, "AKIDFIRST", token)
    kafka_access.check_login(settings(broker, authority))
    (said,) = broker.seen
    assert said["x-amz-credential"].split("/")[2:] == [REGION, "kafka-cluster", "aws4_request"]
    assert said["host"] == "127.0.0.1"
    assert said.get("x-amz-security-token", "") == token


@pytest.mark.parametrize(("name", "region"), [("AKIDTHIRD", REGION), ("AKIDFIRST", "us-east-1")])
def test_keys_that_are_refused_are_named_with_what_may_be_wrong(
    broker: IamBroker, authority: Authority, monkeypatch: pytest.MonkeyPatch, name: str, region: str
) -> None:
    """INPUTS 31: in the words of IAM, not of tokens."""
    keys(monkeypatch, name, region=region)
    with pytest.raises(InputError, match=r"^kafka\.sasl_mechanism .* refuses the AWS keys: .*AWS_DEFAULT_REGION"):
        kafka_access.check_login(settings(broker, authority))


def test_a_login_is_renewed_with_the_keys_of_then_before_it_ends(
    broker: IamBroker, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INPUTS 31: keys of a role change every hour, and MSK ends a login with them."""
    keys(monkeypatch, "AKIDFIRST")
    broker.lifetime_ms = 1_000
    client = clients.admin(settings(broker, authority))
    assert clients.topic_ids(client, ["any"]) == {}
    keys(monkeypatch, "AKIDSECOND")
    until = time.monotonic() + 60
    while not any(said["x-amz-credential"].startswith("AKIDSECOND") for said in broker.seen):
        assert time.monotonic() < until, "it was not renewed"
        time.sleep(0.02)
    assert all(broker.problem(said) is None for said in broker.seen)
    client.close()


def test_tls_keys_and_a_region_are_asked_for_before_any_broker(own_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """INPUTS 31."""
    iam = KafkaSettings(bootstrap_servers="127.0.0.1:1", security_protocol="SASL_SSL", sasl_mechanism="AWS_MSK_IAM")
    with pytest.raises(InputError, match="boto3 finds no keys"):
        kafka_access.check_login(iam)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with pytest.raises(InputError, match="AWS_DEFAULT_REGION"):
        kafka_access.check_login(iam)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    kafka_access.check_login(iam)  # nobody answers there, and nothing is refused
    plain = iam.model_copy(update={"security_protocol": "SASL_PLAINTEXT"})
    with pytest.raises(InputError, match="SASL_SSL only"):
        clients.admin(plain)
