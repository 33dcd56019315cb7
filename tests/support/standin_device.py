"""A device for machines without one: the CPU's numbers, and mixed operands are refused.

`install()` makes torch's slot for devices of others (PrivateUse1) the device `standin`. Its tensors hold a CPU tensor each, and
every operation on them is the CPU's, so that results are the CPU's and a missing `.to(device)` is an error, as on a GPU.
What a GPU allows is allowed: numbers of no dimension, indices on the CPU, copies. Autocast does nothing on it.

It cannot be taken out of a process again: tests run what needs it in a process of their own (`standin_paths`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "standin"
MOVES = frozenset({"aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize"})
INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})


class StandIn(Tensor):
    """A tensor of the device; `held` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> StandIn:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"StandIn({self.held!r})"

    def tolist(self) -> Any:
        """As a GPU's tensor gives it, and unlike `numpy`, which both refuse."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(op, args, kwargs or {})


class Module(_DummyBackendModule):
    """`torch.standin`, as libraries ask for it."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self) -> bool:
        return True


def compute(op: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """One operation, by the CPU.

    What it gives is on the device if its operands are, or if it was asked for there.

    Raises:
        RuntimeError: operands of the device and of the CPU are mixed.
    """
    name = op._schema.name
    known: dict[int, StandIn] = {}
    strangers: list[Tensor] = []

    def held(value: Any) -> Any:
        if isinstance(value, StandIn):
            known[id(value.held)] = value
            return value.held
        if isinstance(value, Tensor) and value.dim():
            strangers.append(value)
        return value

    plain, named = tree_map(held, args), tree_map(held, dict(kwargs))
    if strangers and known and name not in MOVES and not _indexes(name, args, strangers):
        raise RuntimeError(f"{op}: all tensors must be on {NAME}, found one of the CPU, {tuple(strangers[0].shape)}")
    asked = named.get("device")
    if asked is not None:
        named["device"] = torch.device("cpu")
    if name in {"aten::copy_", "aten::_copy_from"}:
        target, source = (0, 1) if name == "aten::copy_" else (1, 0)
        plain[target].copy_(plain[source])
        return args[target]
    out = op(*plain, **named)
    here = asked.type == NAME if asked is not None else bool(known)

    def given(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return StandIn(value) if here else value

    return tree_map(given, out)


def _indexes(name: str, args: Any, strangers: list[Tensor]) -> bool:
    """Whether the CPU's tensors are only places in one of the device, which GPUs take, too."""
    return name in INDEXING and isinstance(args[0], StandIn) and not any(s.is_floating_point() for s in strangers)


def install() -> None:
    """Make `torch.device("standin")` a device of this process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: compute(op, args, kwargs), "PrivateUse1")  # makes tensors from nothing
    _INSTALLED.append(library)  # what it registers goes when it does
    torch.__future__.set_swap_module_params_on_conversion(True)


_INSTALLED: list[torch.library.Library] = []
