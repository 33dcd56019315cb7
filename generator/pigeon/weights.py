"""Weight files: .safetensors, and .bin pickles read with `weights_only=True` and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import ModelError

SUFFIXES = (".safetensors", ".bin")


def find_weights(stem: Path) -> Path | None:
    """`stem.safetensors` or `stem.bin`, the first that exists; for a stem that is a folder, its only such file."""
    for suffix in SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    if stem.is_dir():
        for suffix in SUFFIXES:
            files = sorted(stem.glob(f"*{suffix}"))
            if files:
                return files[0]
    return None


def read_weights(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All tensors of a file on the CPU, floats as `dtype`.

    Raises:
        ModelError: the file is damaged, or a pickle that holds more than tensors.
    """
    state: Mapping[str, object]
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path}: cannot be read as weights ({reason}); copy the file again") from error
    for wrapper in ("model", "module", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]  # type: ignore[assignment]  # checked on the line above
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def fill(module: nn.Module, state: Mapping[str, Tensor], source: Path, *, skip: tuple[str, ...] = ()) -> None:
    """Copies weights into a module. Names the module does not know are ignored: published files hold unread parts.

    skip: prefixes of names that come from another file.

    Raises:
        ModelError: a weight is missing or has another shape; the message gives its name and both shapes.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.startswith(skip)}
    missing = [name for name in own if name not in state]
    if missing:
        raise ModelError(
            f"{source}: {len(missing)} of {len(own)} weights are missing, the first is {missing[0]} "
            f"{tuple(own[missing[0]].shape)}; is this file from this checkpoint?"
        )
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise ModelError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, config.json asks for {tuple(value.shape)}; "
                "make config.json and weights agree"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def write_weights(state: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    """Writes tensors to a .safetensors file, floats as `dtype`; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous().clone()
            for name, value in state.items()
        },
        path,
        metadata={"format": "pt"},
    )
