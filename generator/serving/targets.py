"""What a repository is built for: the cpu target, and what every target says to the build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import generator
from generator.pigeon.config import PigeonConfig
from generator.serving.configs import TensorSpec, model_specs
from generator.serving.repository import GpuHost

if TYPE_CHECKING:
    from generator.pigeon.model import PigeonModel
    from generator.pigeon.placement import Placement
    from generator.serving.agreement import Network
    from generator.serving.versions import Versions

SOURCE = Path(generator.__file__).parent
# What a backend may import; copied under the same names, so that one import line works here and there.
PIGEON_FILES = ("prompt.py", "sampling.py", "ddim.py", "lcm.py")
BACKEND_FILES = (
    "answers.py",
    "generation.py",
    "graph.py",
    "masks.py",
    "pictures.py",
    "previews.py",
    "task.py",
    "triton.py",
)


SHARED_GRAPH = "personalizer"
"""The model whose versions, one per adapter, have one graph beside them."""


class Spec(Protocol):
    """One Triton model of a target."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...


class Target(Protocol):
    """What the build asks of a target."""

    name: Literal["onnx", "gpu"]
    precision: Literal["float32", "float16"]
    runtime: str
    gpu: GpuHost | None
    key: Sequence[Any]
    """What makes a repository another one, beside the checkpoint, the preset and the code of `sources`."""

    def sources(self) -> list[Path]:
        """Files of code that a repository depends on only with this target."""

    def placement(self, placement: Placement | None) -> Placement | None:
        """Where and how precise a checkpoint is loaded, given the setting's device."""

    def networks(self, pigeon: Any, checkpoint: Path, placement: Placement | None) -> list[Network]:
        """The graphs of the loaded checkpoint.

        Raises:
            ModelError: it lacks what is served.
        """

    def versions(self, versions: Versions) -> Versions:
        """What the parts are known by on this target; equal versions give equal results."""

    def specs(self, config: PigeonConfig, latent_shape: tuple[int, int, int]) -> Sequence[Spec]:
        """The models in the order of loading."""

    def pbtxt(self, spec: Any, parameters: Mapping[str, str], build: str) -> str:
        """A model's config.pbtxt."""

    def python_files(self, spec: Any) -> Mapping[str, str]:
        """Path in a model's version folder -> text; empty where no Python runs."""

    def write_further(
        self, spec: Spec, folder: Path, checkpoint: Path, pigeon: PigeonModel, versions: Versions
    ) -> None:
        """What else lies in a model's folder.

        Raises:
            ModelError: the checkpoint lacks it.
        """


class CpuTarget:
    """ONNX Runtime in Triton's Python backend, each request alone, the same bytes everywhere.

    It is called `onnx` in manifests, as since the first release: a repository's bytes are promised.
    """

    name: Literal["onnx", "gpu"] = "onnx"
    precision: Literal["float32", "float16"] = "float32"
    runtime = "Triton's Python backend with ONNX Runtime, CPUExecutionProvider"
    gpu: GpuHost | None = None
    key: Sequence[Any] = ()

    def sources(self) -> list[Path]:
        """Nothing beyond what every target depends on."""
        return []

    def placement(self, placement: Placement | None) -> Placement | None:
        """In float32 on the given device."""
        return placement and placement.learning

    def networks(self, pigeon: Any, checkpoint: Path, placement: Placement | None) -> list[Network]:
        """The graphs in float32.

        Raises:
            ModelError: as `export.networks`.
        """
        from generator.serving.export import networks

        return networks(pigeon)

    def versions(self, versions: Versions) -> Versions:
        """Those of the checkpoint."""
        return versions

    def specs(self, config: PigeonConfig, latent_shape: tuple[int, int, int]) -> Sequence[Spec]:
        """The models in the order of loading."""
        return model_specs(config, latent_shape)

    def pbtxt(self, spec: Any, parameters: Mapping[str, str], build: str) -> str:
        """A model's config.pbtxt."""
        text: str = spec.pbtxt(parameters)
        return text

    def python_files(self, spec: Any) -> Mapping[str, str]:
        """The backend and the files of ours that it imports."""
        further = {
            f"generator/serving/backends/{name}": read(f"serving/backends/{name}") for name in spec.further_files
        }
        return {"model.py": read(f"serving/backends/{spec.backend_file}"), **shared_files(), **further}

    def write_further(
        self, spec: Spec, folder: Path, checkpoint: Path, pigeon: PigeonModel, versions: Versions
    ) -> None:
        """Nothing."""


def read(path: str) -> str:
    """A source file below generator/."""
    return (SOURCE / path).read_text(encoding="utf-8")


def shared_files() -> dict[str, str]:
    """What every Python model imports, under the package's own paths."""
    names = [f"{package}/{name}" for package, files in _SHARED.items() for name in files]
    return {f"generator/{name}": read(name) for name in ["__init__.py", *names]}


_SHARED = {
    "pigeon": (*PIGEON_FILES, "__init__.py"),
    "serving": ("__init__.py",),
    "serving/backends": (*BACKEND_FILES, "__init__.py"),
}


def graph_path(network: Network) -> Path:
    """Where a graph lies in a repository."""
    return Path(network.model, "graph" if network.model == SHARED_GRAPH else "1", network.file)
