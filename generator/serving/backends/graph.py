"""An ONNX graph as a checked function of named arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class BadInput(ValueError):
    """The request is wrong; the same request will fail again."""


class BadAnswer(ArithmeticError):
    """The network's own output is not a valid answer (NaN, infinite)."""


class Graph:
    """A CPU session with a fixed number of threads, so that equal inputs give equal bits."""

    def __init__(self, path: Path, threads: int = 1, unchecked: Collection[str] = ()) -> None:
        """unchecked: outputs that are not searched for NaN (a cache whose effect is checked downstream)."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads that spin would take the cores of the other instances.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.name = f"{path.parent.name}/{path.name}"
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name: (_DTYPES[i.type], tuple(i.shape)) for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]
        self._unchecked = frozenset(unchecked)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph.

        Raises:
            BadInput: an input is missing, or its type or a fixed dimension is wrong.
            BadAnswer: an output holds NaN or an infinity.
        """
        for name, (dtype, shape) in self.inputs.items():
            if name not in feeds:
                raise BadInput(f"{self.name}: input {name} is missing")
            value = feeds[name]
            fits = len(shape) == value.ndim and all(
                not isinstance(want, int) or want == have for want, have in zip(shape, value.shape, strict=True)
            )
            if value.dtype != dtype or not fits:
                wanted = ", ".join(str(dim) for dim in shape)
                raise BadInput(
                    f"{self.name}: input {name} is {value.dtype}{list(value.shape)}, the model takes "
                    f"{np.dtype(dtype).name}[{wanted}]"
                )
        answers = self._session.run(None, {name: feeds[name] for name in self.inputs})
        out = dict(zip(self.outputs, answers, strict=True))
        for name, value in out.items():
            if name not in self._unchecked and value.dtype.kind == "f" and not np.isfinite(value).all():
                raise BadAnswer(f"{self.name}: output {name} is not finite; check the weights and the precision")
        return out
