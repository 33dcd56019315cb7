"""A LoRA of the UNet, merged into its weights.

That is how a published UNet comes to draw in few steps (LCM, Lightning).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from generator.pigeon.weights import find_weights, read_shapes
from schemas.errors import ModelError

ERRORS = (OSError, ValueError, RuntimeError, TypeError, KeyError)
ADAPTER = "few_steps"


def merge_lora(unet: Any, folder: Path) -> None:
    """Add the LoRA in `folder` to the UNet's weights.

    It is in diffusers' format (pytorch_lora_weights.safetensors) or kohya's.
    Parts for text encoders, which Pigeon has none of, are left out.

    Raises:
        ModelError: no such file, damaged, for no UNet, or for one of other layers or widths.
    """
    path = find_weights(folder)
    if path is None:
        raise ModelError(f"{folder}: no weights there; expected the LoRA of a UNet, pytorch_lora_weights.safetensors")
    read_shapes(path)  # a damaged file is named before diffusers reads it
    # Here, because it imports every pipeline's image processors.
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin

    mixin: Any = StableDiffusionXLLoraLoaderMixin
    try:
        state, alphas, metadata = mixin.lora_state_dict(
            str(folder),
            weight_name=path.name,
            unet_config=unet.config,
            local_files_only=True,
            return_lora_metadata=True,
        )
        _check(unet, state, path)
        unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, adapter_name=ADAPTER, metadata=metadata)
        unet.fuse_lora(adapter_names=[ADAPTER])
        unet.unload_lora()
    except ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{path}: cannot be merged into the UNet: {reason}") from error


def _check(unet: Any, state: dict[str, Any], path: Path) -> None:
    """Every layer that the LoRA changes is there; diffusers only warns about others."""
    layers = {_layer(name) for name in state if name.startswith("unet.")}
    if not layers:
        raise ModelError(f"{path}: no weight of it is for a UNet; give the LoRA of this checkpoint's UNet")
    unknown = sorted(layers - {name for name, _ in unet.named_modules()})
    if unknown:
        raise ModelError(
            f"{path}: {len(unknown)} of {len(layers)} layers are not in the UNet, the first is {unknown[0]}; "
            "give the LoRA of this checkpoint's UNet"
        )


def _layer(name: str) -> str:
    """The layer that a weight of a LoRA changes; kohya's files name an attention's as its processor's."""
    layer = name.removeprefix("unet.").partition(".lora")[0]
    attention, processor, rest = layer.partition(".processor.")
    if not processor:
        return layer
    projection = rest.partition("_lora")[0]
    return f"{attention}.{'to_out.0' if projection == 'to_out' else projection}"
