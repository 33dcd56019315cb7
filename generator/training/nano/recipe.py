"""The recipe of nano: which stage trains what, from what, for how long. `run_stage` is `pigeon train stage NAME`.

A stage's folder under the root holds its state, loss.csv and loss.svg; a stage that is run again resumes, and one that
has finished ends at once. Seconds are of one core, wall clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn

from generator.pigeon.checkpoint import load_model, save_model
from generator.pigeon.config import PigeonConfig
from generator.pigeon.model import PigeonModel
from generator.pigeon.weights import fill as fill_weights
from generator.pigeon.weights import read_weights, write_weights
from generator.training.nano.assemble import TEXT_TOKENIZER, assemble_model
from generator.training.nano.codes import CodeCache, fill
from generator.training.nano.decoder import train_decoder
from generator.training.nano.diffusion import train_diffusion
from generator.training.nano.imputation.auxiliary_art import load_auxiliary
from generator.training.nano.imputation.imputer import Drawings, imagine, impute, train_imputer
from generator.training.nano.imputation.latent_critic import build_critic, train_critic
from generator.training.nano.imputation.neighbours import find_relatives
from generator.training.nano.imputation.refiner import Retouch, retouched, train_retouch
from generator.training.nano.language import Prompts, train_alignment, train_language
from generator.training.nano.preference import train_preference
from generator.training.nano.scorer import normalise, train_scorer
from generator.training.nano.text import train_text_tokenizer
from generator.training.nano.tokenizer import build_task, train_tokenizer
from generator.training.nano.vae import UNIT, build_vae, train_vae, unit_variance
from generator.training.nano.vae_finetune import train_polish
from generator.training.nano.world import World
from generator.training.processes import Team
from generator.training.trainer import TrainerConfig, load_averaged
from schemas.errors import InputError

GUESSES = "caches/imputed.npy"
UNLIMITED = 1_000_000
"""Steps of a stage that its budget of seconds ends."""

RECIPE: dict[str, TrainerConfig] = {
    "vae": TrainerConfig(UNLIMITED, lr=1.5e-3, budget_seconds=2400),
    "tokenizer": TrainerConfig(UNLIMITED, lr=1.5e-3, ema_decay=0.99, budget_seconds=1900),
    "critic": TrainerConfig(
        UNLIMITED, lr=2e-3, weight_decay=0.05, ema_decay=0.99, cooldown_share=0.5, budget_seconds=480
    ),
    "imputer": TrainerConfig(UNLIMITED, lr=2e-3, ema_decay=0.99, cooldown_share=0.5, budget_seconds=5400),
    "retouch": TrainerConfig(
        UNLIMITED, lr=2e-3, ema_decay=0.998, cooldown_share=0.6, warmup_steps=300, budget_seconds=2800
    ),
    "decoder": TrainerConfig(UNLIMITED, lr=2e-3, ema_decay=0.99, cooldown_share=0.5, budget_seconds=2400),
    "scorer": TrainerConfig(UNLIMITED, lr=8e-4, weight_decay=0.05, ema_decay=0.995, budget_seconds=3300),
    "language": TrainerConfig(
        UNLIMITED,
        lr=1.5e-3,
        warmup_steps=200,
        weight_decay=0.05,
        ema_decay=0.995,
        cooldown_share=0.4,
        budget_seconds=600,
    ),
    "diffusion": TrainerConfig(UNLIMITED, lr=8e-4, ema_decay=0.995, cooldown_share=0.4, budget_seconds=3600),
    "polish": TrainerConfig(UNLIMITED, lr=4e-4, ema_decay=0.995, cooldown_share=0.6, budget_seconds=2100),
    "alignment": TrainerConfig(
        UNLIMITED,
        lr=4e-4,
        warmup_steps=20,
        weight_decay=0.0,
        ema_decay=0.99,
        cooldown_share=0.5,
        budget_seconds=1200,
    ),
}
"""For two idle cores and about six hours: `vae` beside `tokenizer`; then `caches` and `imputer`; `retouch` beside `critic`; `decoder`;
`diffusion`; `polish` beside `language`, `alignment`, `preference`, `scorer`. `imputer` and `diffusion` run in two processes, by
`accelerate launch`; `preference` is not timed. What the committed weights had is on their card."""


@dataclass(frozen=True)
class Workshop:
    """Where a model is made: `root` for the stages, `cache` for the data; `start`: a checkpoint whose weights training goes on from."""

    root: Path
    cache: Path
    config: PigeonConfig
    start: Path | None = None

    @cached_property
    def world(self) -> World:
        return World(self.cache)

    def assembled(self) -> PigeonModel:
        return assemble_model(self.root, self.world, self.config, self.start)

    def latents(self) -> Any:
        """Latents float16 (concepts, styles, palettes, 4, h, w); InputError when stage `caches` was not run."""
        return self._array("latents")

    def imputed(self) -> Any:
        """What `latents` may be, as guessed, if need be now; ModelError as for `tool`."""
        team = Team.join()
        if team.rank == 0 and not (self.root / GUESSES).exists():
            self.impute()
        team.wait()
        return self._array("imputed")

    def impute(self) -> None:
        """Make the guesses anew; ModelError as for `tool`."""
        diffusion = self.assembled().diffusion
        impute(
            self.imagined(),
            self.world,
            lambda x: diffusion.vae.encode(x * 2 - 1).latent_dist.mode(),
            diffusion.latent_shape,
            self.root / GUESSES,
        )

    def imagined(self) -> npt.NDArray[np.uint8]:
        """The guesses as icons, RGBA (concepts, styles, 64, 64, 4); ModelError as for `tool`."""
        guesses = imagine(self.tool("imputer"), self.drawings, np.flatnonzero(self.world.shown))
        return retouched(self.tool("retouch"), self.world, guesses)

    def codes(self) -> CodeCache:
        return CodeCache.of(self._array("codes"), self.world)

    @cached_property
    def drawings(self) -> Drawings:
        """What the imputer may look at; the first call downloads the auxiliary sets."""
        return Drawings(self.world, load_auxiliary(self.cache, self.world.concepts), find_relatives(self.world))

    def tool(self, name: str) -> Any:
        """A network of `TOOLS`, as its stage has trained it or, where the stage was not run, as it lies beside `start`.

        Raises:
            ModelError: neither is there, or `start` holds another network's weights.
        """
        network = None if self.trained(name) else self.begun(name)
        if network is None:
            network = TOOLS[name](self)
            load_averaged(network, self.root / name)
        return network.eval()

    def begun(self, name: str) -> Any:
        """A network of `TOOLS` as it lies beside `start`, None where it does not; ModelError when that is another network's."""
        if self.start is None or not (path := tool_path(self.start, name)).exists():
            return None
        network = TOOLS[name](self)
        fill_weights(network, read_weights(path), path)
        return network

    def trained(self, name: str) -> bool:
        """Whether stage `name` has been run here."""
        return (self.root / name / "state.pt").exists()

    def _array(self, name: str) -> Any:
        path = self.root / "caches" / f"{name}.npy"
        if not path.exists():
            raise InputError(f"{path} is missing: run that stage first (pigeon train stage caches)")
        return np.load(path, mmap_mode="r")


TOOLS: dict[str, Callable[[Workshop], nn.Module]] = {
    "critic": lambda shop: build_critic(shop.world, shop.latents()),
    "imputer": lambda shop: shop.drawings.imputer(),
    "retouch": lambda _: Retouch(),
}
"""What training uses and no model: kept beside a checkpoint, so that training can go on from it."""


def tool_path(checkpoint: Path, name: str) -> Path:
    """Beside the checkpoint's folder, not in it: what lies there counts for the hash that servers and adapters ask for."""
    return checkpoint.with_name(f"{checkpoint.name}.training") / f"{name}.safetensors"


def _text(shop: Workshop, _: TrainerConfig | None) -> None:
    train_text_tokenizer(shop.cache, shop.config.ids.text_size, shop.root / TEXT_TOKENIZER)


def _vae(shop: Workshop, config: TrainerConfig | None) -> None:
    train_vae(shop.root / "vae", shop.cache, config or RECIPE["vae"])
    vae = build_vae()
    load_averaged(vae, shop.root / "vae")
    unit_variance(vae.eval(), shop.world)
    vae.save_pretrained(shop.root / "vae" / UNIT)


def _tokenizer(shop: Workshop, config: TrainerConfig | None) -> None:
    train_tokenizer(shop.root / "tokenizer", shop.cache, shop.config, config or RECIPE["tokenizer"])


def _scorer(shop: Workshop, config: TrainerConfig | None) -> None:
    text = Tokenizer.from_file(str(shop.root / TEXT_TOKENIZER))
    start = load_model(shop.start).scorer if shop.start else None
    train_scorer(shop.root / "scorer", shop.cache, shop.config, text, config or RECIPE["scorer"], start=start)


def _caches(shop: Workshop, _: TrainerConfig | None) -> None:
    model = shop.assembled()
    patches = build_task(shop.config, shop.world).grid > 0
    vision = shop.config.tokenizer.vision
    folder, vae = shop.root / "caches", model.diffusion.vae
    fill(
        shop.world,
        folder,
        "latents",
        model.diffusion.latent_shape,
        "float16",
        lambda x: vae.encode(x * 2 - 1).latent_dist.mode(),
        every=True,  # stage `critic` learns from all things
    )
    kept = int(patches.sum())
    fill(
        shop.world,
        folder,
        "codes",
        (kept,),
        "int16",
        lambda x: model.tokenizer.encode_dense(normalise(x, vision))[0][:, patches],
    )


def _critic(shop: Workshop, config: TrainerConfig | None) -> None:
    train_critic(
        shop.root / "critic", shop.world, shop.latents(), config or RECIPE["critic"], start=shop.begun("critic")
    )


def _imputer(shop: Workshop, config: TrainerConfig | None) -> None:
    train_imputer(shop.root / "imputer", shop.drawings, config or RECIPE["imputer"], start=shop.begun("imputer"))
    (shop.root / GUESSES).unlink(missing_ok=True)  # made by another imputer; whoever needs them makes them anew


def _retouch(shop: Workshop, config: TrainerConfig | None) -> None:
    guesses = imagine(shop.tool("imputer"), shop.drawings, np.arange(len(shop.world.concepts)))
    train_retouch(shop.root / "retouch", shop.world, guesses, config or RECIPE["retouch"], start=shop.begun("retouch"))
    (shop.root / GUESSES).unlink(missing_ok=True)


def _decoder(shop: Workshop, config: TrainerConfig | None) -> None:
    model = shop.assembled()
    train_decoder(
        shop.root / "decoder",
        shop.world,
        model,
        shop.codes(),
        shop.latents(),
        shop.imputed(),
        config or RECIPE["decoder"],
    )


def _diffusion(shop: Workshop, config: TrainerConfig | None) -> None:
    model = shop.assembled()
    train_diffusion(
        shop.root / "diffusion",
        shop.world,
        shop.config,
        model.diffusion,
        model.code_decoder,
        shop.codes(),
        shop.latents(),
        shop.imputed(),
        shop.tool("critic"),
        config or RECIPE["diffusion"],
    )


def _polish(shop: Workshop, config: TrainerConfig | None) -> None:
    train_polish(
        shop.root / "polish",
        shop.world,
        shop.assembled(),
        shop.codes(),
        shop.latents(),
        shop.imagined(),
        config or RECIPE["polish"],
    )


def _language(shop: Workshop, config: TrainerConfig | None) -> None:
    prompts = Prompts(shop.world, shop.cache, shop.assembled(), shop.codes())
    train_language(shop.root / "language", prompts, config or RECIPE["language"])


def _alignment(shop: Workshop, config: TrainerConfig | None) -> None:
    prompts = Prompts(shop.world, shop.cache, shop.assembled(), shop.codes())
    train_alignment(shop.root / "alignment", prompts, config or RECIPE["alignment"])


def _preference(shop: Workshop, _: TrainerConfig | None) -> None:
    # Nothing that this stage itself has learned: it begins from stage 1.
    model = assemble_model(shop.root, shop.world, shop.config, shop.start, preference=False)
    train_preference(shop.root / "preference", Prompts(shop.world, shop.cache, model, shop.codes()))


STAGES: dict[str, Callable[[Workshop, TrainerConfig | None], None]] = {
    "text": _text,
    "vae": _vae,
    "tokenizer": _tokenizer,
    "caches": _caches,
    "critic": _critic,
    "imputer": _imputer,
    "retouch": _retouch,
    "decoder": _decoder,
    "language": _language,
    "scorer": _scorer,
    "diffusion": _diffusion,
    "polish": _polish,
    "alignment": _alignment,
    "preference": _preference,
}
"""In the order in which they are run."""


def run_stage(name: str, shop: Workshop, seconds: float | None = None) -> None:
    """Train one stage; `seconds` replaces its budget.

    Raises:
        InputError: unknown stage, or a stage that has no budget.
        ModelError: an earlier stage has not been trained.
        TrainingDiverged: the loss stopped being a number.
    """
    if name not in STAGES:
        raise InputError(f"stage: unknown name {name!r}; one of {', '.join(STAGES)}")
    if seconds is not None and name not in RECIPE:
        raise InputError(f"--seconds: stage {name} is not timed; leave it out")
    STAGES[name](shop, None if seconds is None else replace(RECIPE[name], budget_seconds=seconds))


def export(shop: Workshop, folder: Path) -> None:
    """Write what is trained so far as a checkpoint in fp16, and its tools beside it; a model card that is there stays."""
    tools = [name for name in TOOLS if shop.trained(name) or (shop.start and tool_path(shop.start, name).exists())]
    for name in tools:
        write_weights(shop.tool(name).state_dict(), tool_path(folder, name), torch.float16)
    save_model(shop.assembled(), folder)
