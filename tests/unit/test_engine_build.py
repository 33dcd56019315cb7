"""A repository whose LLaMA an engine runs: what is in it, what is not, and when it is built again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from generator.cli import build_app
from generator.serving.engine.weights import EngineWeights
from generator.serving.repository import check_repository, read_manifest, tree_hashes
from tests.support.standin_engine import engine_build
from tests.support.tiny_serving import tiny_build

pytestmark = pytest.mark.timeout(1200)  # the first run exports the tiny model
SOCKET = Path("/run/pigeon/engine.sock")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoint/, models/ as served by graphs, and engine/ as served with an engine."""
    folder = tmp_path_factory.mktemp("engine-build")
    checkpoint, _ = tiny_build(folder)
    found, exported = engine_build(checkpoint, folder / "models", folder / "engine", SOCKET)
    assert found.rebuilt
    assert "personalizer" not in exported
    assert len(exported) == 7
    return folder


def test_only_the_personalizer_differs_from_a_build_without_an_engine(built: Path) -> None:
    plain, forwarding = (tree_hashes(built / name) for name in ("models", "engine"))
    for name in plain:
        if not name.startswith("personalizer/") and not name.endswith(("config.pbtxt", "manifest.json", ".onnx")):
            assert forwarding.get(name) == plain[name], name
    assert not (built / "engine" / "personalizer" / "graph").exists()
    assert (built / "engine" / "personalizer" / "1" / "adapter.npz").is_file()
    config = (built / "engine" / "personalizer" / "config.pbtxt").read_text()
    assert f'key: "engine_socket" value {{ string_value: "{SOCKET}" }}' in config
    assert "count: 4" in config
    ours, theirs = read_manifest(built / "models"), read_manifest(built / "engine")
    assert theirs.models["personalizer"].inputs == ours.models["personalizer"].inputs
    assert theirs.models["personalizer"].outputs == ours.models["personalizer"].outputs
    assert "LLaMA by vLLM" in theirs.runtime
    assert theirs.base_weights == ours.base_weights, "answers are the same but for rounding"


def test_a_repository_for_an_engine_is_checked_and_built_once(built: Path, tmp_path: Path) -> None:
    repository = tmp_path / "engine"
    shutil.copytree(built / "engine", repository)
    found, exported = engine_build(built / "checkpoint", built / "models", repository, SOCKET)
    assert not found.rebuilt
    assert not exported
    elsewhere, _ = engine_build(built / "checkpoint", built / "models", repository, SOCKET.with_name("other.sock"))
    assert elsewhere.rebuilt, "the models are told another socket"
    (repository / "personalizer" / "engine" / "language_model" / "config.json").write_text("{}")
    with pytest.raises(Exception, match=r"engine/language_model/config.json was changed after the build"):
        check_repository(repository, "nano")


def test_the_engine_runs_from_its_folder_alone(built: Path) -> None:
    """With none of the checkout on its path; without vLLM it gets as far as importing it."""
    folder = built / "engine" / "personalizer" / "engine"
    weights = EngineWeights.read(folder)
    assert weights.base == read_manifest(built / "engine").adapter_base
    condition = np.zeros((1, weights.reference["encoder.weight"].shape[1]), dtype=np.float32)
    assert weights.prompt_embeddings(np.array([[1, -1, -2]]), condition).shape[:2] == (1, 3)
    code = (
        "import sys, generator.serving.engine.__main__ as main, generator; "
        "print(generator.__file__); print(any(name.startswith(('schemas', 'pydantic', 'vllm')) for name in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"],
        cwd=folder,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [str(folder / "generator" / "__init__.py"), "False"]


def test_an_engine_that_we_do_not_know_is_refused_before_anything_is_built() -> None:
    found = CliRunner().invoke(build_app(), ["models", "build", "--engine", "trt"])
    assert "--engine trt: must be onnxruntime or vllm" in f"{found.output}{found.exception}"
