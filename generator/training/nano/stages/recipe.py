"""The recipe of nano: which stage trains what, from what, for how long.

`run_stage` is `pigeon train stage NAME`.

A stage's folder under the root holds its state, loss.csv and loss.svg; a stage that is run again resumes, and one that
has finished ends at once. Seconds are of one core, wall clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from generator.pigeon.placement import Placement
from generator.pigeon.weights import fill as fill_weights
from generator.pigeon.weights import read_weights, write_weights
from generator.training.nano.imputation.auxiliary_art import load_auxiliary
from generator.training.nano.imputation.imputer import Drawings, imagine, impute, train_imputer
from generator.training.nano.imputation.latent_critic import build_critic, train_critic
from generator.training.nano.imputation.neighbours import find_neighbours
from generator.training.nano.imputation.refiner import Refiner, refined, train_refiner
from generator.training.nano.stages.assemble import TEXT_TOKENIZER, assemble_model
from generator.training.nano.stages.codes import CodeCache, fill
from generator.training.nano.stages.decoder import train_decoder
from generator.training.nano.stages.diffusion import train_diffusion
from generator.training.nano.stages.distil import train_distilled
from generator.training.nano.stages.language import Prompts, train_alignment, train_language
from generator.training.nano.stages.preference import train_preference
from generator.training.nano.stages.scorer import normalise, train_scorer
from generator.training.nano.stages.text import train_text_tokenizer
from generator.training.nano.stages.tokenizer import build_task, train_tokenizer
from generator.training.nano.stages.vae import UNIT, build_vae, train_vae, unit_variance
from generator.training.nano.stages.vae_finetune import train_vae_finetune
from generator.training.nano.world import World
from generator.training.processes import ProcessGroup
from generator.training.trainer import TrainerConfig, load_averaged
from schemas.errors import InputError

GUESSES = "caches/imputed.npy"
UNLIMITED = 1_000_000
"""Number of steps of a stage that its budget of seconds ends."""

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
    "distil": TrainerConfig(UNLIMITED, lr=3e-4, ema_decay=0.995, cooldown_share=0.5, budget_seconds=2400),
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
"""Settings of the stages, for two idle cores and about six hours: `vae` beside `tokenizer`; then `caches` and `imputer`; `retouch`
beside `critic`; `decoder`; `diffusion`; `distil` beside `polish`; `language`, `alignment`, `preference`, `scorer`. `imputer` and
`diffusion` run in two processes, by `accelerate launch`; `preference` is not timed. What the committed weights had is on their card."""


@dataclass(frozen=True)
class NanoRun:
    """Folders of a training of nano: `root` for the stages, `cache` for the data.

    `start`: a checkpoint whose weights training continues from. `placement`: where all of it runs; what learns is float32, and a
    step is computed in its precision.
    """

    root: Path
    cache: Path
    config: PigeonConfig
    start: Path | None = None
    placement: Placement = field(default_factory=Placement)

    @cached_property
    def world(self) -> World:
        return World(self.cache)

    def assembled(self) -> PigeonModel:
        return assemble_model(self.root, self.world, self.config, self.start, placement=self.placement)

    def latents(self) -> Any:
        """Latents float16 (concepts, styles, palettes, 4, h, w); InputError when stage `caches` was not run."""
        return self._array("latents")

    def imputed(self) -> Any:
        """The latents as guessed, like `latents`; made now if need be; ModelError as for `tool`."""
        group = ProcessGroup.join(self.placement.device().type)
        if group.rank == 0 and not (self.root / GUESSES).exists():
            self.impute()
        group.wait()
        return self._array("imputed")

    def impute(self) -> None:
        """Make the guesses again; ModelError as for `tool`."""
        diffusion = self.assembled().diffusion
        impute(
            self.imagined(),
            self.world,
            lambda x: diffusion.vae.encode(self.placement.put(x) * 2 - 1).latent_dist.mode(),
            diffusion.latent_shape,
            self.root / GUESSES,
        )

    def imagined(self) -> npt.NDArray[np.uint8]:
        """The guesses as icons, RGBA (concepts, styles, 64, 64, 4); ModelError as for `tool`."""
        guesses = imagine(self.tool("imputer"), self.drawings, np.flatnonzero(self.world.shown))
        return refined(self.tool("retouch"), self.world, guesses)

    def codes(self) -> CodeCache:
        return CodeCache.of(self._array("codes"), self.world)

    @cached_property
    def drawings(self) -> Drawings:
        """What the imputer may look at; the first call downloads the auxiliary sets."""
        return Drawings(self.world, load_auxiliary(self.cache, self.world.concepts), find_neighbours(self.world))

    def tool(self, name: str) -> Any:
        """A network of `TOOLS` as its stage has trained it, else as it lies beside `start`.

        Raises:
            ModelError: neither is there, or `start` holds another network's weights.
        """
        network = None if self.trained(name) else self.from_start(name)
        if network is None:
            network = TOOLS[name](self)
            load_averaged(network, self.root / name)
        return network.to(self.placement.device()).eval()

    def from_start(self, name: str) -> Any:
        """A network of `TOOLS` as it lies beside `start`; None where it does not.

        Raises:
            ModelError: what lies there is another network's.
        """
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


TOOLS: dict[str, Callable[[NanoRun], nn.Module]] = {
    "critic": lambda run: build_critic(run.world, run.latents()),
    "imputer": lambda run: run.drawings.imputer(),
    "retouch": lambda _: Refiner(),
}
"""Networks that training uses and no model; kept beside a checkpoint, so that training can continue from it."""


def tool_path(checkpoint: Path, name: str) -> Path:
    """Path of a tool's weights, beside the checkpoint's folder and not in it.

    What lies in it counts for the hash that servers and adapters ask for.
    """
    return checkpoint.with_name(f"{checkpoint.name}.training") / f"{name}.safetensors"


def _text(run: NanoRun, _: TrainerConfig | None) -> None:
    train_text_tokenizer(run.cache, run.config.ids.text_size, run.root / TEXT_TOKENIZER)


def _vae(run: NanoRun, config: TrainerConfig | None) -> None:
    train_vae(run.root / "vae", run.cache, config or RECIPE["vae"], placement=run.placement)
    vae = build_vae()
    load_averaged(vae, run.root / "vae")
    unit_variance(vae.eval(), run.world)
    vae.save_pretrained(run.root / "vae" / UNIT)


def _tokenizer(run: NanoRun, config: TrainerConfig | None) -> None:
    train_tokenizer(
        run.root / "tokenizer", run.cache, run.config, config or RECIPE["tokenizer"], placement=run.placement
    )


def _scorer(run: NanoRun, config: TrainerConfig | None) -> None:
    text = Tokenizer.from_file(str(run.root / TEXT_TOKENIZER))
    start = load_model(run.start).scorer if run.start else None
    train_scorer(
        run.root / "scorer",
        run.cache,
        run.config,
        text,
        config or RECIPE["scorer"],
        start=start,
        placement=run.placement,
    )


def _caches(run: NanoRun, _: TrainerConfig | None) -> None:
    model = run.assembled()
    patches = build_task(run.config, run.world).grid > 0
    vision = run.config.tokenizer.vision
    folder, vae = run.root / "caches", model.diffusion.vae
    fill(
        run.world,
        folder,
        "latents",
        model.diffusion.latent_shape,
        "float16",
        lambda x: vae.encode(run.placement.put(x) * 2 - 1).latent_dist.mode(),
        every=True,  # stage `critic` learns from all things
    )
    kept = int(patches.sum())
    fill(
        run.world,
        folder,
        "codes",
        (kept,),
        "int16",
        lambda x: model.tokenizer.encode_dense(normalise(x, vision))[0][:, patches],
    )


def _critic(run: NanoRun, config: TrainerConfig | None) -> None:
    train_critic(
        run.root / "critic",
        run.world,
        run.latents(),
        config or RECIPE["critic"],
        start=run.from_start("critic"),
        placement=run.placement,
    )


def _imputer(run: NanoRun, config: TrainerConfig | None) -> None:
    train_imputer(
        run.root / "imputer",
        run.drawings,
        config or RECIPE["imputer"],
        start=run.from_start("imputer"),
        placement=run.placement,
    )
    (run.root / GUESSES).unlink(missing_ok=True)  # made by another imputer; whoever needs them makes them again


def _refiner(run: NanoRun, config: TrainerConfig | None) -> None:
    guesses = imagine(run.tool("imputer"), run.drawings, np.arange(len(run.world.concepts)))
    train_refiner(
        run.root / "retouch",
        run.world,
        guesses,
        config or RECIPE["retouch"],
        start=run.from_start("retouch"),
        placement=run.placement,
    )
    (run.root / GUESSES).unlink(missing_ok=True)


def _decoder(run: NanoRun, config: TrainerConfig | None) -> None:
    train_decoder(
        run.root / "decoder",
        run.world,
        run.assembled(),
        run.codes(),
        run.latents(),
        run.imputed(),
        config or RECIPE["decoder"],
        placement=run.placement,
    )


def _diffusion(run: NanoRun, config: TrainerConfig | None) -> None:
    train_diffusion(
        run.root / "diffusion",
        run.world,
        run.assembled(),
        run.codes(),
        run.latents(),
        run.imputed(),
        run.tool("critic"),
        config or RECIPE["diffusion"],
        placement=run.placement,
    )


def _distil(run: NanoRun, config: TrainerConfig | None) -> None:
    teacher = assemble_model(run.root, run.world, run.config, run.start, distilled=False, placement=run.placement)
    train_distilled(
        run.root / "distil",
        run.world,
        teacher,
        run.codes(),
        config or RECIPE["distil"],
        placement=run.placement,
    )


def _vae_finetune(run: NanoRun, config: TrainerConfig | None) -> None:
    train_vae_finetune(
        run.root / "polish",
        run.world,
        run.assembled(),
        run.codes(),
        run.latents(),
        run.imagined(),
        config or RECIPE["polish"],
        placement=run.placement,
    )


def _language(run: NanoRun, config: TrainerConfig | None) -> None:
    prompts = Prompts(run.world, run.cache, run.assembled(), run.codes())
    train_language(run.root / "language", prompts, config or RECIPE["language"], placement=run.placement)


def _alignment(run: NanoRun, config: TrainerConfig | None) -> None:
    prompts = Prompts(run.world, run.cache, run.assembled(), run.codes())
    train_alignment(run.root / "alignment", prompts, config or RECIPE["alignment"], placement=run.placement)


def _preference(run: NanoRun, _: TrainerConfig | None) -> None:
    # Nothing that this stage itself has learned: it begins from stage 1.
    model = assemble_model(run.root, run.world, run.config, run.start, preference=False, placement=run.placement)
    prompts = Prompts(run.world, run.cache, model, run.codes())
    train_preference(run.root / "preference", prompts, placement=run.placement.learning)


STAGES: dict[str, Callable[[NanoRun, TrainerConfig | None], None]] = {
    "text": _text,
    "vae": _vae,
    "tokenizer": _tokenizer,
    "caches": _caches,
    "critic": _critic,
    "imputer": _imputer,
    "retouch": _refiner,
    "decoder": _decoder,
    "language": _language,
    "scorer": _scorer,
    "diffusion": _diffusion,
    "distil": _distil,
    "polish": _vae_finetune,
    "alignment": _alignment,
    "preference": _preference,
}
"""Functions of the stages by name, in the order in which they are run."""


def run_stage(name: str, run: NanoRun, seconds: float | None = None) -> None:
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
    STAGES[name](run, None if seconds is None else replace(RECIPE[name], budget_seconds=seconds))


def export(run: NanoRun, folder: Path) -> None:
    """Write what is trained so far as a checkpoint in fp16, and its tools beside it.

    A model card that is there stays.
    """
    tools = [name for name in TOOLS if run.trained(name) or (run.start and tool_path(run.start, name).exists())]
    for name in tools:
        write_weights(run.tool(name).state_dict(), tool_path(folder, name), torch.float16)
    save_model(run.assembled(), folder)
