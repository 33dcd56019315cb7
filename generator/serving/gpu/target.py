"""What the build asks of the gpu target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from generator.pigeon.config import PigeonConfig
from generator.serving.gpu.configs import PythonSpec, gpu_model_specs
from generator.serving.gpu.release import DRIVER, IMAGE, ONNXRUNTIME, TENSORRT, TRITON
from generator.serving.repository import GpuHost, combined_hash
from generator.serving.targets import SOURCE, Spec, read, shared_files

if TYPE_CHECKING:
    from generator.pigeon.model import PigeonModel
    from generator.pigeon.placement import Placement
    from generator.serving.agreement import Network
    from generator.serving.versions import Versions

HERE = "serving/gpu"
PLAIN_CALLS = "from generator.serving.backends.triton import"
GPU_CALLS = "from generator.serving.gpu.backends.calls import"
OWN_FILES = ("personalizer_model.py", "scorer_model.py")
SHARED_FILES = ("__init__.py", "backends/__init__.py", "backends/calls.py", "backends/rows.py", "backends/step.py")


class GpuTarget:
    """float16 graphs for Triton's onnxruntime backend with TensorRT, behind the same Python models."""

    name: Literal["onnx", "gpu"] = "gpu"
    precision: Literal["float32", "float16"] = "float16"
    runtime = "Triton's onnxruntime backend with the TensorRT accelerator; not run on a GPU by who built it"

    def __init__(self, compute_capabilities: Sequence[str]) -> None:
        """compute_capabilities: GPU generations that it may be served on, as `9.0`."""
        self.gpu: GpuHost | None = GpuHost(
            compute_capabilities=tuple(compute_capabilities),
            triton=TRITON,
            tensorrt=TENSORRT,
            onnxruntime=ONNXRUNTIME,
            driver=DRIVER,
            image=IMAGE,
        )
        self.key: Sequence[Any] = ["gpu", self.gpu.model_dump(mode="json")]

    def sources(self) -> list[Path]:
        """The files of this package but what compiles, checks hosts, or only documents."""
        names = ["target.py", "release.py", "graphs.py", "configs.py", "profiles.py"]
        return [*(SOURCE / HERE / name for name in names), *sorted((SOURCE / HERE / "backends").glob("*.py"))]

    def placement(self, placement: Placement | None) -> Placement | None:
        """float16 where the network allows it, on the given device."""
        from generator.pigeon.placement import Placement

        return replace(placement or Placement(), precision="fp16")

    def networks(self, pigeon: Any, checkpoint: Path, placement: Placement | None) -> list[Network]:
        """The float16 graphs, to be compared with the same checkpoint loaded again in float32.

        Raises:
            ModelError: as `export.networks`.
        """
        from generator.pigeon.checkpoint import load_model
        from generator.serving.gpu.graphs import gpu_networks

        return gpu_networks(pigeon, load_model(checkpoint, placement=placement and placement.learning))

    def versions(self, versions: Versions) -> Versions:
        """The checkpoint's, and others than on CPUs: float16 gives other codes, answers and pictures.

        Adapters are trained for the checkpoint, whatever serves it.
        """

        def ours(version: str) -> str:
            return combined_hash([version, self.precision])

        return replace(
            versions,
            tokenizer_version=ours(versions.tokenizer_version),
            drawing_version=ours(versions.drawing_version),
            base_weights=ours(versions.base_weights),
        )

    def specs(self, config: PigeonConfig, latent_shape: tuple[int, int, int]) -> Sequence[Spec]:
        """The models in the order of loading."""
        return gpu_model_specs(config, latent_shape)

    def pbtxt(self, spec: Any, parameters: Mapping[str, str], build: str) -> str:
        """A model's config.pbtxt."""
        text: str = spec.pbtxt(parameters, build)
        return text

    def python_files(self, spec: Any) -> Mapping[str, str]:
        """The backend and the files of ours that it imports; nothing for a model that is a graph alone.

        Models that call others are those of CPUs, but that they import `calls` for it.
        """
        if not isinstance(spec, PythonSpec):
            return {}
        file = spec.spec.backend_file
        folder = f"{HERE}/backends" if file in OWN_FILES else "serving/backends"
        return {
            "model.py": read(f"{folder}/{file}").replace(PLAIN_CALLS, GPU_CALLS),
            **shared_files(),
            **{f"generator/{HERE}/{name}": read(f"{HERE}/{name}") for name in SHARED_FILES},
        }

    def write_further(
        self, spec: Spec, folder: Path, checkpoint: Path, pigeon: PigeonModel, versions: Versions
    ) -> None:
        """Nothing."""
