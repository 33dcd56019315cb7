"""Where a checkpoint's networks go and how precise they are.

No torch at import, so that a setting can be read cheaply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from schemas.errors import InputError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
Network = Literal["tokenizer", "language", "diffusion", "scorer"]


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

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def device(self, network: Network) -> torch.device:
        """The device of a network.

        Raises:
            InputError: no such device, or torch was built without it.
        """
        import torch

        name = self.devices if isinstance(self.devices, str) else self.devices.get(network, "cpu")
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"devices: {name!r} for the {network}: {str(error).splitlines()[0]}") from error
        return device
