"""The release of NVIDIA's image that a repository is for, and whether a server is of it."""

from __future__ import annotations

from generator.serving.gpu.host import Required, rebuild_command
from generator.serving.repository import GpuHost
from schemas.errors import InputError, ModelError

IMAGE = "nvidia/tritonserver:25.12-py3"
"""NVIDIA's image that deploy/triton/Dockerfile is made from."""
TRITON = "2.64.0"
"""Version of the server in it."""
TENSORRT = "10"
"""Beginning of its TensorRT's version; the very one is not known here, a host records it with its engines."""
ONNXRUNTIME = "1.18"
"""Least ONNX Runtime that reads the graphs (opset 20, format version 10)."""
DRIVER = "580"
"""Least driver for the image's CUDA 13."""
LEAST_CAPABILITY = (7, 5)
"""Oldest GPUs that CUDA 13 knows."""


def parse_compute_capabilities(text: str) -> tuple[str, ...]:
    """`89` or `80,86,120` -> as nvidia-smi has them, `8.9`.

    Raises:
        InputError: not numbers, or older GPUs than the image's CUDA knows.
    """
    parts = tuple(part.strip() for part in text.split(","))
    if not all(part.isdigit() and len(part) > 1 for part in parts):
        raise InputError(f"--compute-capability {text}: give numbers such as 89, or several as 80,86,89")
    found = tuple(f"{part[:-1]}.{part[-1]}" for part in parts)
    if old := [name for name in found if tuple(int(part) for part in name.split(".")) < LEAST_CAPABILITY]:
        raise InputError(f"--compute-capability: {old[0]} is older than 7.5, the oldest that CUDA 13 of {IMAGE} knows")
    return found


def check_release(gpu: GpuHost, address: str, release: str) -> None:
    """Whether a server is of the version that a repository is for.

    Raises:
        ModelError: it is not.
    """
    if release == gpu.triton:
        return
    required = Required(**gpu.model_dump())
    raise ModelError(
        f"Triton at {address}: is {release}, the model repository is for {gpu.triton} on GPUs; serve it with the image of "
        f"deploy/triton, or build one for this server: `pigeon models build` for a CPU server, {rebuild_command(required)}"
    )
