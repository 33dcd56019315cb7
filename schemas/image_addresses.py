"""Where a picture may come from.

Addresses parsed and quoted as a browser does, and the rules for hosts, buckets and networks.

Everything here is decided without a question to anybody but `AddressRules.check_ip`, which is asked for each resolved address.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from schemas.images import ImageProblem
from schemas.settings import ImageSettings

Ip = IPv4Address | IPv6Address

_NEVER = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # "this host": connects to our own
        "169.254.0.0/16",  # link-local; the metadata of most clouds
        "100.100.100.200/32",  # Alibaba's metadata
        "168.63.129.16/32",  # Azure's
        "192.0.0.192/32",  # Oracle's
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "fe80::/10",
        "fd00:ec2::254/128",  # Amazon's metadata
        "fd20:ce::254/128",  # Google's
        "ff00::/8",
    )
)
"""Link-local, metadata, multicast and unspecified addresses: refused whatever a setting says."""

LONGEST_BYTES = 2_000
"""Bytes of the longest address that is taken: a database can index it, and hosts refuse longer ones anyway."""

_PRIVATE_TOO = tuple(
    IPv6Network(network)
    for network in (
        "fec0::/10",  # what private networks had before fc00::/7
        "64:ff9b:1::/48",  # translation inside a network
        "3fff::/20",
        "5f00::/16",
    )
)
"""What the Pythons that we run on take for global and IANA does not."""

_NAT64 = IPv6Network("64:ff9b::/96")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?", re.ASCII)
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PATH_SAFE = "/:@!$&'()*+,;=~-._%"
_QUERY_SAFE = _PATH_SAFE + "?"


@dataclass(frozen=True)
class WebAddress:
    """An http(s) address, quoted; `host` is lower-case, without port."""

    scheme: str
    host: str
    netloc: str
    url: str


@dataclass(frozen=True)
class BucketAddress:
    """An object of a bucket."""

    bucket: str
    key: str


@dataclass(frozen=True)
class FileAddress:
    """A file of this machine."""

    path: str


Address = WebAddress | BucketAddress | FileAddress


def parse_address(uri: str) -> Address:
    """Take an address apart.

    Raises:
        ImageProblem: it cannot be one; the text says why.
    """
    # A browser drops control characters and blanks around an address, and line breaks and tabs inside it.
    uri = re.sub(r"[\t\r\n]", "", uri.strip("".join(map(chr, range(33)))))
    if not uri:
        raise ImageProblem("the address is empty")
    if len(uri.encode("utf-8", "replace")) > LONGEST_BYTES:
        raise ImageProblem(f"the address is longer than {LONGEST_BYTES} bytes")
    try:
        parts = urlsplit(uri)
        if parts.scheme in {"http", "https"}:
            return _web(urlsplit(uri.replace("\\", "/")))
        if parts.scheme == "s3":
            # Not urlsplit's path: a key may hold "?" and "#".
            bucket, _, key = uri[len("s3://") :].partition("/") if "://" in uri else ("", "", "")
            if not (bucket and key):
                raise ImageProblem("an s3 address is s3://bucket/key")
            if {".", ".."} & set(unquote(key).split("/")):
                raise ImageProblem("an s3 key with . or .. in it is not read")
            return BucketAddress(bucket, unquote(key))
        if parts.scheme == "file":
            return FileAddress(unquote(parts.path))
        if not parts.scheme:
            return FileAddress(uri)
    except ValueError as error:  # also UnicodeError
        raise ImageProblem(f"bad address: {error}"[:200]) from error
    raise ImageProblem(f"{parts.scheme}: is not http, https, s3 or file")


def follow(address: WebAddress, location: str) -> WebAddress:
    """The http(s) address that a redirect leads to.

    Raises:
        ImageProblem: it leads elsewhere, or nowhere.
    """
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")  # headers come in as Latin-1; hosts write UTF-8
    try:
        target = parse_address(urljoin(address.url, location.strip()))
    except ValueError as error:
        raise ImageProblem(f"redirects to a bad address: {error}"[:200]) from error
    if not isinstance(target, WebAddress):
        raise ImageProblem("redirects to something that is not http or https")
    return target


def _web(parts: SplitResult) -> WebAddress:
    if parts.username is not None or parts.password is not None:
        raise ImageProblem("an address with a user name or password is not fetched")
    host = _host(parts.hostname or "")
    port = parts.port
    shown = f"[{host}]" if ":" in host else host
    netloc = shown if port is None or port == {"http": 80, "https": 443}[parts.scheme] else f"{shown}:{port}"
    path = quote(_STRAY_PERCENT.sub("%25", parts.path or "/"), safe=_PATH_SAFE)
    query = quote(_STRAY_PERCENT.sub("%25", parts.query), safe=_QUERY_SAFE)
    return WebAddress(parts.scheme, host, netloc, f"{parts.scheme}://{netloc}{path}" + (f"?{query}" if query else ""))


def _host(host: str) -> str:
    if ":" in host:
        return str(IPv6Address(host))
    try:
        ascii_host = host.lower() if host.isascii() else host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise ImageProblem(f"{host!r} is no host name") from error
    labels = ascii_host.rstrip(".").split(".")
    if not _HOST.fullmatch(ascii_host) or not all(0 < len(label) < 64 for label in labels) or len(ascii_host) > 253:
        raise ImageProblem(f"{host!r} is no host name")
    return ascii_host


class AddressRules:
    """What the settings allow; `files` lets paths of this machine be read whatever they say (imports)."""

    def __init__(self, settings: ImageSettings, own_bucket: str, *, files: bool = False) -> None:
        self._schemes = {*settings.allowed_schemes, *(("file",) if files else ())}
        self._hosts = tuple(host.lower().rstrip(".") for host in settings.allowed_hosts)
        self._buckets = {own_bucket, *settings.allowed_buckets}
        self._networks = tuple(ip_network(network) for network in settings.allowed_networks)
        self._proxied = settings.proxy is not None

    def check(self, address: Address) -> None:
        """Refuse what is not allowed, as far as the address itself tells.

        Raises:
            ImageProblem: naming the setting that would allow it.
        """
        if isinstance(address, FileAddress):
            self._check_scheme("file")
            return
        if isinstance(address, BucketAddress):
            self._check_scheme("s3")
            if address.bucket not in self._buckets and "*" not in self._buckets:
                raise ImageProblem(f"bucket {address.bucket} is not allowed (setting images.allowed_buckets)")
            return
        self._check_scheme(address.scheme)
        named = self._is_named(address.host)
        if not named and (self._proxied or (self._hosts and "*" not in self._hosts)):
            raise ImageProblem(f"host {address.host} is not allowed (setting images.allowed_hosts)")
        try:
            ip = ip_address(address.host)
        except ValueError:
            return
        self.check_ip(address.host, ip)

    def check_ip(self, host: str, ip: Ip) -> None:
        """Refuse an address that a host's name leads to.

        Raises:
            ImageProblem: link-local or metadata, or private and not allowed by name or network.
        """
        for one in (ip, *_embedded(ip)):
            if any(one.version == network.version and one in network for network in _NEVER):
                raise ImageProblem(f"{host} is {ip}, a link-local or metadata address: never asked")
            if _is_public(one) or self._is_named(host):
                continue
            if any(one.version == network.version and one in network for network in self._networks):
                continue
            raise ImageProblem(
                f"{host} is {ip}, a private address (settings images.allowed_hosts, images.allowed_networks)"
            )

    def _check_scheme(self, scheme: str) -> None:
        if scheme not in self._schemes:
            what = "files of this machine are" if scheme == "file" else f"{scheme} is"
            raise ImageProblem(f"{what} not allowed (setting images.allowed_schemes)")

    def _is_named(self, host: str) -> bool:
        host = host.rstrip(".")
        return any(
            host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:])) for allowed in self._hosts
        )


def _is_public(ip: Ip) -> bool:
    return ip.is_global and not (ip.version == 6 and any(ip in network for network in _PRIVATE_TOO))


def _embedded(ip: Ip) -> tuple[IPv4Address, ...]:
    """IPv4 addresses that an IPv6 address stands for."""
    if isinstance(ip, IPv4Address):
        return ()
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64:
        found.append(IPv4Address(int(ip) & 0xFFFFFFFF))
    if 1 < int(ip) < 2**32:  # "IPv4-compatible", long deprecated
        found.append(IPv4Address(int(ip)))
    return tuple(one for one in found if one is not None)
