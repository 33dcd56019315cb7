"""The cpu target with LLaMA on an engine: its layers, their hashes, and the code that runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.pigeon.config import PigeonConfig
from generator.serving.configs import forwarded, model_specs
from generator.serving.repository import tree_hashes
from generator.serving.targets import SHARED_GRAPH, SOURCE, CpuTarget, Spec
from schemas.errors import ModelError
from schemas.settings import Settings

if TYPE_CHECKING:
    from generator.pigeon.model import PigeonModel
    from generator.pigeon.placement import Placement
    from generator.serving.agreement import Network
    from generator.serving.versions import Versions

FOLDER = "engine"
CODE = (
    "__init__.py",
    "pigeon/__init__.py",
    "pigeon/prompt.py",
    "pigeon/sampling.py",
    "serving/__init__.py",
    "serving/tensor_hash.py",
    "serving/backends/__init__.py",
    "serving/backends/engine_protocol.py",
)


class EngineTarget(CpuTarget):
    """The cpu target, but vLLM in a process of its own runs LLaMA; Triton's `personalizer` forwards to it."""

    runtime = f"{CpuTarget.runtime}; LLaMA by vLLM in a process of its own"

    def __init__(self, socket: Path) -> None:
        """socket: where the process listens, as Triton's machine sees it."""
        self._parameters = {"engine_socket": str(socket)}
        self.key: Sequence[Any] = [self._parameters]

    def sources(self) -> list[Path]:
        """What runs the engine, and this file."""
        return [SOURCE / "serving" / "engine_folder.py", *sorted((SOURCE / "serving" / "engine").glob("*.py"))]

    def networks(self, pigeon: Any, checkpoint: Path, placement: Placement | None) -> list[Network]:
        """The graphs without LLaMA's.

        Raises:
            ModelError: as `export.networks`.
        """
        found = super().networks(pigeon, checkpoint, placement)
        return [network for network in found if network.model != SHARED_GRAPH]

    def specs(self, config: PigeonConfig, latent_shape: tuple[int, int, int]) -> Sequence[Spec]:
        """The models in the order of loading, the personalizer forwarding."""
        found = model_specs(config, latent_shape)
        return [forwarded(spec, self._parameters) if spec.name == SHARED_GRAPH else spec for spec in found]

    def write_further(
        self, spec: Spec, folder: Path, checkpoint: Path, pigeon: PigeonModel, versions: Versions
    ) -> None:
        """The engine's folder, in the personalizer's.

        Raises:
            ModelError: the checkpoint's language model is not in safetensors.
        """
        if spec.name == SHARED_GRAPH:
            write_engine_folder(folder / FOLDER, checkpoint, pigeon, versions.adapter_base)


def engine_socket(settings: Settings) -> Path:
    """The engine's socket."""
    return (settings.triton.engine_socket or settings.state_dir / "engine.sock").absolute()


def write_engine_folder(folder: Path, checkpoint: Path, pigeon: PigeonModel, base: str) -> None:
    """Write everything that `python -m generator.serving.engine FOLDER` needs, run in that folder.

    Raises:
        ModelError: the checkpoint's language model is not in safetensors.
    """
    from safetensors.torch import save_file

    config = pigeon.config
    source = checkpoint / "language_model"
    files = [source / "config.json", *sorted(source.glob("*.safetensors")), *source.glob("*.safetensors.index.json")]
    if len(files) < 2:
        raise ModelError(f"checkpoint {source}: no *.safetensors; --engine vllm reads no other format")
    (folder / "language_model").mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, folder / "language_model" / path.name)
    layers = {
        name: value.detach().float().cpu().contiguous()
        for name, value in pigeon.personalizer.adapter.state_dict().items()
    }
    save_file(layers, folder / "reference.safetensors")
    info = {
        "format": 1,
        "base": base,
        "ids": config.model_dump(mode="json")["ids"],
        "generation": config.model_dump(mode="json")["generation"],
        "language": config.language.model_dump(mode="json"),
        "files": tree_hashes(folder),
    }
    (folder / "engine.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    for name in (
        *CODE,
        *(path.relative_to(SOURCE).as_posix() for path in (SOURCE / "serving" / "engine").glob("*.py")),
    ):
        target = folder / "generator" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SOURCE / name, target)
