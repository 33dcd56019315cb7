"""Where a checkpoint's networks go, how precise their weights are, and in what they are computed.

No torch at import, so that a setting can be read cheaply.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from schemas.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
Network = Literal["tokenizer", "language", "diffusion", "scorer"]
AUTO = "auto"


@dataclass(frozen=True)
class Placement:
    """`devices`: one torch device for all, or one per network (what is not named is on the CPU).

    `precision` is that of the image encoder, LLaMA, the token decoder and the UNet. What decides (keep decision, quantizer,
    mask generator), what learns (LoRA, adapter) and the VAE, which overflows in half precision, stay in float32.
    `eight_bit`: LLaMA's linear layers are stored as int8 and multiplied in `precision`; needs torchao.
    """

    precision: Precision = "fp32"
    devices: str | Mapping[Network, str] = "cpu"
    eight_bit: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise InputError(f"precision: {self.precision!r} must be one of {', '.join(get_args(Precision))}")
        unknown = [] if isinstance(self.devices, str) else sorted(set(self.devices) - set(get_args(Network)))
        if unknown:
            raise InputError(f"devices: unknown network {unknown[0]!r}; one of {', '.join(get_args(Network))}")

    @classmethod
    def of(cls, device: str = "cpu", precision: str = AUTO, *, eight_bit: bool = False) -> Placement:
        """Everything on one device, as a setting or an option names it.

        device: torch's name; `auto` is the first GPU, and the CPU where there is none.
        precision: `auto` is bf16 on a GPU that computes in it, float32 elsewhere.

        Raises:
            InputError: no such device or precision, or a precision that the device lacks.
        """
        if precision != AUTO and precision not in get_args(Precision):
            raise InputError(
                f"precision {precision!r} (compute.precision, --precision): must be {AUTO} or one of {', '.join(get_args(Precision))}"
            )
        name = first_device() if device == AUTO else device
        try:
            found = _existing(name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"device {name!r} (compute.device, --device): {reason}") from error
        native = found.type == "cpu" or computes_bf16(found)
        if precision == "bf16" and not native:
            raise InputError(
                f"precision 'bf16' (compute.precision, --precision): {name} does not compute in it; use fp32, or fp16 to draw"
            )
        if precision == AUTO:
            precision = "bf16" if native and found.type != "cpu" else "fp32"
        return cls(precision, name, eight_bit)  # type: ignore[arg-type]  # checked above

    @property
    def dtype(self) -> torch.dtype:
        """The type of the frozen weights."""
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def learning(self) -> Placement:
        """The same devices, all weights in float32: for networks that learn whole, computed in `autocast`."""
        return replace(self, precision="fp32")

    def device(self, network: Network = "language") -> torch.device:
        """The device of a network.

        Raises:
            InputError: no such device, or torch was built without it.
        """
        name = self.devices if isinstance(self.devices, str) else self.devices.get(network, "cpu")
        try:
            return _existing(name)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"devices: {name!r} for the {network}: {str(error).splitlines()[0]}") from error

    def put(self, value: Tensor | npt.NDArray[Any], network: Network = "language") -> Tensor:
        """A tensor, or an array as one, on the network's device; nothing is copied on the CPU."""
        import torch

        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        return tensor.to(self.devices if isinstance(self.devices, str) else self.devices.get(network, "cpu"))

    def autocast(self, network: Network = "language") -> AbstractContextManager[object]:
        """What a step of training is computed in: torch's autocast to `precision`; nothing in float32.

        Log-probabilities, losses, decisions and the VAE stay in float32 (`in_float32`).

        Raises:
            InputError: fp16, whose gradients vanish without a loss scale; or as `device`.
        """
        import torch

        if self.precision == "fp16":
            raise InputError("precision: fp16 draws and does not train; use bf16 or fp32")
        device = self.device(network)
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)


def _existing(name: str) -> torch.device:
    import torch

    device = torch.device(name)
    torch.empty(0, device=device)
    return device


def first_device() -> str:
    """`cuda:0` where torch sees a GPU, else `cpu`.

    In a process of `accelerate launch` the GPU that is its own.
    """
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device itself computes in bfloat16; older GPUs only emulate it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    asked = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return bool(asked()) if callable(asked) else True


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    """Leave an autocast for what has to be float32: what decides, and the VAE.

    Does nothing outside of one.
    """
    import torch

    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
