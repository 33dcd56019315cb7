"""Retrained adapters in Triton, side by side: version n of the model `personalizer` is adapter n.

Torch-free, so that the feedback loop may use it. Number 1 is the checkpoint's own adapter and is made by the build.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from generator.serving.api import DrawnImage, DrawRequest
from generator.serving.client import TritonPigeon
from generator.serving.repository import read_manifest, repository_folder
from generator.serving.tensor_hash import content_hash
from schemas.errors import InputError, ModelError
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings

Floats = NDArray[np.float32]

PERSONALIZER = "personalizer"
ADAPTER_FILE = "adapter.npz"
ADAPTER_INFO = "adapter.json"
LORA_MODULES = ("q_proj", "v_proj")
PROBE_SEED = 1


def install_adapter(settings: Settings, number: int, adapter_dir: Path) -> None:
    """Write `personalizer/<number>` into the served repository and load it beside the others.

    adapter_dir: the checkpoint layout's `pigeon/` folder (`llama/`, and optionally `mask_generator/`, `adapter/`), or a
    PEFT folder (`adapter_model.safetensors` with `adapter_config.json`). Installing the same adapter again does nothing.

    Raises:
        InputError: number below 2, or another adapter has this number.
        ModelError: the adapter does not fit the served model, or the server could not load it.
        ServerUnavailable: Triton cannot be reached.
    """
    if number < 2:
        raise InputError(f"adapter number {number}: 1 is the checkpoint's own adapter, others start at 2")
    repository = repository_folder(settings)
    manifest = read_manifest(repository)
    personalizer = repository / PERSONALIZER
    config = json.loads((personalizer / "1" / "config.json").read_text(encoding="utf-8"))
    matrices = read_lora(adapter_dir, config["language"])
    for part in ("mask_generator", "adapter"):
        _refuse_changed(adapter_dir / part, config["served_parts"][part])
    info = {"base": manifest.adapter_base, "sha256": content_hash(matrices)}
    folder = personalizer / str(number)
    if folder.exists():
        existing = json.loads((folder / ADAPTER_INFO).read_text(encoding="utf-8"))
        if existing != info:
            raise InputError(f"adapter number {number}: taken by another adapter; give it the next free number")
    else:
        staging = personalizer / f"installing-{number}"  # not a number, so the server does not look into it
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(personalizer / "1", staging, ignore=shutil.ignore_patterns("__pycache__", "adapter.*"))
        write_adapter(staging, matrices, info)
        staging.rename(folder)
    with TritonPigeon(settings) as model:
        if number in model.loaded_versions(PERSONALIZER):
            return
        try:
            model.load(PERSONALIZER)
        except ModelError:
            # A version that cannot be loaded would make every later load of the model fail as well.
            shutil.rmtree(folder)
            model.load(PERSONALIZER)
            raise
        if number not in model.loaded_versions(PERSONALIZER, anywhere=True):
            raise ModelError(f"adapter number {number}: the server loaded {PERSONALIZER} without it; see its log")


def remove_adapter(settings: Settings, number: int) -> None:
    """Take adapter `number` out of server and repository; one that is not there is no error.

    Raises:
        InputError: number below 2.
        ServerUnavailable: Triton cannot be reached.
    """
    if number < 2:
        raise InputError(f"adapter number {number}: the checkpoint's own adapter cannot be removed")
    folder = repository_folder(settings) / PERSONALIZER / str(number)
    if not folder.exists():
        return
    shutil.rmtree(folder)
    with TritonPigeon(settings) as model:
        model.load(PERSONALIZER)


def probe(settings: Settings, number: int, *, deadline_seconds: float | None = None) -> DrawnImage:
    """Draw one small request with adapter `number`.

    Raises:
        InferenceError: the server did not answer with a valid picture.
    """
    prompt = PromptSnapshot(
        history_titles=("probe",), history_tokens=((0, 1, 2),), title="probe", description="", reference_tokens=(0, 1)
    )
    request = DrawRequest("probe", prompt, (0.5,), PROBE_SEED, number)
    with TritonPigeon(settings) as model:
        return model.draw(request, deadline_seconds=deadline_seconds)[0]


def read_lora(adapter_dir: Path, language: dict[str, Any]) -> dict[str, Floats]:
    """PEFT's safetensors -> `lora_a` (L, 2, r, C), `lora_b` (L, 2, C, r) with alpha / r folded in.

    language: the checkpoint's `language` configuration.

    Raises:
        ModelError: no such file, or a matrix is missing, misshapen or not finite.
    """
    folder = adapter_dir / "llama" if (adapter_dir / "llama").is_dir() else adapter_dir
    path = folder / "adapter_model.safetensors"
    rank, width = int(language["lora_rank"]), int(language["width"])
    try:
        state = load_file(path)
        declared = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"adapter {folder}: {Path(error.filename or path).name} is missing") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"adapter {folder}: damaged ({error}); copy it again") from None
    if declared["r"] != rank:
        raise ModelError(f"adapter {folder}: r is {declared['r']}, the served model takes {rank}")
    scaling = {"A": 1.0, "B": float(declared["lora_alpha"]) / rank}
    shapes = {"A": (rank, width), "B": (width, rank)}

    def matrix(layer: int, module: str, part: str) -> Floats:
        wanted = f"layers.{layer}.self_attn.{module}.lora_{part}."
        value = next((value for name, value in state.items() if wanted in name), None)
        if value is None:
            raise ModelError(f"adapter {path}: {wanted}weight is missing; expected LoRA on {', '.join(LORA_MODULES)}")
        if value.shape != shapes[part]:
            raise ModelError(f"adapter {path}: {wanted}weight is {value.shape}, the served model takes {shapes[part]}")
        if not np.isfinite(value).all():
            raise ModelError(f"adapter {path}: {wanted}weight is not finite; its training diverged")
        return value.astype(np.float32) * np.float32(scaling[part])

    return {
        f"lora_{part.lower()}": np.stack(
            [
                np.stack([matrix(layer, module, part) for module in LORA_MODULES])
                for layer in range(int(language["depth"]))
            ]
        )
        for part in ("A", "B")
    }


def write_adapter(folder: Path, matrices: dict[str, Floats], info: dict[str, str]) -> None:
    """The two files that make a version folder an adapter."""
    np.savez(folder / ADAPTER_FILE, **matrices)  # type: ignore[arg-type]  # numpy's stub takes the names for its options
    (folder / ADAPTER_INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def part_hash(folder: Path) -> str | None:
    """Hash of a part's tensors as float16, a checkpoint's precision; None without safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    return content_hash({name: value.astype(np.float16) for name, value in load_file(files[0]).items()})


def _refuse_changed(folder: Path, served: str | None) -> None:
    """Refuse a changed mask generator or reference adapter: only LoRA comes with an adapter."""
    found = part_hash(folder)
    if found is not None and found != served:
        raise ModelError(
            f"adapter {folder}: differs from the served checkpoint's; a retrained {folder.name} needs a new checkpoint "
            "and `pigeon models build`"
        )
