"""Options of clients: in one place, light to import, alike for all."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from schemas.connections import kafka_options, postgres_options, s3_client, s3_options
from schemas.errors import InputError
from schemas.hashing import unit_interval
from schemas.settings import DatabaseSettings, KafkaSettings
from schemas.settings_s3 import S3Settings


def test_importing_the_options_imports_no_client_library():
    script = "import sys; import schemas.connections; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"boto3", "botocore", "kafka", "psycopg2", "sqlalchemy", "pydantic_settings"} & set(loaded)


def test_every_postgres_connection_notices_a_dead_peer_and_has_timeouts():
    settings = DatabaseSettings(statement_timeout_seconds=7.5, lock_timeout_seconds=2.0, connect_timeout_seconds=0.2)
    options = postgres_options(settings, "pigeon-x")
    assert options["application_name"] == "pigeon-x"
    assert options["connect_timeout"] == 1, "libpq takes whole seconds; 0 would mean for ever"
    assert options["keepalives_idle"] == 10
    assert options["tcp_user_timeout"] == 7_500
    assert options["options"] == "-c statement_timeout=7500 -c lock_timeout=2000 -c timezone=UTC"
    fenced = postgres_options(settings, "pigeon-x", end_idle_transactions=True)
    assert "-c idle_in_transaction_session_timeout=7500" in fenced["options"]


def test_an_s3_client_has_the_settings_timeouts_and_retries():
    settings = S3Settings.model_validate(
        {
            "endpoint_url": "http://127.0.0.1:1",
            "access_key_id": "key",
            "secret_access_key": "secret",
            "connect_timeout_seconds": 2.5,
            "max_attempts": 3,
        }
    )
    client = s3_client(**s3_options(settings))
    try:
        assert client.meta.endpoint_url == "http://127.0.0.1:1"
        config = client.meta.config
        assert (config.connect_timeout, config.read_timeout) == (2.5, 30.0)
        assert config.retries == {"mode": "standard", "total_max_attempts": 3}
        assert config.request_checksum_calculation == "when_required"
    finally:
        client.close()


def test_kafka_options_refuse_a_login_that_would_be_ignored():
    assert kafka_options(KafkaSettings(bootstrap_servers="a:1, b:2"))["bootstrap_servers"] == ["a:1", "b:2"]
    with pytest.raises(InputError, match="sasl_username"):
        kafka_options(KafkaSettings(sasl_username="u"))


@pytest.mark.parametrize("bits", [32, 52, 53])
def test_a_hash_in_the_unit_interval_is_its_first_bits(bits: int):
    for number in range(1_000):
        text = f"user {number}"
        first = int(hashlib.sha256(text.encode()).hexdigest(), 16) >> (256 - bits)
        assert unit_interval(text, bits=bits) == first / 2**bits
        assert unit_interval(text.encode(), bits=bits) == unit_interval(text, bits=bits)
    assert 0 <= min(unit_interval(str(n), bits=bits) for n in range(1_000)) < 0.01
