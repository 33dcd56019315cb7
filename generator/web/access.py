"""Who asks, and what they may: API tokens, signed-in browsers, people vouched for by a proxy.

recommend   read posters for users
read        look at the console and at /metrics
operate     read, and change things at the console
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal

from generator.web.signing import Signer
from schemas.settings_web import Role, WebSettings

COOKIE = "pigeon_session"
SESSION, FORM = "session", "form"
LINK_SECONDS = 600.0
"""Seconds for which a sign-in link is good, once."""
LINK_NAME = "sign-in-link"


@dataclass(frozen=True)
class Caller:
    """Somebody who asks."""

    name: str
    roles: frozenset[Role]
    by: Literal["token", "session", "proxy"]
    nonce: str = ""
    """Part of a session's forms: a form of another session is refused."""

    def may(self, role: Role) -> bool:
        """Whether the caller has a role."""
        return role in self.roles


class Access:
    """Recognises callers by the settings."""

    def __init__(self, settings: WebSettings, signer: Signer) -> None:
        self._settings = settings
        self._signer = signer
        self._tokens = {_digest(one.token.get_secret_value()): one for one in settings.tokens}
        self._names = {one.name: one for one in settings.tokens}
        self._networks = [ip_network(network) for network in settings.proxy_networks]
        self._links: dict[str, float] = {}
        self._started = secrets.token_hex(8)

    def caller(self, headers: Mapping[str, str], cookies: Mapping[str, str], peer: str) -> Caller | None:
        """Whoever asks; None when nobody vouches for them."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        if token:
            return self.of_token(token.strip()) if kind.lower() == "bearer" else None
        if COOKIE in cookies:
            caller = self._of_session(cookies[COOKIE])
            if caller is not None:
                return caller
        return self._of_proxy(headers) if self.is_proxy(peer) else None

    def of_token(self, token: str) -> Caller | None:
        """Whose token it is; compared by its hash, so that time tells nothing."""
        found = self._tokens.get(_digest(token))
        return Caller(found.name, _with_implied(found.roles), "token") if found else None

    def client_address(self, headers: Mapping[str, str], peer: str) -> str:
        """The address that limits count by: the peer's, or what a proxy of ours says of it."""
        if not self.is_proxy(peer):
            return peer
        for address in reversed([part.strip() for part in headers.get("x-forwarded-for", "").split(",")]):
            if address and not self.is_proxy(address):
                return address[:64]
        return peer

    def is_proxy(self, address: str) -> bool:
        """Whether an address is in `web.proxy_networks`."""
        try:
            return any(ip_address(address) in network for network in self._networks)
        except ValueError:
            return False

    def make_link_code(self) -> str:
        """A code that signs in whoever has it, as an operator, once and soon."""
        code = secrets.token_urlsafe(24)
        self._links[_digest(code)] = time.time() + LINK_SECONDS
        return code

    def sign_in(self, secret: str) -> str | None:
        """The cookie of a new session for a token or a link's code; None for any other text."""
        if time.time() < self._links.pop(_digest(secret), 0.0):
            return self._session(f"{LINK_NAME}:{self._started}")
        caller = self.of_token(secret)
        return self._session(caller.name) if caller else None

    def form_token(self, caller: Caller) -> str:
        """What a form of this caller carries, so that no other site can send it."""
        return self._signer.sign(FORM, f"{caller.name}\x1f{caller.nonce}".encode())

    def is_own_form(self, caller: Caller, token: str) -> bool:
        """Whether a form came from a page of this caller."""
        return self._signer.open(FORM, token) == f"{caller.name}\x1f{caller.nonce}".encode()

    def _session(self, name: str) -> str:
        until = int(time.time() + 3600 * self._settings.session_hours)
        return self._signer.sign(SESSION, json.dumps([name, until, secrets.token_hex(8)]).encode())

    def _of_session(self, cookie: str) -> Caller | None:
        payload = self._signer.open(SESSION, cookie)
        if payload is None:
            return None
        name, until, nonce = json.loads(payload)
        if time.time() > until:
            return None
        if name == f"{LINK_NAME}:{self._started}":
            return Caller(LINK_NAME, frozenset({"read", "operate"}), "session", nonce)
        found = self._names.get(name)  # roles as they are now: who was taken out of the settings is out
        return Caller(name, _with_implied(found.roles), "session", nonce) if found else None

    def _of_proxy(self, headers: Mapping[str, str]) -> Caller | None:
        settings = self._settings
        name = headers.get(settings.proxy_user_header.lower(), "").strip() if settings.proxy_user_header else ""
        if not name:
            return None
        groups = {part.strip() for part in headers.get(settings.proxy_groups_header.lower(), "").split(",")}
        roles: set[Role] = set()
        if groups & set(settings.proxy_read_groups):
            roles.add("read")
        if groups & set(settings.proxy_operate_groups):
            roles.add("operate")
        return Caller(name[:256], _with_implied(tuple(roles)), "proxy")


def _with_implied(roles: tuple[Role, ...]) -> frozenset[Role]:
    return frozenset({*roles, "read"}) if "operate" in roles else frozenset(roles)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
