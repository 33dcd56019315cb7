"""Refusals of `pigeon models build --compile` when it cannot start."""

from __future__ import annotations

import sys

import pytest

from generator.serving.gpu.tensorrt import compile_repository, import_tensorrt
from schemas.errors import InputError


def test_a_missing_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(InputError, match=r"--compile: .*pip install 'pigeon-posters\[tensorrt\]'"):
        import_tensorrt()
    with pytest.raises(InputError, match="TensorRT-RTX is not installed"):
        compile_repository(tmp_path, ("8.9",))
