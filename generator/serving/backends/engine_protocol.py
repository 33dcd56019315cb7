"""Messages between the Triton model `personalizer` and its engine, over a Unix socket.

A message is the size of its JSON (4 bytes, big-endian), the JSON {"fields": {...}, "tensors": [[name, dtype, shape], ...]}, and
the tensors' bytes in that order, little-endian. One side asks, the other answers; one question at a time per connection.

    hello     base -> engine                        refused when the engine serves other weights
    adapter   sha256, tensors lora_a, lora_b        refused when the matrices have another hash
    answer    adapter, seed, tensors as the model's -> tensors as the model's, prefilled, shared
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Version of the messages; both sides name theirs in `hello`."""
MOST_JSON_BYTES = 1 << 20
MOST_TENSOR_BYTES = 1 << 30
DTYPES = ("float32", "float64", "int64")

Receive = Callable[[int], bytes]


class ProtocolError(Exception):
    """What came in is not a message."""


class Closed(Exception):
    """The other side has closed the connection."""


@dataclass(frozen=True)
class Message:
    fields: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The message as it is sent."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self.tensors.items()}
        described = [[name, value.dtype.name, list(value.shape)] for name, value in arrays.items()]
        head = json.dumps({"fields": dict(self.fields), "tensors": described}).encode()
        return b"".join([struct.pack(">I", len(head)), head, *(value.tobytes() for value in arrays.values())])


def receive(take: Receive) -> Message:
    """Read one message; `take(n)` gives exactly n bytes.

    Raises:
        ProtocolError: not a message, or one past the limits.
    """
    (size,) = struct.unpack(">I", take(4))
    if size > MOST_JSON_BYTES:
        raise ProtocolError(f"a header of {size} bytes; at most {MOST_JSON_BYTES}")
    try:
        head = json.loads(take(size))
        fields, described = dict(head["fields"]), [_described(entry) for entry in head["tensors"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ProtocolError(f"not a message ({type(error).__name__}: {error})") from error
    total = sum(np.dtype(dtype).itemsize * prod(shape) for _, dtype, shape in described)
    if total > MOST_TENSOR_BYTES:
        raise ProtocolError(f"tensors of {total} bytes; at most {MOST_TENSOR_BYTES}")
    tensors = {
        name: np.frombuffer(take(np.dtype(dtype).itemsize * prod(shape)), dtype=dtype).reshape(shape)
        for name, dtype, shape in described
    }
    return Message(fields, tensors)


def taker(connection: socket.socket) -> Receive:
    """What `receive` reads a connection with.

    Raises (when called):
        Closed: the other side has closed it.
    """

    def take(count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = connection.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise Closed
            parts += part
        return bytes(parts)

    return take


def _described(entry: Any) -> tuple[str, str, tuple[int, ...]]:
    name, dtype, shape = entry
    sizes = tuple(int(size) for size in shape)
    if dtype not in DTYPES or any(size < 0 for size in sizes):
        raise ValueError(f"tensor {name}: {dtype} {shape}")
    return str(name), str(dtype), sizes
