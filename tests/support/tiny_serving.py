"""A tiny random checkpoint and its model repository, for the serving tests.

Kept between runs, because the build is keyed by hash.
"""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from generator.pigeon.checkpoint import save_model
from generator.pigeon.config import PigeonConfig
from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.presets import tiny
from generator.serving.build import Built, build_repository
from generator.serving.gpu.target import GpuTarget
from generator.serving.targets import Target

CHECKOUT = Path(__file__).parents[2]
CACHE = CHECKOUT / ".pigeon" / "cache" / "tests" / "tiny-repository"
GPU_CACHE = CACHE.with_name("tiny-gpu-repository")


def tiny_config() -> PigeonConfig:
    """The tiny preset with what nano has beyond it: a sketch in its conditions and codes of taste.

    Calls itself nano, too.
    """
    fields = tiny().model_dump(mode="json")
    fields["name"] = "nano"  # which the settings know
    fields["decoder"]["queries"] = 16
    fields["diffusion"]["sketched"] = True
    fields["generation"]["taste_positions"] = [[0, 2]]
    return PigeonConfig.model_validate(fields)


def tiny_model(config: PigeonConfig | None = None) -> PigeonModel:
    """Random weights, strong enough that different inputs give different tokens."""
    torch.set_num_threads(1)
    torch.manual_seed(11)  # keeps 7 to 15 patches of the tests' pictures; many seeds keep none
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    made = new_model(config or tiny_config(), words)
    with torch.no_grad():
        for parameter in made.tokenizer.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        made.personalizer.llama.get_input_embeddings().weight.normal_()
        for name, parameter in made.personalizer.llama.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return made.eval()


def tiny_checkpoint(folder: Path) -> Path:
    """The same every time; float32, so that what is loaded is what was made."""
    save_model(tiny_model(), folder, torch.float32)
    return folder


def copy_repository(checkpoint: Path, folder: Path, target: Target | None = None) -> None:
    """A copy of the tiny checkpoint's repository.

    Which is exported only when something that matters has changed.
    """
    cache = GPU_CACHE if isinstance(target, GpuTarget) else CACHE
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_name(f"{cache.name}.wait").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may be exporting it; the product would refuse
        build_repository(checkpoint, "nano", cache, target=target)
        shutil.copytree(cache, folder, dirs_exist_ok=True)


def tiny_build(folder: Path) -> tuple[Path, Built]:
    """-> folder/checkpoint and a build of it in folder/models."""
    checkpoint = tiny_checkpoint(folder / "checkpoint")
    copy_repository(checkpoint, folder / "models")
    return checkpoint, build_repository(checkpoint, "nano", folder / "models")


def other_adapter(checkpoint: Path, folder: Path, scale: float = 0.5) -> Path:
    """A checkpoint's adapter folder with other LoRA matrices."""
    shutil.copytree(checkpoint / "pigeon", folder)
    path = folder / "llama" / "adapter_model.safetensors"
    rng = np.random.default_rng(9)
    drawn = {name: rng.standard_normal(v.shape).astype(np.float32) * scale for name, v in load_file(path).items()}
    save_file(drawn, path)
    return folder
