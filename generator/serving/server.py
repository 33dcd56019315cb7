"""`TritonServer`: one server, its models and their control, over gRPC; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from generator.serving.api import InferenceCorrupt
from generator.serving.channel import open_channel
from generator.serving.repository import DRAWING_PARAMETER, MODELS, TOKENIZER_PARAMETER, WEIGHTS_PARAMETER
from generator.serving.shared_memory import Region, SharedRegions, is_large, needed
from generator.serving.tensors import TRITON_TYPES, Arrays, as_inference_error, one_line
from schemas.errors import ModelError, ServerUnavailable
from schemas.runtime import trace
from schemas.settings_triton import TritonSettings

ADMIN_HEADER = "triton-grpc-protocol-admin-key"


@dataclass(frozen=True)
class ServedParts:
    """What a server calls the parts that it serves; equal ones give equal results."""

    tokenizer_version: str
    drawing_version: str
    base_weights: str

    def others(self, served: ServedParts) -> list[str]:
        """Names of the parts that `served` has otherwise."""
        names = [field.name for field in fields(self)]
        return [name for name in names if getattr(self, name) != getattr(served, name)]


PART_PARAMETERS = {
    "tokenizer_version": ("visual_tokenizer", TOKENIZER_PARAMETER),
    "drawing_version": ("pictures", DRAWING_PARAMETER),
    "base_weights": ("answers", WEIGHTS_PARAMETER),
}
"""The model and the parameter of its configuration that say what a part is."""


class TritonServer:
    """One server; threads may share an instance.

    `load` takes at most `triton.start_timeout_seconds`, other control calls `triton.network_timeout_seconds`. Control needs
    `triton.admin_key` where the server guards it.
    """

    def __init__(self, settings: TritonSettings, address: str) -> None:
        self._settings = settings
        self.address = address
        self.client = open_channel(settings, address)
        key = settings.admin_key
        self._admin = {ADMIN_HEADER: key.get_secret_value()} if key else {}
        shares = settings.shared_memory
        self._shared = SharedRegions(settings, address, self.client, self._admin) if shares else None

    def close(self) -> None:
        """Close the connection; the object cannot be used after it."""
        if self._shared is not None:
            self._shared.close()
        self.client.close()

    def infer(
        self,
        model: str,
        inputs: Arrays,
        outputs: Sequence[str],
        *,
        timeout_seconds: float,
        request_id: str = "",
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> dict[str, NDArray[Any]]:
        """All of `outputs`, unchecked; the server's work is cancelled after `timeout_seconds`.

        sizes: bytes of large outputs, which come through shared memory where the settings say so, as large inputs go.

        Raises:
            InferenceError: by the status that the server answers with; Corrupt when an output is missing.
            InputError: the server cannot see our shared memory.
        """
        with self._region(needed(inputs, sizes)) as region, as_inference_error(model):
            answer = self.client.infer(
                model,
                [_input(name, value, region) for name, value in inputs.items()],
                outputs=[_output(name, sizes, region) for name in outputs],
                request_id=request_id,
                headers=trace.headers(),
                client_timeout=timeout_seconds,
            )
            out = {
                name: region.read(answer, name) if region and name in sizes else answer.as_numpy(name)
                for name in outputs
            }
        found = {name: value for name, value in out.items() if value is not None}
        if missing := [name for name in outputs if name not in found]:
            raise InferenceCorrupt(f"{model}: answered without {', '.join(missing)}")
        return found

    def _region(self, size: int) -> AbstractContextManager[Region | None]:
        return nullcontext() if self._shared is None else self._shared.lend(size)

    @cached_property
    def image_size(self) -> int:
        """Side of the images that the tokenizer takes, in pixels.

        Raises:
            InferenceError: the server does not answer.
        """
        return int(self._metadata("visual_tokenizer").inputs[0].shape[1])

    @cached_property
    def picture_bytes(self) -> int:
        """Bytes of a picture that is drawn, (S, S, 3).

        Raises:
            InferenceError: the server does not answer.
        """
        (images,) = [one for one in self._metadata("pictures").outputs if one.name == "images"]
        return math.prod(images.shape[1:])

    def _metadata(self, model: str) -> Any:
        with as_inference_error(model):
            return self.client.get_model_metadata(model, client_timeout=self._settings.network_timeout_seconds)

    def release(self) -> str:
        """The server's version.

        Raises:
            ServerUnavailable: the server cannot be reached.
        """
        try:
            told = self.client.get_server_metadata(client_timeout=self._settings.network_timeout_seconds)
        except InferenceServerException as error:
            raise ServerUnavailable(f"Triton at {self.address}: {one_line(error)}") from error
        return str(told.version)

    def unready(self) -> list[str]:
        """Models of ours that are not loaded.

        Raises:
            ServerUnavailable: the server cannot be reached.
        """
        timeout = self._settings.network_timeout_seconds
        try:
            return [name for name in MODELS if not self.client.is_model_ready(name, client_timeout=timeout)]
        except InferenceServerException as error:
            raise ServerUnavailable(f"Triton at {self.address}: {one_line(error)}") from error

    def parts(self) -> ServedParts:
        """What it serves.

        Raises:
            ServerUnavailable, ModelError: as `parameter`.
        """
        return ServedParts(**{part: self.parameter(*where) for part, where in PART_PARAMETERS.items()})

    def loaded_versions(self, model: str) -> frozenset[int]:
        """The versions of a model that serve now.

        Raises:
            ServerUnavailable: the server cannot be reached, or refuses model control.
        """
        index = self._control(
            "list models",
            lambda: self.client.get_model_repository_index(
                headers=self._admin, client_timeout=self._settings.network_timeout_seconds
            ),
        )
        return frozenset(int(m.version) for m in index.models if m.name == model and m.state == "READY")

    def load(self, model: str) -> None:
        """Load a model, or what is new of it: versions that are unchanged go on serving.

        Raises:
            ModelError: the server read it and refused; its reason is in the message.
            ServerUnavailable: the server cannot be reached, or refuses model control.
        """
        self._control(
            f"load {model}",
            lambda: self.client.load_model(
                model, headers=self._admin, client_timeout=self._settings.start_timeout_seconds
            ),
        )

    def unload(self, model: str) -> None:
        """Stop serving a model; returns before the server has finished what is under way.

        Raises:
            ServerUnavailable: the server cannot be reached, or refuses model control.
        """
        self._control(
            f"unload {model}",
            lambda: self.client.unload_model(
                model, headers=self._admin, client_timeout=self._settings.network_timeout_seconds
            ),
        )

    def parameter(self, model: str, name: str, default: str = "") -> str:
        """A parameter of a model's configuration; `default` where the model has none of this name.

        Raises:
            ServerUnavailable: the server cannot be reached, or refuses model control.
            ModelError: the model is not there, or is none that we built.
        """
        answer = self._control(
            f"read the configuration of {model}",
            lambda: self.client.get_model_config(
                model, headers=self._admin, client_timeout=self._settings.network_timeout_seconds
            ),
        )
        value: str = answer.config.parameters[name].string_value or default
        if not value:
            raise ModelError(
                f"Triton at {self.address}: model {model} has no parameter {name}, so it is not ours; "
                "run `pigeon models build` and serve its repository"
            )
        return value

    def _control(self, what: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except InferenceServerException as error:
            reason = one_line(error)
            if error.status() in {"StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL", "StatusCode.NOT_FOUND"}:
                raise ModelError(f"Triton at {self.address}: cannot {what}: {reason}") from error
            raise ServerUnavailable(
                f"Triton at {self.address}: cannot {what}: {reason}; is it running, and are PIGEON_TRITON__URL and "
                "PIGEON_TRITON__ADMIN_KEY right?"
            ) from error


def _input(name: str, value: NDArray[Any], region: Region | None) -> triton.InferInput:
    tensor = triton.InferInput(name, list(value.shape), TRITON_TYPES[value.dtype])
    if region is not None and is_large(value):
        region.put(tensor, value)
    else:
        tensor.set_data_from_numpy(np.ascontiguousarray(value))
    return tensor


def _output(name: str, sizes: Mapping[str, int], region: Region | None) -> triton.InferRequestedOutput:
    output = triton.InferRequestedOutput(name)
    if region is not None and name in sizes:
        region.expect(output, sizes[name])
    return output
