"""Refusals of `--target tensorrt` when it cannot start.

Compiling itself is shown by the report that it writes.
"""

from __future__ import annotations

import sys

import pytest

from generator.serving.tensorrt import compile_repository, import_tensorrt, parse_compute_capabilities
from schemas.errors import InputError


def test_compute_capabilities() -> None:
    assert parse_compute_capabilities("89") == ("SM89",)
    assert parse_compute_capabilities("80, 120") == ("SM80", "SM120")
    for text in ("", "sm89", "8.9", "89,"):
        with pytest.raises(InputError, match=r"--compute-capability .*: give numbers such as 89"):
            parse_compute_capabilities(text)


def test_a_missing_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(InputError, match=r"pip install 'pigeon-posters\[tensorrt\]'"):
        import_tensorrt()
    with pytest.raises(InputError, match="TensorRT-RTX is not installed"):
        compile_repository(tmp_path, tmp_path / "plans", ("SM89",))
    assert not (tmp_path / "plans").exists()
