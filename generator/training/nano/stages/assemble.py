"""The model that is put together from what the stages have trained so far."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from tokenizers import Tokenizer

from generator.pigeon.checkpoint import load_adapter, load_model
from generator.pigeon.config import PigeonConfig
from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.placement import Placement
from generator.training.nano.stages.decoder import build_decoder_task
from generator.training.nano.stages.diffusion import DiffusionTask
from generator.training.nano.stages.distil import (
    GUIDANCE,
    STEPS,
    TEACHER_GUIDANCE,
    TEACHER_STEPS,
    DistilledUnet,
    drawing_in,
)
from generator.training.nano.stages.language import learning_language
from generator.training.nano.stages.scorer import build_scorer_task
from generator.training.nano.stages.tokenizer import build_task
from generator.training.nano.stages.vae import UNIT
from generator.training.nano.stages.vae_finetune import VaeDecoderTask
from generator.training.nano.world import World
from generator.training.reconstruction import base_hash
from generator.training.trainer import load_averaged
from schemas.errors import ModelError

log = logging.getLogger(__name__)
TEXT_TOKENIZER = "text/tokenizer.json"


def assemble_model(
    root: Path,
    world: World,
    config: PigeonConfig,
    start: Path | None = None,
    *,
    preference: bool = True,
    distilled: bool = True,
    placement: Placement | None = None,
) -> PigeonModel:
    """A model from the stages' folders under `root`.

    A part that no stage has trained is as in the checkpoint `start`, or random, and is logged. Without `preference`: as before stage 2;
    without `distilled`: with the UNet that stage `distil` learns from. It is in float32, on the devices of `placement`.

    Raises:
        ModelError: there is no text tokenizer yet, or stage `alignment` was trained on another language model.
    """
    path = root / TEXT_TOKENIZER
    if not path.exists():
        raise ModelError(f"{path} is missing: train that stage first (pigeon train stage text)")
    model = new_model(config, Tokenizer.from_file(str(path))) if start is None else load_model(start)
    trained = {}
    # First: these two hold the token decoder as it was when they began; its own stage and the diffusion's are right.
    if (root / "language/state.pt").exists():
        trained["language"] = load_averaged(learning_language(model.personalizer), root / "language")
    if (root / "alignment/state.pt").exists():
        model.personalizer.set_trainable()
        trained["alignment"] = load_averaged(model.personalizer, root / "alignment", base_hash(model.personalizer))
    adapter = root / "preference/adapter"
    if preference and adapter.exists():
        load_adapter(model.personalizer, adapter)
        trained["preference"] = 1
    if (root / "tokenizer/state.pt").exists():
        task = build_task(config, world)
        trained["tokenizer"] = load_averaged(task, root / "tokenizer")
        model.tokenizer.load_state_dict(task.tokenizer.state_dict())
    if (root / "decoder/state.pt").exists():
        decoding = build_decoder_task(config, world)
        trained["decoder"] = load_averaged(decoding, root / "decoder")
        model.code_decoder.decoder.load_state_dict(decoding.decoder.state_dict())
    if (root / "vae" / UNIT).exists():
        kind: Any = AutoencoderKL
        vae = kind.from_pretrained(root / "vae" / UNIT, low_cpu_mem_usage=False)
        model.diffusion.vae.load_state_dict(vae.state_dict())
        trained["vae"] = 1
    if (root / "diffusion/state.pt").exists():
        trained["diffusion"] = load_averaged(DiffusionTask(model.diffusion, model.code_decoder), root / "diffusion")
        model = drawing_in(model, TEACHER_STEPS, TEACHER_GUIDANCE)
    if distilled and (root / "distil/state.pt").exists():
        trained["distil"] = load_averaged(DistilledUnet(model.diffusion), root / "distil")
        model = drawing_in(model, STEPS, GUIDANCE)
    if (root / "polish/state.pt").exists():
        trained["polish"] = load_averaged(VaeDecoderTask(model.diffusion), root / "polish")
    if model.scorer is not None and (root / "scorer/state.pt").exists():
        scored = build_scorer_task(config, world)
        trained["scorer"] = load_averaged(scored, root / "scorer")
        model.scorer.load_state_dict(scored.scorer.state_dict())
    log.info(
        "assembled %s; the rest is %s",
        ", ".join(f"{name} (step {step})" for name, step in trained.items()),
        "random" if start is None else f"as in {start}",
    )
    for name, network in model.placed():
        network.to((placement or Placement()).device(name))
    return model.eval()
