"""Signed texts, showing tokens, addresses and limits of the web, without servers."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from pydantic import SecretStr, ValidationError

from generator.web.access import COOKIE, Access
from generator.web.limits import BURST_SECONDS, Limit
from generator.web.showings import BadShowing, Showing, seal, unseal
from generator.web.signed_urls import ImageAddresses
from generator.web.signing import Signer
from schemas.connections import s3_client, s3_options
from schemas.errors import InputError
from schemas.settings_s3 import S3Settings
from schemas.settings_web import ApiToken, WebSettings

OLD, NEW = SecretStr("o" * 40), SecretStr("n" * 40)
SHOWING = Showing("u/1 é", "m,5", "p" * 32, 0.1, "r1", 1_000_000)


def test_a_showing_comes_back_as_it_was() -> None:
    signer = Signer(NEW)
    assert unseal(signer, seal(signer, SHOWING), 1_000_100, 3_600) == SHOWING


def test_a_token_of_the_key_before_is_taken_and_new_ones_are_of_the_new_key() -> None:
    before, rotated, after = Signer(OLD), Signer(NEW, OLD), Signer(NEW)
    assert unseal(rotated, seal(before, SHOWING), 1_000_100, 3_600) == SHOWING
    assert unseal(after, seal(rotated, SHOWING), 1_000_100, 3_600) == SHOWING
    with pytest.raises(BadShowing, match="not a token of ours"):
        unseal(after, seal(before, SHOWING), 1_000_100, 3_600)


def test_an_expired_showing_says_how_old_it_is() -> None:
    signer = Signer(NEW)
    with pytest.raises(BadShowing, match=r"expired, 2.0 h old \(web.showing_seconds is 3600\)"):
        unseal(signer, seal(signer, SHOWING), 1_007_200, 3_600)


def test_no_changed_character_of_a_token_passes() -> None:
    signer = Signer(NEW)
    token = seal(signer, SHOWING)
    for place, character in enumerate(token):
        other = token[:place] + ("A" if character != "A" else "B") + token[place + 1 :]
        # The last character of base64 may have bits that no byte has: such a text reads alike, and is not what we signed.
        assert signer.open("showing", other) is None, place
    assert signer.open("session", token) is None, "what was signed for one purpose is worth nothing for another"
    assert signer.open("showing", "é" * 30) is None
    assert signer.open("showing", "") is None


@pytest.mark.parametrize("token", [None, "session-token/with+signs="])
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:8333", None])
def test_addresses_are_signed_as_botocore_signs_them(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None, token: str | None
) -> None:
    settings = S3Settings.model_validate(
        {"endpoint_url": endpoint, "bucket": "posters", "access_key_id": "AKID", "secret_access_key": "secret"}
    )
    client = s3_client(**s3_options(settings))
    client._request_signer._credentials.token = token
    start = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
    key = "posters/a b+c é/1.webp"
    with time_machine.travel(start, tick=False):
        theirs = client.generate_presigned_url(
            "get_object", Params={"Bucket": "posters", "Key": key}, ExpiresIn=6 * 3600
        )
    addresses = ImageAddresses(WebSettings(), settings, client)
    ours = addresses.of_key(key, start.timestamp() + 3 * 3600 - 1)
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)
    assert urlsplit(ours).path == urlsplit(theirs).path
    assert ours != addresses.of_key(key, start.timestamp() + 3 * 3600), "a new span has other addresses"
    client.close()


def test_public_addresses_and_catalogue_pictures() -> None:
    settings = S3Settings.model_validate({"endpoint_url": "http://127.0.0.1:1", "bucket": "posters"})
    client = SimpleNamespace(meta=SimpleNamespace(endpoint_url="http://127.0.0.1:1"))
    addresses = ImageAddresses(WebSettings(images_url="https://cdn.example.com/p/"), settings, client)
    assert addresses.of_key("posters/a.webp") == "https://cdn.example.com/p/posters/a.webp"
    assert addresses.of_uri("s3://posters/catalog/a.png") == "https://cdn.example.com/p/catalog/a.png"
    assert addresses.of_uri("https://img.example.com/a.png") == "https://img.example.com/a.png"
    assert addresses.of_uri("s3://another/a.png") is None
    assert addresses.of_uri("file:///a.png") is None
    assert addresses.of_uri(None) is None
    assert addresses.origin == "https://cdn.example.com"


def test_a_bucket_without_keys_is_named() -> None:
    settings = S3Settings.model_validate({"endpoint_url": "http://127.0.0.1:1", "bucket": "posters"})
    signer = SimpleNamespace(_credentials=None)
    client = SimpleNamespace(meta=SimpleNamespace(endpoint_url="http://127.0.0.1:1"), _request_signer=signer)
    with pytest.raises(InputError, match=r"PIGEON_S3__ACCESS_KEY_ID.*web.images_url"):
        ImageAddresses(WebSettings(), settings, client).of_key("posters/a.webp")


def test_a_burst_passes_and_more_is_told_how_long_to_wait() -> None:
    limit = Limit(2.0)
    burst = round(2 * BURST_SECONDS)
    assert [limit.wait_seconds("a", 100.0) for _ in range(burst)] == [0] * burst
    assert limit.wait_seconds("a", 100.0) == 1
    assert limit.wait_seconds("b", 100.0) == 0, "each client has its own"
    assert limit.wait_seconds("a", 100.5) == 0


def web_of(**values: object) -> Access:
    settings = WebSettings.model_validate({"signing_key": NEW, **values})
    return Access(settings, Signer(NEW))


def test_a_proxy_is_believed_from_its_network_only() -> None:
    access = web_of(
        proxy_networks=["10.0.0.0/8"],
        proxy_user_header="X-Forwarded-User",
        proxy_read_groups=["staff"],
        proxy_operate_groups=["sre"],
    )
    headers = {"x-forwarded-user": "ann", "x-forwarded-groups": "sre, other", "x-forwarded-for": "6.6.6.6, 10.0.0.2"}
    caller = access.caller(headers, {}, "10.0.0.1")
    assert caller
    assert (caller.name, caller.may("operate"), caller.may("read"), caller.may("recommend")) == (
        "ann",
        True,
        True,
        False,
    )
    assert access.caller(headers, {}, "192.168.0.1") is None
    assert access.client_address(headers, "10.0.0.1") == "6.6.6.6"
    assert access.client_address(headers, "192.168.0.1") == "192.168.0.1"
    assert web_of().caller(headers, {}, "10.0.0.1") is None, "without the setting nobody is believed"


def test_a_session_ends_with_its_time_and_with_its_token() -> None:
    token = {"name": "ann", "token": "t" * 40, "roles": ["operate"]}
    access = web_of(tokens=[token], session_hours=1)
    with time_machine.travel(datetime(2026, 3, 1, tzinfo=UTC), tick=False) as clock:
        cookie = access.sign_in("t" * 40)
        assert cookie
        assert access.caller({}, {COOKIE: cookie}, "")
        assert web_of().caller({}, {COOKIE: cookie}, "") is None, "whose token is gone is signed out"
        demoted = web_of(tokens=[{**token, "roles": ["read"]}]).caller({}, {COOKIE: cookie}, "")
        assert demoted
        assert not demoted.may("operate")
        clock.shift(3_601)
        assert access.caller({}, {COOKIE: cookie}, "") is None


def test_a_sign_in_link_is_good_once_and_for_ten_minutes() -> None:
    access = web_of()
    with time_machine.travel(datetime(2026, 3, 1, tzinfo=UTC), tick=False) as clock:
        code = access.make_link_code()
        cookie = access.sign_in(code)
        assert cookie
        assert access.sign_in(code) is None
        late = access.make_link_code()
        clock.shift(601)
        assert access.sign_in(late) is None
        assert web_of().caller({}, {COOKIE: cookie}, "") is None, "another server knows nothing of it"


def test_short_secrets_and_double_names_are_refused() -> None:
    with pytest.raises(ValidationError, match="32 characters"):
        ApiToken.model_validate({"name": "a", "token": "short", "roles": ["read"]})
    entry = {"name": "a", "token": "t" * 40, "roles": ["read"]}
    with pytest.raises(ValidationError, match="each name once"):
        WebSettings.model_validate({"tokens": [entry, {**entry, "token": "u" * 40}]})
    with pytest.raises(ValidationError, match=r"needs web.proxy_networks"):
        WebSettings.model_validate({"proxy_user_header": "X-User"})
    with pytest.raises(ValidationError, match="no origin"):
        WebSettings.model_validate({"cors_origins": ["https://a.example.com/path"]})
