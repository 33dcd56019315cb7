"""A GPU host and its engines: what does not match is refused with the numbers.

Manifests, engines, nvidia-smi and the server are planted: nothing here has a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from generator.serving.gpu import host as hosts
from generator.serving.gpu.host import Host, Refused, Required, check_engines, check_host, write_record
from generator.serving.gpu.release import IMAGE, TRITON, check_release, parse_compute_capabilities
from generator.serving.repository import GpuHost
from schemas.errors import InputError, ModelError

EVERYWHERE = "0.0.0.0"  # noqa: S104 -- where the container listens; the server here is a stand-in that opens nothing
CHECKOUT = Path(__file__).parents[2]
REQUIRED = Required(("8.9", "9.0"), "2.64.0", "10", "1.18", "580", IMAGE)
HOST = Host("NVIDIA H200", "9.0", "580.95.05", "2.64.0", "10.13.3.9+cuda13.0", "1.23.2")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("compute_capability", "7.5", "NVIDIA H200 has compute capability 7.5, the repository is for 8.9, 9.0"),
        ("triton", "2.51.0", "Triton is 2.51.0, the repository is for 2.64.0"),
        ("tensorrt", "8.6.1", "TensorRT is 8.6.1, the repository is for 10"),
        ("tensorrt", "unknown", "TensorRT is unknown, the repository is for 10"),
        ("onnxruntime", "1.17.3", "ONNX Runtime is 1.17.3, the repository asks for 1.18 or newer"),
        ("driver", "570.86.10", "the driver is 570.86.10, the repository asks for 580 or newer"),
    ],
)
def test_a_host_that_does_not_match_is_refused_with_the_numbers_and_the_command(field, value, message) -> None:
    check_host(REQUIRED, HOST)
    with pytest.raises(Refused, match=message) as refused:
        check_host(REQUIRED, replace(HOST, **{field: value}))
    capability = (value if field == "compute_capability" else "9.0").replace(".", "")
    assert f"`pigeon models build --target gpu --compute-capability {capability}`" in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("gpu", "NVIDIA L40S"), ("compute_capability", "8.9"), ("driver", "590.1"), ("tensorrt", "10.14.0")],
)
def test_engines_of_another_host_are_never_loaded(tmp_path: Path, field: str, value: str) -> None:
    plant_engine(tmp_path)
    write_record(tmp_path, replace(HOST, **{field: value}), complete=True)
    ours = asdict(HOST)[field]
    with pytest.raises(
        Refused, match=rf"{field} {value} \(this host: .*\); remove them .*serve-gpu rebuild"
    ) as refused:
        check_engines(tmp_path, HOST)
    assert ours in str(refused.value)


def plant_engine(folder: Path) -> Path:
    engine = folder / "unet" / "TensorrtExecutionProvider_graph_1_0_sm90.engine"
    engine.parent.mkdir(parents=True, exist_ok=True)
    engine.write_bytes(b"an engine")
    return engine


def test_engines_are_loaded_only_whole_and_with_their_record(tmp_path: Path) -> None:
    assert not check_engines(tmp_path / "none", HOST)
    engine = plant_engine(tmp_path)
    with pytest.raises(Refused, match=r"holds engines and no host\.json, so nobody knows for which GPU"):
        check_engines(tmp_path, HOST)
    write_record(tmp_path, HOST, complete=False)
    assert not check_engines(tmp_path, HOST), "an interrupted build of this host is built again"
    write_record(tmp_path, HOST, complete=True)
    assert check_engines(tmp_path, HOST)
    engine.write_bytes(b"another")
    with pytest.raises(Refused, match=r"sm90\.engine is missing or was changed since it was built"):
        check_engines(tmp_path, HOST)


def test_a_server_of_another_version_is_refused_before_anything_is_loaded() -> None:
    gpu = GpuHost(**{**asdict(REQUIRED), "compute_capabilities": ("9.0",)})
    check_release(gpu, "gpu:8001", TRITON)
    with pytest.raises(
        ModelError, match=r"gpu:8001: is 2\.51\.0, the model repository is for 2\.64\.0 on GPUs"
    ) as refused:
        check_release(gpu, "gpu:8001", "2.51.0")
    assert "`pigeon models build --target gpu --compute-capability 90`" in str(refused.value)


def test_compute_capabilities() -> None:
    assert parse_compute_capabilities("89") == ("8.9",)
    assert parse_compute_capabilities("80, 120") == ("8.0", "12.0")
    for text in ("", "9", "sm89", "8.9", "89,"):
        with pytest.raises(InputError, match=r"--compute-capability .*: give numbers such as 89"):
            parse_compute_capabilities(text)
    with pytest.raises(InputError, match=r"7\.0 is older than 7\.5"):
        parse_compute_capabilities("89,70")


def test_versions_are_read_from_what_the_image_holds(tmp_path: Path) -> None:
    for name in ("libnvinfer.so", "libnvinfer.so.10", "libnvinfer.so.10.13.3", "libnvinfer_plugin.so.9"):
        (tmp_path / name).touch()
    assert hosts.library_version([str(tmp_path)], "libnvinfer.so.") == "10.13.3"
    assert hosts.library_version([str(tmp_path / "none")], "libnvinfer.so.") == "unknown"


SERVER = """#!/usr/bin/env python3
import http.server, os, pathlib, sys
options = dict(one.removeprefix("--").split("=", 1) for one in sys.argv[1:] if "=" in one)
state = pathlib.Path(os.environ["STATE"])
with (state / "starts").open("a") as file:
    print(options["http-address"], file=file)
if options["http-address"] != "127.0.0.1":
    sys.exit(0)
engine = state / "engines" / "b1" / "unet" / "unet_sm90.engine"
engine.parent.mkdir(parents=True, exist_ok=True)
engine.write_bytes(b"built here")
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(options["http-port"])), Ready).serve_forever()
"""


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`serve-gpu` on a host with the given GPU; its server notes where it was started."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "tritonserver").write_text(SERVER)
    (programs / "nvidia-smi").write_text('#!/bin/sh\necho "$GPU"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    model = tmp_path / "models" / "unet" / "config.pbtxt"
    model.parent.mkdir(parents=True)
    model.write_text('name: "unet"\n')
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    entry = {"files": {"config.pbtxt": digest}, "inputs": [], "outputs": []}
    manifest = {"build": "b1", "gpu": asdict(REQUIRED), "models": {"unet": entry}}
    (tmp_path / "models" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "engines").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def serve(*arguments: str, gpu: str = "NVIDIA H200, 9.0, 580.95.05") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(CHECKOUT / "deploy/triton/serve-gpu.sh"), *arguments],
            env={
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
                "GPU": gpu,
                "STATE": str(tmp_path),
                "MODELS": str(tmp_path / "models"),
                "ENGINES": str(tmp_path / "engines"),
                "HOST_PY": str(CHECKOUT / "generator/serving/gpu/host.py"),
                "TRITON_ADMIN_KEY": "secret",
                "TRITON_PORTS": f"{port} 0 0",
                "TRITON_SERVER_VERSION": "2.64.0",
                "TRT_VERSION": "10.13.3.9",
                "ONNXRUNTIME_VERSION": "1.23.2",
                "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
            },
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return serve


def test_the_entrypoint_builds_engines_once_and_refuses_those_of_another_gpu(machine, tmp_path) -> None:
    built = machine()
    assert (built.returncode, starts(tmp_path)) == (0, ["127.0.0.1", EVERYWHERE]), built.stderr
    record = json.loads((tmp_path / "engines" / "b1" / "host.json").read_text())
    assert record["complete"]
    assert record["host"]["gpu"] == "NVIDIA H200"
    assert list(record["engines"]) == ["unet/unet_sm90.engine"]

    again = machine()
    assert (again.returncode, starts(tmp_path)) == (0, ["127.0.0.1", EVERYWHERE, EVERYWHERE]), again.stderr

    other = machine(gpu="NVIDIA L40S, 8.9, 580.95.05")
    assert other.returncode == hosts.REFUSED
    assert "gpu NVIDIA H200 (this host: NVIDIA L40S), compute_capability 9.0 (this host: 8.9)" in other.stderr
    assert len(starts(tmp_path)) == 3, "no server was started"
    rebuilt = machine("rebuild", gpu="NVIDIA L40S, 8.9, 580.95.05")
    assert (rebuilt.returncode, starts(tmp_path)[3:]) == (0, ["127.0.0.1", EVERYWHERE]), rebuilt.stderr

    mixed = machine(gpu="NVIDIA H200, 9.0, 580.95.05\nNVIDIA L40S, 8.9, 580.95.05")
    assert "GPUs of one kind are needed" in mixed.stderr
    (tmp_path / "models" / "unet" / "config.pbtxt").write_text("changed")
    changed = machine()
    assert (changed.returncode, "unet/config.pbtxt is missing or was changed" in changed.stderr) == (
        hosts.REFUSED,
        True,
    )


def starts(state: Path) -> list[str]:
    return (state / "starts").read_text().split()


def test_a_repository_for_cpus_is_refused_by_a_gpu_host(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"build": "b1", "models": {}}))
    with pytest.raises(Refused, match="is for CPUs; `pigeon models build --target gpu`"):
        hosts.run("verify", tmp_path, tmp_path / "engines", {})
