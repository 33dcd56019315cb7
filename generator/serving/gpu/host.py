"""What a GPU host is, what a repository asks of it, and whose engines may be loaded.

Only the standard library: deploy/triton/Dockerfile copies this file into NVIDIA's image, where `serve-gpu` runs it.

    python3 host.py verify REPOSITORY ENGINES   prints `serve` or `build`; refuses with one line and exit code 4
    python3 host.py record REPOSITORY ENGINES   notes that this host has built the engines that lie there
    python3 host.py forget REPOSITORY ENGINES   removes the engines of this repository, whoever built them

ENGINES/<build>/host.json is the record: the host, and each engine's SHA-256. It is written before the first engine, so that what an
interrupted build has left is known to be this host's.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RECORD = "host.json"
REFUSED = 4
"""Exit code of a refusal: that of `ModelError`."""
UNKNOWN = "unknown"
TENSORRT_LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
ONNXRUNTIME_LIBRARY = "/opt/tritonserver/backends/onnxruntime"


class Refused(Exception):
    """Repository, host and engines do not go together; the message has the numbers and the command."""


@dataclass(frozen=True)
class Host:
    """A machine with GPUs and what its image holds; versions as text, `unknown` where nothing says them."""

    gpu: str
    compute_capability: str
    driver: str
    triton: str
    tensorrt: str
    onnxruntime: str


@dataclass(frozen=True)
class Required:
    """What a repository is for, as its manifest says (`gpu`)."""

    compute_capabilities: tuple[str, ...]
    triton: str
    """The very version."""
    tensorrt: str
    """Its beginning: all versions that share it read the same graphs."""
    onnxruntime: str
    """The least version."""
    driver: str
    """The least version."""
    image: str


def mismatches(required: Required, host: Host) -> list[str]:
    """What of the host is not what the repository is for, with both numbers."""
    found = []
    if host.compute_capability not in required.compute_capabilities:
        wanted = ", ".join(required.compute_capabilities)
        found.append(f"GPU {host.gpu} has compute capability {host.compute_capability}, the repository is for {wanted}")
    if host.triton != required.triton:
        found.append(f"Triton is {host.triton}, the repository is for {required.triton}")
    if numbers(host.tensorrt)[: len(numbers(required.tensorrt))] != numbers(required.tensorrt):
        found.append(f"TensorRT is {host.tensorrt}, the repository is for {required.tensorrt}")
    for name, has, least in (
        ("ONNX Runtime", host.onnxruntime, required.onnxruntime),
        ("the driver", host.driver, required.driver),
    ):
        if numbers(has) < numbers(least):
            found.append(f"{name} is {has}, the repository asks for {least} or newer")
    return found


def numbers(version: str) -> tuple[int, ...]:
    """`10.13.3.9+cuda13.0` -> (10, 13, 3, 9); () for what begins with no number."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def rebuild_command(required: Required, host: Host | None = None) -> str:
    """The command that makes a repository for this host."""
    capability = (host or required_host(required)).compute_capability.replace(".", "")
    return f"`pigeon models build --target gpu --compute-capability {capability}`, served by {required.image}"


def required_host(required: Required) -> Host:
    """A host as the repository wants it."""
    first = required.compute_capabilities[0]
    return Host(UNKNOWN, first, required.driver, required.triton, required.tensorrt, required.onnxruntime)


def check_host(required: Required, host: Host) -> None:
    """Raises:
    Refused: the host is not what the repository is for.
    """
    if found := mismatches(required, host):
        raise Refused(f"{'; '.join(found)}; build one for this host: {rebuild_command(required, host)}")


def check_engines(folder: Path, host: Host) -> bool:
    """Whether the engines of this build are complete; False: there are none, or this host was interrupted.

    folder: ENGINES/<build>.

    Raises:
        Refused: they are another host's, nobody's, or were changed.
    """
    record = folder / RECORD
    rebuild = "remove them and build them here: serve-gpu rebuild"
    if not record.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise Refused(f"{folder}: holds engines and no {RECORD}, so nobody knows for which GPU they are; {rebuild}")
        return False
    told = json.loads(record.read_text(encoding="utf-8"))
    built_by = Host(**told["host"])
    if built_by != host:
        differing = ", ".join(
            f"{name} {theirs} (this host: {ours})"
            for (name, theirs), ours in zip(asdict(built_by).items(), asdict(host).values(), strict=True)
            if theirs != ours
        )
        raise Refused(f"{folder}: engines were built for {differing}; {rebuild}")
    if not told["complete"]:
        return False
    if changed := [name for name, digest in told["engines"].items() if _digest(folder / name) != digest]:
        raise Refused(f"{folder}: {changed[0]} is missing or was changed since it was built; {rebuild}")
    return True


def write_record(folder: Path, host: Host, *, complete: bool) -> None:
    """Note whose engines lie in `folder`, and, when they are complete, what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    engines = {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD and path.suffix != ".timing"
    }
    told = {"complete": complete, "host": asdict(host), "engines": engines if complete else {}}
    staged = folder / f"{RECORD}.new"
    staged.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    staged.replace(folder / RECORD)


def read_required(manifest: Mapping[str, object], repository: Path) -> Required:
    """Raises:
    Refused: the repository is of another target.
    """
    told = manifest.get("gpu")
    if not isinstance(told, dict):
        raise Refused(f"{repository}: is for CPUs; `pigeon models build --target gpu` makes one for a GPU host")
    return Required(**{**told, "compute_capabilities": tuple(told["compute_capabilities"])})


def read_repository(repository: Path) -> Mapping[str, object]:
    """The manifest of a repository whose files are those that were built.

    Raises:
        Refused: there is none, or a file is missing or was changed.
    """
    path = repository / "manifest.json"
    if not path.is_file():
        raise Refused(
            f"{repository}: no manifest.json, so it is empty or incomplete; `pigeon models build --target gpu`"
        )
    manifest: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    models = manifest["models"]
    assert isinstance(models, dict)  # noqa: S101 -- as the build writes it
    for model, entry in models.items():
        for name, digest in entry["files"].items():
            if _digest(repository / model / name) != digest:
                raise Refused(f"{repository}: {model}/{name} is missing or was changed after the build; copy it again")
    return manifest


def read_host(environment: Mapping[str, str]) -> Host:
    """This machine, from nvidia-smi and what NVIDIA's image says of itself.

    Raises:
        Refused: no GPU, or GPUs of several kinds.
    """
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused(f"no GPU: nvidia-smi does not answer ({error}); run the container with --gpus") from None
    kinds = {tuple(field.strip() for field in row) for row in csv.reader(told.splitlines()) if row}
    if len(kinds) != 1:
        listed = "; ".join(" ".join(kind) for kind in sorted(kinds)) or "none"
        raise Refused(f"GPUs of one kind are needed, found {listed}; show the container one kind (--gpus)")
    name, capability, driver = kinds.pop()
    return Host(
        gpu=name,
        compute_capability=capability,
        driver=driver,
        triton=environment.get("TRITON_SERVER_VERSION") or UNKNOWN,
        tensorrt=environment.get("TRT_VERSION") or library_version(TENSORRT_LIBRARIES, "libnvinfer.so."),
        onnxruntime=environment.get("ONNXRUNTIME_VERSION")
        or library_version((ONNXRUNTIME_LIBRARY,), "libonnxruntime.so."),
    )


def library_version(folders: Sequence[str], prefix: str) -> str:
    """The longest version that a library's file name ends with, `unknown` without one."""
    found = [path.name.removeprefix(prefix) for folder in folders for path in Path(folder).glob(f"{prefix}*")]
    return max((text for text in found if numbers(text)), key=lambda text: len(numbers(text)), default=UNKNOWN)


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(verb: str, repository: Path, engines: Path, environment: Mapping[str, str]) -> str:
    """What `serve-gpu` is to do: `serve` or `build`; empty for the other verbs.

    Raises:
        Refused: as the functions above.
    """
    manifest = read_repository(repository)
    required, folder = read_required(manifest, repository), engines / str(manifest["build"])
    if verb == "forget":
        shutil.rmtree(folder, ignore_errors=True)
        return ""
    host = read_host(environment)
    check_host(required, host)
    if verb == "record":
        write_record(folder, host, complete=True)
        return ""
    if check_engines(folder, host):
        return "serve"
    shutil.rmtree(folder, ignore_errors=True)
    write_record(folder, host, complete=False)
    return "build"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    if len(arguments) != 3 or arguments[0] not in {"verify", "record", "forget"}:
        print("usage: host.py verify|record|forget REPOSITORY ENGINES", file=sys.stderr)  # noqa: T201
        return 2
    try:
        if state := run(arguments[0], Path(arguments[1]), Path(arguments[2]), os.environ):
            print(state)  # noqa: T201 -- a program's answer
    except Refused as error:
        print(f"serve-gpu: {error}", file=sys.stderr)  # noqa: T201
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
