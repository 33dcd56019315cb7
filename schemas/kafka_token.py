"""Tokens for OAUTHBEARER: client credentials of an OIDC provider, fetched before they run out."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from typing import TYPE_CHECKING, Any

from schemas.errors import InputError, ServerUnavailable

if TYPE_CHECKING:
    from schemas.settings_kafka import KafkaSettings

RENEW_SHARE = 0.8
"""Share of a token's lifetime after which the next one is fetched."""
FETCH_SECONDS = 10.0
_USUAL_LIFETIME_SECONDS = 300.0  # of a token whose answer does not say


class ClientCredentials:
    """The token of one client id; threads may share it."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    def token(self) -> str:
        """A token that is still good for a while.

        Raises:
            InputError: the provider refuses the client.
            ServerUnavailable: it does not answer.
        """
        with self._lock:
            if time.monotonic() >= self._renew_at:
                self._token, lifetime = self._fetch()
                self._renew_at = time.monotonic() + RENEW_SHARE * lifetime
            return self._token

    def _fetch(self) -> tuple[str, float]:
        url = str(self._settings.oauth_token_url)
        try:
            with urllib.request.urlopen(  # noqa: S310 - kafka_login refuses other schemes
                self._request(url), timeout=FETCH_SECONDS, context=self._trust(url)
            ) as answer:
                told = json.load(answer)
                return str(told["access_token"]), float(told.get("expires_in") or _USUAL_LIFETIME_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                reason = _reason(error)
            if error.code in (400, 401, 403):
                raise InputError(
                    f"kafka.oauth_client_id (PIGEON_KAFKA__OAUTH_CLIENT_ID) or its secret or scope is refused by {url}: {reason}"
                ) from None
            raise ServerUnavailable(f"kafka.oauth_token_url {url}: HTTP {error.code} {reason}") from None
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"kafka.oauth_token_url {url}: its answer has no access_token; is it the token endpoint?"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnavailable(f"kafka.oauth_token_url {url}: {getattr(error, 'reason', error)}") from None

    def _request(self, url: str) -> urllib.request.Request:
        settings = self._settings
        secret = settings.oauth_client_secret.get_secret_value() if settings.oauth_client_secret else ""
        pair = f"{urllib.parse.quote(settings.oauth_client_id or '')}:{urllib.parse.quote(secret)}"
        form = {"grant_type": "client_credentials", **({"scope": settings.oauth_scope} if settings.oauth_scope else {})}
        return urllib.request.Request(  # noqa: S310 - as above
            url,
            data=urllib.parse.urlencode(form).encode(),
            headers={
                "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}",
                "Accept": "application/json",
            },
        )

    def _trust(self, url: str) -> ssl.SSLContext | None:
        if not url.startswith("https:"):
            return None
        cafile = self._settings.oauth_cafile
        return ssl.create_default_context(cafile=str(cafile) if cafile else None)


def _reason(error: urllib.error.HTTPError) -> str:
    """What an OIDC provider says in its body, as far as it is safe to show."""
    try:
        told = json.loads(error.read(10_000))
        return " ".join(str(told[name]) for name in ("error", "error_description") if name in told)
    except (ValueError, TypeError, OSError):
        return ""


@cache
def provider(settings: KafkaSettings) -> Any:
    """What kafka-python asks for a token at each login; one for all clients of a process."""
    from kafka.net.sasl.oauth import AbstractTokenProvider

    credentials = ClientCredentials(settings)

    class Provider(AbstractTokenProvider):  # type: ignore[misc] # kafka-python has no types
        def token(self) -> str:
            return credentials.token()

    return Provider()
