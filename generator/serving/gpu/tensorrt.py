"""Graphs compiled ahead of time with TensorRT-RTX, as a check that needs no GPU; nothing is kept.

Needs the extra `[tensorrt]`. What a run of this shows is that the graphs parse and compile with their profiles. Their numbers were
compared with PyTorch under ONNX Runtime, by the build. The server's own TensorRT builds the engines that are loaded, on its host.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.serving.gpu.backends.rows import ROWS
from generator.serving.gpu.profiles import Range, row_range, token_range
from schemas.errors import InputError, ModelError


@dataclass(frozen=True)
class CompiledGraph:
    """One graph of the check."""

    model: str
    plan_bytes: int
    seconds: float
    reason: str
    """Why it does not compile; empty when it does."""


@dataclass(frozen=True)
class CompileReport:
    """What was tried, and what came of it."""

    tensorrt_rtx: str
    compiled_for: tuple[str, ...]
    left_out: tuple[str, ...]
    """GPU generations that TensorRT-RTX does not compile for ahead of time."""
    graphs: tuple[CompiledGraph, ...]

    @property
    def claim(self) -> str:
        """What may be said of it."""
        good = sum(not graph.reason for graph in self.graphs)
        untried = f"; it does not compile for {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{good} of {len(self.graphs)} graphs parse and compile under TensorRT-RTX {self.tensorrt_rtx} for "
            f"{', '.join(self.compiled_for)}{untried}; not run on a GPU"
        )


def import_tensorrt() -> Any:
    """The module `tensorrt_rtx`, imported when it is needed.

    Raises:
        InputError: the extra is not installed.
    """
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise InputError(
            f"--compile: TensorRT-RTX is not installed ({error}); pip install 'pigeon-posters[tensorrt]'"
        ) from None
    return tensorrt_rtx


def compile_repository(
    repository: Path,
    capabilities: Sequence[str],
    *,
    report: Callable[[str], None] = lambda line: None,
) -> CompileReport:
    """Compile every graph that the server gives to TensorRT, for the capabilities (`8.9`) that are known.

    Raises:
        InputError: TensorRT-RTX is not installed, or knows none of the capabilities.
        ModelError: the repository is not complete.
    """
    trt = import_tensorrt()
    names = {capability: "SM" + capability.replace(".", "") for capability in capabilities}
    known = [name for name in names.values() if hasattr(trt.ComputeCapability, name)]
    if not known:
        all_known = ", ".join(sorted(c for c in dir(trt.ComputeCapability) if c.startswith("SM")))
        raise InputError(f"--compile: TensorRT-RTX {trt.__version__} compiles ahead of time for {all_known} only")
    path = repository / "pigeon" / "1" / "config.json"
    if not path.is_file():
        raise ModelError(f"model repository {repository}: {path} is missing; run `pigeon models build --target gpu`")
    tokens = token_range(int(json.loads(path.read_bytes())["language"]["max_positions"]))
    graphs = []
    for model in ROWS:
        compiled = compile_graph(trt, repository / model / "1" / "model.onnx", model, row_range(model), tokens, known)
        graphs.append(compiled)
        report(
            f"{model:<22} "
            + (
                f"does not compile: {compiled.reason}"
                if compiled.reason
                else f"compiles, {compiled.plan_bytes / 2**20:.1f} MiB in {compiled.seconds:.0f} s"
            )
        )
    left_out = tuple(name for name in names.values() if name not in known)
    return CompileReport(trt.__version__, tuple(known), left_out, tuple(graphs))


def compile_graph(
    trt: Any, path: Path, model: str, rows: Range, tokens: Range, capabilities: Sequence[str]
) -> CompiledGraph:
    """One graph with its profile, strongly typed as the server builds it; `trt` is `import_tensorrt()`."""
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
    network = builder.create_network(0)  # TensorRT-RTX knows strongly typed networks only
    parser = trt.OnnxParser(network, Complaints())
    plan = None
    if parser.parse_from_file(str(path)):
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
        config.add_optimization_profile(_profile(builder, network, {"batch": rows, "tokens": tokens}))
        plan = builder.build_serialized_network(network, config)
    else:
        complaints += [
            f"{error.node_operator() or 'graph'} {error.node_name()}: {error.desc()}".strip()
            for error in (parser.get_error(index) for index in range(parser.num_errors))
        ]
    seconds = round(time.monotonic() - started, 1)
    if plan is None:
        return CompiledGraph(model, 0, seconds, complaints[0] if complaints else "TensorRT gave no reason")
    return CompiledGraph(model, len(bytes(plan)), seconds, "")


def _profile(builder: Any, network: Any, ranges: Mapping[str, Range]) -> Any:
    """The range of every dimension that varies."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        if all(size >= 0 for size in tensor.shape):
            continue
        shapes = [
            tuple(
                size if size >= 0 else getattr(ranges[name], end)
                for size, name in zip(tensor.shape, names, strict=True)
            )
            for end in ("least", "usual", "most")
        ]
        profile.set_shape(tensor.name, *shapes)
    return profile
