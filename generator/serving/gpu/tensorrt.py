"""The exported graphs compiled ahead of time with TensorRT-RTX (extra `[tensorrt]`); uses no GPU.

What a run of this shows is that the graphs parse and compile. Their numbers were compared with PyTorch under ONNX Runtime,
by the build; nothing here runs them under TensorRT.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from generator.serving.adapters import PERSONALIZER
from generator.serving.repository import MODELS, file_hash, read_manifest
from schemas.errors import InputError, ModelError

REPORT = "report.json"
MAX_GRID = 11
"""α values of the paper's grid; guidance doubles the rows of the UNet."""


class CompiledGraph(BaseModel):
    """One graph of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph: str
    onnx_sha256: str
    plan: str | None
    """Path below the report's folder; none when it does not compile."""
    plan_sha256: str | None
    plan_bytes: int
    seconds: float
    reason: str
    """Why it does not compile; empty when it does."""


class CompileReport(BaseModel):
    """report.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    build: str
    tensorrt_rtx: str
    compute_capabilities: tuple[str, ...]
    precision: str = "float32"
    claim: str
    graphs: tuple[CompiledGraph, ...]


def parse_compute_capabilities(text: str) -> tuple[str, ...]:
    """`89` or `80,86,89` -> names as TensorRT has them, `SM89`.

    Raises:
        InputError: not numbers.
    """
    parts = tuple(part.strip() for part in text.split(","))
    if not all(part.isdigit() for part in parts):
        raise InputError(f"--compute-capability {text}: give numbers such as 89, or several as 80,86,89")
    return tuple(f"SM{part}" for part in parts)


def import_tensorrt() -> Any:
    """The module `tensorrt_rtx`, imported when it is needed.

    Raises:
        InputError: the extra is not installed.
    """
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise InputError(
            f"--target tensorrt: TensorRT-RTX is not installed ({error}); pip install 'pigeon-posters[tensorrt]'"
        ) from None
    return tensorrt_rtx


def compile_repository(
    repository: Path,
    output: Path,
    capabilities: Sequence[str],
    *,
    report: Callable[[str], None] = lambda line: None,
) -> CompileReport:
    """Compile every graph of a repository into `output`, and write report.json there.

    Raises:
        InputError: TensorRT-RTX is not installed, or does not build for such a GPU.
        ModelError: the repository is not complete.
    """
    trt = import_tensorrt()
    for name in capabilities:
        if not hasattr(trt.ComputeCapability, name):
            known = ", ".join(sorted(c for c in dir(trt.ComputeCapability) if c.startswith("SM")))
            raise InputError(
                f"--compute-capability: TensorRT-RTX {trt.__version__} does not build for {name}; it knows {known}"
            )
    manifest = read_manifest(repository)
    output.mkdir(parents=True, exist_ok=True)
    for old in (output / REPORT, *output.glob("*.plan")):
        old.unlink(missing_ok=True)
    graphs = []
    for path in _graph_files(repository):
        compiled = _compile(trt, path, _title(path, repository), output, capabilities)
        graphs.append(compiled)
        report(
            f"{compiled.graph:<22} compiles, {compiled.plan_bytes / 2**20:.1f} MiB in {compiled.seconds:.0f} s"
            if compiled.plan
            else f"{compiled.graph:<22} does not compile: {compiled.reason}"
        )
    good = sum(graph.plan is not None for graph in graphs)
    claim = (
        f"{good} of {len(graphs)} graphs parse and compile under TensorRT-RTX {trt.__version__} for "
        f"{', '.join(capabilities)}; numerics checked with ONNX Runtime; not run under TensorRT"
    )
    result = CompileReport(
        build=manifest.build,
        tensorrt_rtx=trt.__version__,
        compute_capabilities=tuple(capabilities),
        claim=claim,
        graphs=tuple(graphs),
    )
    (output / REPORT).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return result


def _graph_files(repository: Path) -> list[Path]:
    files: list[Path] = []
    for model in MODELS:
        folder = repository / model / ("graph" if model == PERSONALIZER else "1")
        files += sorted(folder.glob("*.onnx"))
    if not files:
        raise ModelError(f"model repository {repository}: no ONNX graphs; run `pigeon models build`")
    return files


def _title(path: Path, repository: Path) -> str:
    model = path.relative_to(repository).parts[0]
    return model if path.stem == "model" else f"{model}/{path.stem}"


def _compile(trt: Any, path: Path, title: str, output: Path, capabilities: Sequence[str]) -> CompiledGraph:
    started = time.monotonic()
    complaints: list[str] = []

    class Complaints(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
        """TensorRT gives its reasons to the logger only."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}:
                complaints.append(" ".join(message.split()))

    builder = trt.Builder(Complaints())
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, Complaints())
    plan = None
    if parser.parse_from_file(str(path)):
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
        config.add_optimization_profile(_profile(builder, network, path))
        plan = builder.build_serialized_network(network, config)
    else:
        complaints += [
            f"{error.node_operator() or 'graph'} {error.node_name()}: {error.desc()}".strip()
            for error in (parser.get_error(index) for index in range(parser.num_errors))
        ]
    seconds = round(time.monotonic() - started, 1)
    digest = file_hash(path)
    if plan is None:
        reason = complaints[0] if complaints else "TensorRT gave no reason"
        return CompiledGraph(
            graph=title, onnx_sha256=digest, plan=None, plan_sha256=None, plan_bytes=0, seconds=seconds, reason=reason
        )
    target = output / f"{title.replace('/', '.')}.plan"
    target.write_bytes(bytes(plan))
    return CompiledGraph(
        graph=title,
        onnx_sha256=digest,
        plan=target.name,
        plan_sha256=file_hash(target),
        plan_bytes=target.stat().st_size,
        seconds=seconds,
        reason="",
    )


def _profile(builder: Any, network: Any, path: Path) -> Any:
    """The range of every dimension that varies: rows of a grid, prompt tokens, cached tokens."""
    ranges = _ranges(path)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        if all(size >= 0 for size in tensor.shape):
            continue
        shapes = [
            tuple(size if size >= 0 else ranges[name][which] for size, name in zip(tensor.shape, names, strict=True))
            for which in range(3)
        ]
        profile.set_shape(tensor.name, *shapes)
    return profile


def _ranges(path: Path) -> dict[str, tuple[int, int, int]]:
    """Dimension name -> (least, usual, most)."""
    config = json.loads((path.parents[2] / "pigeon" / "1" / "config.json").read_text(encoding="utf-8"))
    positions = int(config["language"]["max_positions"])
    rows = 2 * MAX_GRID
    return {
        "batch": (1, 6, rows),
        "tokens": (1, positions // 4, positions),
        "past": (0, positions // 4, positions),
    }
