"""What a broker answers to our login, asked before any client is made.

kafka-python only reports that no broker answers.

`check_login` tries the brokers of the settings in turn and raises what waiting would not mend, within seconds.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

from schemas.connections import kafka_options
from schemas.errors import InputError
from schemas.runtime import kafka_login

if TYPE_CHECKING:
    from schemas.settings_kafka import KafkaSettings

CONNECT_SECONDS = 5.0
"""Seconds that one broker may take to accept a connection and the login."""
_accepted: set[KafkaSettings] = set()  # logins that were good once; the next client need not ask


def check_login(settings: KafkaSettings, seconds: float = CONNECT_SECONDS, *, again: bool = False) -> None:
    """Raise what is wrong with the login, if a broker refuses it; silent ones are passed over.

    Args:
        again: ask although this login was good before.

    Raises:
        InputError: a broker refuses the login, or speaks another protocol; the message names the setting.
    """
    if settings in _accepted and not again:
        return
    if settings.sasl_mechanism == "AWS_MSK_IAM":
        _check_keys()
    silent: list[tuple[int, tuple[str, int], Exception]] = []
    for number, address in enumerate(addresses(settings)):
        if not _accepts(address, seconds):
            continue
        # TLS first, by itself: kafka-python leaves the sockets of failed handshakes open.
        if untrusted := kafka_login.explain(settings, address, seconds):
            raise untrusted
        try:
            _log_in(settings, number, seconds)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, `_explain` knows it or another broker is asked
            if _is_silence(error):
                silent.append((number, address, error))  # explaining takes long: only where nobody lets us in
                continue
            if refused := _explain(settings, number, address, error, seconds):
                raise refused from None
        else:
            _accepted.add(settings)
            return
    for number, address, silence in silent:
        if refused := _explain(settings, number, address, silence, seconds):
            raise refused


def _is_silence(error: Exception) -> bool:
    """Whether a broker has not answered in time."""
    from kafka import errors

    return isinstance(error, (TimeoutError, errors.RequestTimedOutError, errors.KafkaTimeoutError))


def _check_keys() -> None:
    """Whether boto3 finds what a login by IAM is signed with; kafka-python would fail without words."""
    from botocore.session import Session

    session = Session()
    if session.get_credentials() is None:
        raise kafka_login.refuse(
            "sasl_mechanism", "is AWS_MSK_IAM, but boto3 finds no keys (environment, profile, role)"
        )
    if not session.get_config_variable("region"):
        raise kafka_login.refuse("sasl_mechanism", "is AWS_MSK_IAM, but there is no region: set AWS_DEFAULT_REGION")


def addresses(settings: KafkaSettings) -> list[tuple[str, int]]:
    """Host and port of each broker of the settings.

    Raises:
        InputError: one of them is not host:port.
    """
    found = []
    for text in settings.bootstrap_servers.split(","):
        host, _, port = text.strip().rpartition(":")
        if not host or not port.isdigit():
            raise InputError(
                f"kafka.bootstrap_servers (PIGEON_KAFKA__BOOTSTRAP_SERVERS) {text.strip()!r} is not host:port"
            )
        found.append((host.strip("[]"), int(port)))
    return found


def _accepts(address: tuple[str, int], seconds: float) -> bool:
    """Whether a server takes connections at all."""
    try:
        socket.create_connection(address, timeout=seconds).close()
    except OSError:
        return False
    return True


def _log_in(settings: KafkaSettings, number: int, seconds: float, *, offers: bool = False, **other: Any) -> Any:
    """Log in at the number-th broker and ask it for the cluster's brokers.

    Args:
        offers: ask for the SASL mechanisms that it offers instead.
        other: options of kafka-python that replace those of the settings.

    Raises: kafka-python's errors, as they are.
    """
    from kafka.net.manager import KafkaConnectionManager
    from kafka.net.selector import NetworkSelector
    from kafka.protocol.metadata import MetadataRequest
    from kafka.protocol.sasl import SaslHandshakeRequest

    class Manager(KafkaConnectionManager):  # type: ignore[misc] # kafka-python has no types
        async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
            return _keeping_last_words(await super()._build_transport(node, timeout_at=timeout_at))

    options = {**kafka_options(settings), "request_timeout_ms": round(seconds * 1000), **other}
    options["bootstrap_servers"] = [options["bootstrap_servers"][number]]
    net = NetworkSelector(client_id="pigeon-login")
    manager = Manager(net, client_id="pigeon-login", **options)

    async def ask() -> Any:
        (broker,) = manager.cluster.bootstrap_brokers()
        connection = manager.get_connection(
            broker.node_id,
            timeout_ms=round(seconds * 1000),
            pop_on_close=False,
            refresh_metadata_on_err=False,
            reset_backoff_on_connect=False,
        )
        await connection
        if offers:
            return await connection.send_request(SaslHandshakeRequest(mechanism="?", max_version=1))
        return await connection.send_request(MetadataRequest(topics=[], allow_auto_topic_creation=False))

    try:
        return net.run(ask)
    finally:
        manager.close()
        net.close()


def _keeping_last_words(transport: Any) -> Any:
    """A transport that passes on what came in together with the end of the connection.

    kafka-python 3.0.12 drops it, and with it every refusal of a login: the broker says why and hangs up.
    """
    receive = transport._sock_recv

    def received() -> tuple[bytes, Exception | None]:
        data, error = receive()
        return (data, None) if data else (data, error)  # the end is there again at the next look

    transport._sock_recv = received
    return transport


def _explain(
    settings: KafkaSettings, number: int, address: tuple[str, int], error: Exception, seconds: float
) -> InputError | None:
    """The setting behind a broker's refusal; None when it may be an outage."""
    from kafka import errors

    where = f"{address[0]}:{address[1]}"
    if isinstance(error, errors.SaslAuthenticationFailedError):
        return kafka_login.refused_login(settings, where)
    if isinstance(error, errors.UnsupportedSaslMechanismError):
        offered = ", ".join(_mechanisms(settings, number, seconds)) or "others"
        return kafka_login.refuse(
            "sasl_mechanism", f"is {settings.sasl_mechanism}, which {where} does not offer; it offers {offered}"
        )
    if isinstance(error, errors.IllegalSaslStateError):
        return kafka_login.refuse(
            "security_protocol",
            f"is {settings.security_protocol}, but {where} takes no login there: write "
            f"{settings.security_protocol.removeprefix('SASL_')}",
        )
    if isinstance(error, errors.AuthorizationError):
        return kafka_login.refuse("sasl_username", f"may not even ask {where} for its brokers: {type(error).__name__}")
    return _wrong_protocol(settings, number, address, seconds)


def _wrong_protocol(
    settings: KafkaSettings, number: int, address: tuple[str, int], seconds: float
) -> InputError | None:
    """Whether the broker speaks TLS or wants a login where the settings have neither."""
    protocol, where = settings.security_protocol, f"{address[0]}:{address[1]}"
    if not protocol.endswith("SSL") and speaks_tls(address, seconds):
        secure = "SASL_SSL" if protocol.startswith("SASL") else "SSL"
        return kafka_login.refuse(
            "security_protocol",
            f"is {protocol}, but {where} speaks TLS: write {secure} (SASL_SSL where it wants a login)",
        )
    if not protocol.startswith("SASL") and (offered := _mechanisms(settings, number, seconds)):
        wanted = "SASL_SSL" if protocol == "SSL" else "SASL_PLAINTEXT"
        return kafka_login.refuse(
            "security_protocol",
            f"is {protocol}, but {where} wants a login: write {wanted}, and one of its mechanisms "
            f"({', '.join(offered)}) as kafka.sasl_mechanism",
        )
    return None


def _mechanisms(settings: KafkaSettings, number: int, seconds: float) -> list[str]:
    """The SASL mechanisms that a broker offers; none where it offers no login or does not answer."""
    without = {"security_protocol": "SSL" if settings.security_protocol.endswith("SSL") else "PLAINTEXT"}
    try:
        answer = _log_in(settings, number, seconds, offers=True, sasl_mechanism=None, **without)
    except Exception:  # noqa: BLE001 - it does not answer, whatever is wrong with it
        return []
    return list(answer.mechanisms or ())


def speaks_tls(address: tuple[str, int], seconds: float = CONNECT_SECONDS) -> bool:
    """Whether a server begins a TLS handshake, whoever it may be."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(address, timeout=seconds) as plain:
            context.wrap_socket(plain, server_hostname=address[0]).close()
    except ssl.SSLError as error:
        # It wants our certificate: that is TLS, too.
        return "ALERT" in (error.reason or "").upper()
    except (OSError, ValueError):
        return False
    return True
