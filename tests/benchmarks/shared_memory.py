"""Pictures through shared memory against gRPC, on a Triton of its own.

Its one model gives back what it is given, so that what is measured is the way there and back.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from deploy.local.stack import Stack
from generator.serving.server import TritonServer
from schemas.settings import load_settings
from tests.benchmarks.table import Figure, Options, say

MODEL = "echo"
SIDE = 592  # 592 x 592 x 3 bytes: a picture of about 1 MiB
ROUNDS = 9
CONFIG = f"""name: "{MODEL}"
backend: "python"
max_batch_size: 0
input [{{ name: "images" data_type: TYPE_UINT8 dims: [-1, {SIDE}, {SIDE}, 3] }}]
output [{{ name: "images" data_type: TYPE_UINT8 dims: [-1, {SIDE}, {SIDE}, 3] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""
BACKEND = """import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse([pb.Tensor("images", pb.get_input_tensor_by_name(one, "images").as_numpy())])
            for one in requests
        ]
"""


def rows(options: Options) -> list[Figure]:
    """Requests per second of both ways, round by round in turn."""
    requests = 200 if options.full else 50
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        stack.up(services=("triton",), say=lambda line: say(f"  {line}"), tied=True)
        try:
            shared, plain = _measured(Path(folder), requests)
        finally:
            stack.down(purge=True)
    ratios = [one / other for one, other in zip(shared, plain, strict=True)]
    detail = (
        f"{median(shared):.0f} over {median(plain):.0f} requests/s of one client, a picture of {SIDE * SIDE * 3:,} bytes there "
        f"and back; median of {ROUNDS} rounds of {requests}, {min(ratios):.2f} to {max(ratios):.2f}"
    )
    what = "1 MiB pictures there and back by shared memory over plain gRPC"
    return [Figure("shared-memory", what, median(ratios), ">= 2", detail)]


def _measured(state: Path, requests: int) -> tuple[list[float], list[float]]:
    """Requests per second of each round, shared and plain."""
    settings = load_settings(state_dir=state)
    folder = state / "models" / MODEL / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(BACKEND, encoding="utf-8")
    (folder.parent / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    servers = [
        TritonServer(settings.triton.model_copy(update={"shared_memory": sharing}), settings.triton.url)
        for sharing in (True, False)
    ]
    servers[0].load(MODEL)
    found: tuple[list[float], list[float]] = [], []
    for number in range(ROUNDS + 1):
        for server, rates in zip(servers, found, strict=True):
            rate = _rate(server, requests)
            if number:  # the first round warms up
                rates.append(rate)
    for server in servers:
        server.close()
    return found


def _rate(server: TritonServer, requests: int) -> float:
    image = np.random.default_rng(1).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
    start = time.monotonic()
    for _ in range(requests):
        answer = server.infer(MODEL, {"images": image}, ["images"], timeout_seconds=60, sizes={"images": image.nbytes})
    seconds = time.monotonic() - start
    if not np.array_equal(answer["images"], image):
        raise AssertionError("the picture came back otherwise")
    return requests / seconds
