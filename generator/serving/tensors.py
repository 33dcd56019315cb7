"""What crosses the wire to Triton and back, checked.

It lets a wrong type, a missing output and NaN pass. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from generator.serving.api import (
    InferenceCorrupt,
    InferenceError,
    InferenceRejected,
    InferenceUnavailable,
    PreviewKind,
)

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a unit row may be."""
LOGPROB_TOLERANCE = 1e-9
"""How far above 0 a log-probability may be, by rounding."""

# What a status asks of the caller. The backends choose theirs by this table (backends/triton.py).
STATUS_ERRORS: Mapping[str, type[InferenceError]] = {
    "StatusCode.INVALID_ARGUMENT": InferenceRejected,
    "StatusCode.UNIMPLEMENTED": InferenceRejected,
    "StatusCode.OUT_OF_RANGE": InferenceRejected,
    "StatusCode.UNKNOWN": InferenceCorrupt,
    "StatusCode.DATA_LOSS": InferenceCorrupt,
}

Arrays = Mapping[str, NDArray[Any]]

TRITON_TYPES = {
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int64): "INT64",
    np.dtype(np.uint64): "UINT64",
    np.dtype(np.float64): "FP64",
    np.dtype(np.object_): "BYTES",
}


def fitted(image: NDArray[np.uint8], number: int, size: int) -> NDArray[np.uint8]:
    """-> (size, size, 3), bicubically: what `generator.pigeon.preprocessing` does before it normalises."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InferenceRejected(f"picture {number}: is {image.dtype} {image.shape}; give RGB uint8 (height, width, 3)")
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def expect(answer: Arrays, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """An output of this type and shape; None is a dimension that varies.

    Raises:
        InferenceCorrupt: it is another.
    """
    value = answer[name]
    fits = value.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if value.dtype != dtype or not fits:
        wanted = ", ".join("any" if dim is None else str(dim) for dim in shape)
        raise InferenceCorrupt(
            f"{name}: is {value.dtype}{list(value.shape)}, expected {np.dtype(dtype).name}[{wanted}]"
        )
    return value


def unit_rows(answer: Arrays, name: str, rows: int) -> NDArray[np.float32]:
    """(rows, D) of unit length.

    Raises:
        InferenceCorrupt: misshapen, not finite, or of another length.
    """
    value: NDArray[np.float32] = expect(answer, name, np.float32, (rows, None))
    if not np.isfinite(value).all():
        raise InferenceCorrupt(f"{name}: holds NaN or infinity")
    if (np.abs(np.linalg.norm(value, axis=1) - 1) > UNIT_TOLERANCE).any():
        raise InferenceCorrupt(f"{name}: rows are not of unit length")
    return value


def code_rows(answer: Arrays, model: str, rows: int) -> list[tuple[int, ...]]:
    """`tokens` (rows, M) and `counts` (rows,) -> visual codes per row.

    Raises:
        InferenceCorrupt: they are missing, misshapen, or do not fit each other.
    """
    tokens = expect(answer, "tokens", np.int64, (rows, None))
    counts = expect(answer, "counts", np.int64, (rows,))
    if (counts < 0).any() or (counts > tokens.shape[1]).any():
        raise InferenceCorrupt(f"{model}: counts {counts.tolist()} do not fit {tokens.shape[1]} tokens")
    codes = [tuple(int(code) for code in row[:count]) for row, count in zip(tokens, counts, strict=True)]
    if any(code < 0 for row in codes for code in row):
        raise InferenceCorrupt(f"{model}: tokens hold a negative code inside their count")
    return codes


def logprob_rows(answer: Arrays, name: str, rows: int) -> NDArray[np.float64]:
    """(rows,) natural logarithms of probabilities.

    Raises:
        InferenceCorrupt: misshapen, not finite, or above 0.
    """
    value: NDArray[np.float64] = expect(answer, name, np.float64, (rows,))
    if not np.isfinite(value).all():
        raise InferenceCorrupt(f"{name}: holds NaN or infinity")
    if (value > LOGPROB_TOLERANCE).any():
        raise InferenceCorrupt(f"{name}: {value.tolist()} are not logarithms of probabilities")
    return value


def preview_kind(answer: Arrays, model: str) -> PreviewKind:
    """The one value of `preview_kind`.

    Raises:
        InferenceCorrupt: misshapen or unknown.
    """
    value = bytes(expect(answer, "preview_kind", np.object_, (1,))[0]).decode(errors="replace")
    for kind in get_args(PreviewKind):
        if value == kind:
            return kind  # type: ignore[no-any-return]  # get_args has no types
    raise InferenceCorrupt(f"{model}: preview_kind {value!r} is unknown")


@contextmanager
def as_inference_error(model: str) -> Iterator[None]:
    """Errors of tritonclient become ours, by their status."""
    try:
        yield
    except InferenceServerException as error:
        failure = STATUS_ERRORS.get(error.status() or "", InferenceUnavailable)
        raise failure(f"{model}: {one_line(error)}") from error


def one_line(error: InferenceServerException) -> str:
    """The server's reason."""
    return " ".join((error.message() or str(error)).split())
