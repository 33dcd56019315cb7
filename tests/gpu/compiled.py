"""torch.compile, ONNX Runtime's CUDA provider and TensorRT against eager, where they are installed."""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from generator.pigeon.model import PigeonModel
from tests.gpu.drawing import unet_step
from tests.gpu.models import large_model, nano_model
from tests.gpu.rig import Rig

BATCH = 8


def run(rig: Rig) -> None:
    with rig.attempt("nano: ONNX Runtime"):
        onnx(rig, nano_model(rig.full, rig.rehearse))
    for name, make in (("nano", nano_model), *(() if rig.rehearse else (("lavit-7b", large_model),))):
        with rig.attempt(f"{name}: torch.compile"):
            compiled(rig, name, make(rig.half, rig.rehearse))
    reason = "TensorRT-RTX builds for SM75 to SM89 and SM120, SM121, not for SM90"
    if rig.device.type == "cuda" and torch.cuda.get_device_capability(rig.device) != (9, 0):
        reason = "pigeon models build --target gpu --compile compiles the graphs; engines are the server's"
    rig.row("TensorRT", not_run=reason)


@torch.no_grad()
def compiled(rig: Rig, name: str, model: PigeonModel) -> None:
    """A guided step of the UNet, before and after."""
    config, size = model.config, 1 if name == "lavit-7b" else BATCH
    latents = torch.randn(size, *model.diffusion.latent_shape, generator=torch.Generator().manual_seed(1))
    embeds = torch.randn(size, config.decoder.queries, config.decoder.prompt_width).to(rig.device)
    pooled = torch.randn(size, config.decoder.pooled_width).to(rig.device)
    latents = latents.to(rig.device)
    times = 2 if rig.rehearse else 10
    eager = rig.seconds(lambda: unet_step(model, latents, embeds, pooled), times)
    before = unet_step(model, latents, embeds, pooled)
    # Without a GPU there may be no compiler; the path is the same.
    backend = "inductor" if rig.device.type == "cuda" else "eager"
    model.diffusion.unet = torch.compile(model.diffusion.unet, backend=backend, dynamic=False)
    started = time.perf_counter()
    after = unet_step(model, latents, embeds, pooled)
    rig.wait()
    compiling = time.perf_counter() - started
    fast = rig.seconds(lambda: unet_step(model, latents, embeds, pooled), times)
    apart = float((after.float() - before.float()).abs().max() / before.float().abs().max())
    figures = {"eager_seconds": eager, "compiled_seconds": fast, "compiling_seconds": compiling, "apart": apart}
    rig.row(f"{name}: torch.compile", backend=backend, batch=size, **figures)


def onnx(rig: Rig, model: PigeonModel) -> None:
    """nano's UNet, exported here, on ONNX Runtime's provider for the device."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        rig.row("nano: ONNX Runtime", not_run=f"not installed: {', '.join(missing)}")
        return
    import onnxruntime

    from generator.serving.export import networks

    provider = "CUDAExecutionProvider" if rig.device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        rig.row("nano: ONNX Runtime", not_run=f"{provider} is not in this onnxruntime")
        return
    (network,) = [one for one in networks(model) if one.model == "unet"]
    module = network.module.to("cpu").eval()  # a graph does not know where it was traced
    feeds = {name: value.numpy() for name, value in network.example(BATCH, torch.Generator().manual_seed(2)).items()}
    with torch.no_grad():
        want = module(**{name: torch.from_numpy(value) for name, value in feeds.items()}).numpy()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "unet.onnx"
            program = torch.onnx.export(
                module, kwargs=network.example(BATCH, torch.Generator()), dynamo=True, verbose=False
            )
            if program is None:
                raise RuntimeError("the exporter gave no program")
            program.save(path)
            session = onnxruntime.InferenceSession(str(path), providers=[provider])
    got = session.run(None, feeds)[0]
    seconds = rig.seconds(lambda: session.run(None, feeds), 2 if rig.rehearse else 20)
    apart = float(np.abs(got - want).max() / np.abs(want).max())
    rig.row("nano: ONNX Runtime", provider=provider, batch=BATCH, seconds=seconds, apart=apart)
