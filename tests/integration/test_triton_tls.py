"""FLAWS F14, INPUTS 26: TLS to the real Triton, mutual, and words for what does not fit."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deploy.local.ports import choose
from deploy.local.process import Child, Command
from deploy.local.state import Secrets, StateDir
from deploy.local.triton import Triton
from generator.serving.channel import open_channel
from generator.serving.doctor import PROBES
from generator.serving.server import TritonServer
from schemas.errors import InputError, ServerUnavailable
from schemas.runtime.checkup import look
from schemas.settings import Settings, load_settings
from schemas.settings_triton import TritonSettings
from tests.support.certificates import Authority

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command"),
]


class SecureTriton(Triton):
    """The embedded server, which asks for a certificate of ours."""

    secure: tuple[str, ...] = ()

    def command(self) -> Command:
        plain = super().command()
        return dataclasses.replace(plain, argv=[*plain.argv, *self.secure])


@dataclasses.dataclass
class Served:
    """A server that talks TLS, and what a client needs for it."""

    settings: Settings
    folder: Path
    authority: Authority

    def triton(self, **changes: Any) -> TritonSettings:
        values = {**self.settings.triton.model_dump(), "network_timeout_seconds": 3.0, **changes}
        return TritonSettings.model_validate(values)


@pytest.fixture(scope="module")
def served(own_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    certificate, key = authority.sign("server")
    ours, our_key = authority.sign("pigeon")
    state = StateDir(folder / "state")
    state.make()
    ports, secrets = choose(state.path), Secrets.new()
    server = SecureTriton(state, ports, secrets)
    server.secure = (
        *("--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", f"--grpc-server-cert={certificate}"),
        *(f"--grpc-server-key={key}", f"--grpc-root-cert={authority.certificate}"),
    )
    server.prepare()
    child = Child(server.command())
    try:
        while not server.answers():
            assert child.exit_code() is None, server.log.read_text()[-2_000:]
            time.sleep(0.1)
        triton = {
            "url": server.address,
            "admin_key": secrets.triton_admin_key,
            "tls": True,
            "ca_file": authority.certificate,
            "cert_file": ours,
            "key_file": our_key,
        }
        yield Served(load_settings(state_dir=state.path, triton=triton), folder, authority)
    finally:
        child.kill()
        server.clean()


def ask(settings: TritonSettings) -> list[str]:
    server = TritonServer(settings, settings.addresses[0])
    try:
        server.loaded_versions("pigeon")  # with the key that runs code: in TLS it is not to be read on the way
        return server.unready()
    finally:
        server.close()


def test_models_and_their_control_are_asked_for_over_tls(served: Served) -> None:
    assert "pigeon" in ask(served.triton())
    found = {finding.subject: finding for finding in look(PROBES, served.settings)}
    assert found["server"].text.endswith(", TLS")
    assert "are not loaded" in found["models"].text


@pytest.mark.parametrize(
    "changes",
    [
        {"cert_file": None, "key_file": None},
        {"tls": False, "ca_file": None, "cert_file": None, "key_file": None},
        {"ca_file": None},
    ],
    ids=["without our certificate", "without TLS", "with the system's authorities"],
)
def test_a_client_that_does_not_fit_gets_no_answer(served: Served, changes: dict[str, Any]) -> None:
    with pytest.raises(ServerUnavailable):
        ask(served.triton(**changes))


def test_a_server_that_another_authority_vouches_for_gets_no_key(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable):
        ask(served.triton(ca_file=Authority(tmp_path, "other").certificate))


def test_files_that_are_not_what_they_should_be_are_named(served: Served, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(InputError, match=r"^triton\.ca_file .*holds nothing in PEM"):
        ask(served.triton(ca_file=tmp_path / "empty.pem"))
    for changes, named in [
        ({"ca_file": tmp_path / "none.pem"}, "no such file"),
        ({"tls": False}, "triton.tls is false"),
        ({"key_file": None}, "go together"),
    ]:
        with pytest.raises(ValidationError, match=named):
            served.triton(**changes)


@pytest.mark.parametrize("url", ["http://triton:8001", "triton", "triton:grpc", "triton:8001/v2"])
def test_an_address_that_is_no_host_and_port_is_refused(url: str) -> None:
    """INPUTS 26: at any command's start, which is exit code 2."""
    with pytest.raises(InputError, match=r"^setting triton\.url \(PIGEON_TRITON__URL\): .* is not host:port"):
        load_settings(triton={"url": url})


def test_a_server_that_is_gone_without_a_word_is_noticed_and_not_annoyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """INPUTS 26: keepalive; Triton ends connections that ask more often than once in five minutes."""
    made: dict[str, Any] = {}
    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", lambda url, **options: made.update(options))
    open_channel(TritonSettings(), "127.0.0.1:8001")
    options = dict(made["channel_args"])
    assert 300_000 < options["grpc.keepalive_time_ms"] < 600_000
    assert options["grpc.keepalive_timeout_ms"] <= 20_000
    assert options["grpc.max_reconnect_backoff_ms"] <= 5_000
