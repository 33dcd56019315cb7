"""What a build writes for an engine: LLaMA, the reference's layers, their hashes, and code."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import generator
from generator.serving.repository import tree_hashes
from schemas.errors import ModelError
from schemas.settings import Settings

if TYPE_CHECKING:
    from generator.pigeon.model import PigeonModel

FOLDER = "engine"
SOURCE = Path(generator.__file__).parent
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


@dataclass(frozen=True)
class EngineChoice:
    """vLLM in a process of its own runs LLaMA, and the Triton model `personalizer` forwards to it."""

    socket: Path
    """Where the process listens, as Triton's machine sees it."""

    runtime = "LLaMA by vLLM in a process of its own"

    @property
    def parameters(self) -> dict[str, str]:
        """What the forwarding model is told."""
        return {"engine_socket": str(self.socket)}


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
