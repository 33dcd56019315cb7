"""Weight files, whole or in shards: .safetensors, and .bin pickles read with `weights_only=True`."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import ModelError

SUFFIXES = (".safetensors", ".bin")
INDEX = ".index.json"
MARK = "pigeon_codebook"
"""Key of a .safetensors file's metadata: the codebook that its weights were trained with."""
USUAL_NAMES = ("model", "adapter_model", "diffusion_pytorch_model", "pytorch_model")
"""What the libraries call the weights inside a folder; other files there (an optimizer's) are not weights."""


def find_weights(stem: Path) -> Path | None:
    """The file `stem.safetensors` or `stem.bin`, or the index of either's shards.

    For a stem that is a folder, those inside it.

    Raises:
        ModelError: the folder holds several files, none under a usual name.
    """
    for suffix in SUFFIXES:
        for path in (stem.with_name(stem.name + suffix + INDEX), stem.with_name(stem.name + suffix)):
            if path.is_file():
                return path
    if not stem.is_dir():
        return None
    for name in USUAL_NAMES:
        usual = find_weights(stem / name) if not (stem / name).is_dir() else None
        if usual is not None:
            return usual
    files = [path for suffix in SUFFIXES for path in sorted(stem.glob(f"*{suffix}"))]
    if len(files) > 1:
        raise ModelError(
            f"{stem}: {len(files)} weight files ({files[0].name}, {files[1].name}, ...) and no index; "
            f"name the right one {USUAL_NAMES[0]}{files[0].suffix}"
        )
    return files[0] if files else None


def weight_files(path: Path) -> list[Path]:
    """The files behind what `find_weights` found: itself, or every shard that it lists.

    Raises:
        ModelError: the index is damaged, or a shard is missing.
    """
    if not path.name.endswith(INDEX):
        return [path]
    try:
        listed = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not an index of shards ({type(error).__name__}); copy the file again") from error
    missing = [name for name in listed if not (path.parent / name).is_file()]
    if missing or not listed:
        raise ModelError(
            f"{path}: {len(missing)} of {len(listed)} shards are missing, the first is {(missing or ['any'])[0]}; "
            "copy the folder again"
        )
    return [path.parent / name for name in listed]


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of an index's shards, on the CPU and as precise as they are stored.

    Raises:
        ModelError: the file is damaged, a pickle that holds more than tensors, or a shard is missing.
    """
    return {name: value for file in weight_files(path) for name, value in _read(file).items()}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes alone, without reading the numbers.

    Raises:
        ModelError: as `read_weights`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt") as opened:
                    shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise _damaged(file, error) from error
        else:
            shapes |= {name: tuple(value.shape) for name, value in _read(file).items()}
    return shapes


def _read(path: Path) -> dict[str, Tensor]:
    state: Mapping[str, object]
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            # Files from before torch 1.6 are no zip archives: they cannot be mapped, and torch remarks on their protocol.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise _damaged(path, error) from error
    if not isinstance(state, Mapping):
        raise _damaged(path, TypeError(f"it holds a {type(state).__name__}, not tensors by name"))
    for wrapper in ("model", "module", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]  # type: ignore[assignment]  # checked on the line above
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(f"{path}: cannot be read as weights ({reason}); copy the file again")


def fill(module: nn.Module, state: Mapping[str, Tensor], source: Path, *, skip: tuple[str, ...] = ()) -> None:
    """Copy weights into a module.

    Names that the module does not know are ignored: published files hold unread parts.

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


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and numbers, the same wherever the tensors are."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_mark(path: Path) -> str | None:
    """The mark that `write_weights` left in a file, or in the first shard; None where there is none.

    Raises:
        ModelError: as `read_weights`.
    """
    file = weight_files(path)[0]
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "pt") as opened:
            mark: str | None = (opened.metadata() or {}).get(MARK)
    except SafetensorError as error:
        raise _damaged(file, error) from error
    return mark


def write_weights(state: Mapping[str, Tensor], path: Path, dtype: torch.dtype, mark: str | None = None) -> None:
    """Writes tensors to a .safetensors file, floats as `dtype`; the folder is made.

    mark: what the file belongs to, for `read_mark`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous().clone()
            for name, value in state.items()
        },
        path,
        metadata={"format": "pt"} | ({MARK: mark} if mark else {}),
    )
