"""The stages of nano's recipe, two steps each in the small world, for `standin_paths`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.placement import Placement
from generator.pigeon.presets import nano
from generator.training.nano.imputation.imputer import imagine, train_imputer
from generator.training.nano.imputation.latent_critic import build_critic, train_critic
from generator.training.nano.imputation.refiner import Refiner, refined, train_refiner
from generator.training.nano.stages import scorer, tokenizer, vae
from generator.training.nano.stages.codes import CodeCache, fill
from generator.training.nano.stages.decoder import train_decoder
from generator.training.nano.stages.diffusion import train_diffusion
from generator.training.nano.stages.distil import TEACHER_GUIDANCE, TEACHER_STEPS, drawing_in, train_distilled
from generator.training.nano.stages.language import Prompts, train_alignment, train_language
from generator.training.nano.stages.preference import score_pairs_of
from generator.training.nano.stages.scorer import normalise
from generator.training.nano.stages.vae_finetune import train_vae_finetune
from generator.training.trainer import TrainerConfig
from tests.support.training_world import coded, small_world, to_look_at

SHORT = TrainerConfig(steps=2)
Stage = Callable[[Path, Placement], None]


def words() -> Tokenizer:
    return Tokenizer(WordLevel({"a": 0, **{f"w{n}": n for n in range(1, 40)}}, unk_token="a"))


def model_on(placement: Placement) -> PigeonModel:
    torch.manual_seed(0)
    model = new_model(nano(), words())
    for name, network in model.placed():
        network.to(placement.device(name))
    return model


def latents() -> Any:
    return np.random.default_rng(0).standard_normal((20, 6, 3, 4, 16, 16)).astype(np.float16)


def cache() -> CodeCache:
    world = small_world()
    return CodeCache.of(coded(world) % 512, world)


def prompts_on(placement: Placement) -> Prompts:
    made = Prompts.__new__(Prompts)
    made.world, made.model, made.codes = small_world(), model_on(placement), cache()
    made.titles, made.facts, made._encoded = ["w1", "w2"], ["w3"], {}
    return made


def vae_stage(folder: Path, placement: Placement) -> None:
    torch.manual_seed(0)
    vae.train_vae(folder, folder, SHORT, batch=4, placement=placement)


def tokenizer_stage(folder: Path, placement: Placement) -> None:
    torch.manual_seed(0)
    tokenizer.train_tokenizer(folder, folder, nano(), SHORT, batch=8, placement=placement)


def tokenizer_with_codes_stage(folder: Path, placement: Placement) -> None:
    tokenizer.CONTINUOUS_STEPS = 1
    tokenizer_stage(folder, placement)


def scorer_stage(folder: Path, placement: Placement) -> None:
    torch.manual_seed(0)
    scorer.train_scorer(folder, folder, nano(), words(), SHORT, batch=6, placement=placement)


def caches_stage(folder: Path, placement: Placement) -> None:
    model, world = model_on(placement).eval(), small_world()
    vision = model.config.tokenizer.vision
    found = fill(
        world, folder, "codes", (16,), "int16", lambda x: model.tokenizer.encode_dense(normalise(x, vision))[0]
    )
    torch.save({"module": {"codes": torch.from_numpy(np.array(found))}}, folder / "state.pt")


def critic_stage(folder: Path, placement: Placement) -> None:
    torch.manual_seed(0)
    train_critic(folder, small_world(), latents(), SHORT, batch=4, placement=placement)


def imputer_stage(folder: Path, placement: Placement) -> None:
    torch.manual_seed(0)
    drawings = to_look_at(small_world())
    train_imputer(folder, drawings, SHORT, concepts=3, placement=placement)
    imagine(drawings.imputer().to(placement.device()).eval(), drawings, np.arange(2))


def retouch_stage(folder: Path, placement: Placement) -> None:
    torch.manual_seed(0)
    world = small_world()
    train_refiner(folder, world, world.art.pixels, SHORT, batch=4, placement=placement)
    refined(Refiner().to(placement.device()).eval(), world, world.art.pixels)


def decoder_stage(folder: Path, placement: Placement) -> None:
    model = model_on(placement)
    train_decoder(folder, small_world(), model, cache(), latents(), latents(), SHORT, batch=4, placement=placement)


def diffusion_stage(folder: Path, placement: Placement) -> None:
    model, world = model_on(placement), small_world()
    critic = build_critic(world, latents()).to(placement.device())
    images = latents()
    train_diffusion(folder, world, model, cache(), images, images, critic, SHORT, batch=4, placement=placement)


def distil_stage(folder: Path, placement: Placement) -> None:
    teacher = drawing_in(model_on(placement), TEACHER_STEPS, TEACHER_GUIDANCE)
    train_distilled(folder, small_world(), teacher, cache(), SHORT, paths=4, batch=4, placement=placement)


def polish_stage(folder: Path, placement: Placement) -> None:
    model, world = model_on(placement), small_world()
    guesses, config = world.art.pixels, TrainerConfig(steps=1)
    train_vae_finetune(
        folder, world, model, cache(), latents(), guesses, config, drawings=4, batch=4, placement=placement
    )


def language_stage(folder: Path, placement: Placement) -> None:
    train_language(folder, prompts_on(placement), SHORT, rows=2, packed_share=0.4, placement=placement)


def alignment_stage(folder: Path, placement: Placement) -> None:
    prompts = prompts_on(placement)
    train_alignment(folder, prompts, SHORT, rows=2, placement=placement)
    score_pairs_of(prompts.model, prompts, 1)


STAGES: dict[str, Stage] = {
    name.removesuffix("_stage"): stage for name, stage in list(globals().items()) if name.endswith("_stage")
}


def in_the_small_world() -> None:
    """Give the stages that make their own world this one, and captions that need no films."""

    for module in (vae, tokenizer, scorer):
        setattr(module, "World", lambda _: small_world())  # noqa: B010 -- a name that the type checker knows as a class
    setattr(scorer.Captions, "__init__", _plain)  # noqa: B010 -- as above, a method


def _plain(self: Any, world: Any, _: Path) -> None:
    self.world, self.facts = world, ["w3"]
