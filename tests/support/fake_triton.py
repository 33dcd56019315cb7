"""A test double of a Triton server that speaks its real protocol: gRPC, with `FakePigeon` behind it.

python -m tests.support.fake_triton PORT SECONDS   # serves until it is killed; each answer and picture takes SECONDS
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from generator.serving.api import AnswerRequest, PictureRequest
from generator.serving.repository import BUILD_PARAMETER, DRAWING_PARAMETER, TOKENIZER_PARAMETER, WEIGHTS_PARAMETER
from generator.serving.tensors import TRITON_TYPES
from schemas.preferences import PromptSnapshot
from tests.support.fake_pigeon import FakePigeon

CHECKOUT = Path(__file__).parents[2]
TYPES = {**TRITON_TYPES, np.dtype(np.float32): "FP32", np.dtype(np.bool_): "BOOL"}
SIDE = 64
Tensors = dict[str, np.ndarray]


class FakeTriton(GRPCInferenceServiceServicer):
    """One server's answers; what it serves can be changed while it runs."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.model = FakePigeon()
        self.base_weights = FakePigeon.base_weights
        self.adapters = {1}
        self.unready: set[str] = set()
        self.broken: Exception | None = None
        """What every request for a model ends in."""
        self.corrupt = False
        """Whether pictures come without a valid embedding."""
        self.build = "fake-build-1"
        self.refused = ""
        """A model that it does not load."""
        self.asked: list[str] = []
        self.loads: list[str] = []

    # Names and signatures are the protocol's.

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ModelReadyResponse(ready=request.name not in self.unready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        images = pb.ModelMetadataResponse.TensorMetadata(name="images", datatype="UINT8", shape=[-1, SIDE, SIDE, 3])
        return pb.ModelMetadataResponse(name=request.name, inputs=[images])

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = pb.ModelConfigResponse()
        for name, value in (
            (TOKENIZER_PARAMETER, FakePigeon.tokenizer_version),
            (DRAWING_PARAMETER, FakePigeon.drawing_version),
            (WEIGHTS_PARAMETER, self.base_weights),
            (BUILD_PARAMETER, self.build),
        ):
            answer.config.parameters[name].string_value = value
        return answer

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[index(name="personalizer", version=str(n), state="READY") for n in sorted(self.adapters)]
        )

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_name == self.refused:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "its file is damaged")
        self.loads.append(request.model_name)
        return pb.RepositoryModelLoadResponse()

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request.model_name)
        if self.broken is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(self.broken))
        inputs = {tensor.name: _parsed(tensor, raw) for tensor, raw in _pairs(request)}
        found = getattr(self, f"_{request.model_name}")(inputs)
        answer = pb.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, value in found.items():
            answer.outputs.add(name=name, datatype=TYPES[value.dtype], shape=value.shape)
            raw = serialize_byte_tensor(value).item() if value.dtype == np.object_ else value.tobytes()
            answer.raw_output_contents.append(raw)
        return answer

    # The models.

    def _visual_tokenizer(self, inputs: Tensors) -> Tensors:
        codes = np.array([features.tokens for features in self.model.image_features(inputs["images"])], np.int64)
        return {"code_ids": codes, "keep": np.ones_like(codes, bool)}

    def _image_scorer(self, inputs: Tensors) -> Tensors:
        if "texts" in inputs:
            texts = [text.decode() for text in inputs["texts"]]
            return {"text_embeddings": self.model.text_embeddings(texts)}
        features = self.model.image_features(inputs["images"])
        return {"image_embeddings": np.stack([one.embedding for one in features])}

    def _answers(self, inputs: Tensors) -> Tensors:
        time.sleep(self.seconds)
        request = AnswerRequest(
            "task",
            PromptSnapshot.model_validate_json(inputs["prompt"][0]),
            tuple(inputs["alphas"].tolist()),
            tuple(inputs["temperatures"].tolist()),
            int(inputs["seed"][0]),
            int(inputs["adapter_version"][0]),
        )
        found = self.model.answer(request)
        rows = found.answers
        return {
            "tokens": np.array([answer.tokens for answer in rows], np.int64),
            "counts": np.array([len(answer.tokens) for answer in rows], np.int64),
            "logprobs": np.array([answer.logprob for answer in rows], np.float64),
            "sampling_logprobs": np.array([answer.sampling_logprob for answer in rows], np.float64),
            "previews": np.stack([answer.preview for answer in rows]),
            "history_previews": found.history_previews,
            "preview_kind": np.array([found.preview_kind.encode()], np.object_),
        }

    def _pictures(self, inputs: Tensors) -> Tensors:
        time.sleep(self.seconds)
        rows = zip(inputs["tokens"].tolist(), inputs["counts"].tolist(), inputs["seeds"].tolist(), strict=True)
        pictures = self.model.draw_pictures([PictureRequest(tuple(row[:count]), seed) for row, count, seed in rows])
        embeddings = np.stack([picture.embedding for picture in pictures])
        return {
            "images": np.stack([picture.image for picture in pictures]),
            "embeddings": embeddings * np.float32(np.nan if self.corrupt else 1),
        }


def _pairs(request: Any) -> Iterator[tuple[Any, bytes]]:
    return zip(request.inputs, request.raw_input_contents, strict=True)


def _parsed(tensor: Any, raw: bytes) -> np.ndarray:
    if tensor.datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(tensor.shape)
    return np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)


def serve(fake: FakeTriton, port: int) -> grpc.Server:
    """The double as a gRPC server in this process, listening."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    add_GRPCInferenceServiceServicer_to_server(fake, server)
    if not server.add_insecure_port(f"127.0.0.1:{port}"):
        raise OSError(f"port {port} is taken")
    server.start()
    return server


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def servers(count: int, seconds: float = 0.0) -> Iterator[list[tuple[str, subprocess.Popen[bytes]]]]:
    """Address and process of each of `count` doubles; they end with the block."""
    started = []
    try:
        for _ in range(count):
            port = free_port()
            command = [sys.executable, "-m", "tests.support.fake_triton", str(port), str(seconds)]
            started.append((f"127.0.0.1:{port}", subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE)))
        for _, process in started:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
        yield started
    finally:
        for _, process in started:
            process.kill()
            process.communicate()


def main() -> None:
    """Serve; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    server = serve(FakeTriton(arguments.seconds), arguments.port)
    print("ready", flush=True)  # noqa: T201 - whoever started this waits for it
    server.wait_for_termination()


if __name__ == "__main__":
    main()
