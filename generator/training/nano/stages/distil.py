"""Stage `distil`: the UNet learns to draw in four unguided steps what it drew in twelve guided ones.

Progressive distillation (Salimans and Ho, ICLR 2022, arXiv 2202.00512) of the guidance as well (Meng et al., CVPR 2023, arXiv
2210.03142), in one go: DDIM adds no noise, so noise and conditions decide the teacher's path, and every third of its latents is where
a student's step has to arrive. Half of the loss is of single steps from the teacher's own latents, half of the picture at the end of
the student's own path, where its errors have added up.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from generator.pigeon.ddim import DdimSchedule
from generator.pigeon.decoder import CodeDecoder
from generator.pigeon.diffusion import Diffusion
from generator.pigeon.model import PigeonModel
from generator.pigeon.placement import Placement
from generator.training.nano.stages.codes import CodeCache
from generator.training.nano.stages.diffusion import OTHER_STYLE_SHARE, UNSEEN_SHARE
from generator.training.nano.world import World
from generator.training.processes import ProcessGroup
from generator.training.trainer import Part, Trainer, TrainerConfig
from schemas.errors import InputError

log = logging.getLogger(__name__)
TEACHER_STEPS, TEACHER_GUIDANCE = 12, 2.0
STEPS, GUIDANCE = 4, 1.0
PATHS = 4000
"""Paths of the teacher that are drawn before the student learns from them, again and again."""
CHUNK = 16


class DistilledUnet(nn.Module):
    """The module that learns: a UNet that begins as its teacher."""

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.unet = diffusion.unet.requires_grad_(True)


@dataclass(frozen=True)
class Paths:
    """The teacher's paths.

    `codes` int16 (n, N) that were drawn, `latents` float32 (n, STEPS + 1, 4, h, w) from noise to picture.
    """

    codes: npt.NDArray[np.int16]
    latents: npt.NDArray[np.float32]


def train_distilled(
    folder: Path,
    world: World,
    model: PigeonModel,
    codes: CodeCache,
    config: TrainerConfig,
    *,
    paths: int = PATHS,
    batch: int = 16,
    placement: Placement | None = None,
) -> None:
    """Teach a copy of the model's UNet; draws the teacher's paths first, which are kept in `folder`.

    Raises:
        InputError: the model's UNet has been distilled already.
    """
    if (found := model.config.diffusion.steps) == STEPS:
        raise InputError(
            f"--start: this checkpoint draws in {found} steps already; train stage diffusion first, which makes a teacher"
        )
    decoder = model.code_decoder.requires_grad_(False)
    placement = placement or Placement()
    put, group = placement.put, ProcessGroup.join(placement.device().type)
    if group.rank == 0:
        draw_paths(folder, world, model, codes, paths, placement)
    group.wait()
    teacher = read_paths(folder)
    student = copy.copy(model.diffusion)
    student._modules = dict(model.diffusion._modules)
    student.unet = copy.deepcopy(model.diffusion.unet)
    schedule = DdimSchedule.from_config(model.diffusion.scheduler, STEPS)

    def loss(step: int, rng: np.random.Generator) -> Part:
        chosen = rng.integers(len(teacher.codes), size=batch)
        (mine,) = group.parts(batch)
        rows = chosen[mine]
        latents = put(teacher.latents[rows])  # (B, STEPS + 1, 4, h, w)
        embeds, pooled = conditions(decoder, teacher.codes[rows])
        own, single, share = latents[:, 0], latents.new_zeros(()), len(rows) / batch
        for index in range(STEPS):
            start, wanted = latents[:, index], latents[:, index + 1]
            velocity, _ = stepped(student, schedule, index, start, embeds, pooled)
            single = single + (velocity - velocity_to(schedule, index, start, wanted)).square().mean() / STEPS
            _, own = stepped(student, schedule, index, own, embeds, pooled)
        arrived = (own - latents[:, -1]).square().mean()
        return share * (single + arrived), {"single": float(single.detach()), "arrived": float(arrived.detach())}

    Trainer(DistilledUnet(student), loss, folder, config, placement).run()


def drawing_in(model: PigeonModel, steps: int, guidance: float) -> PigeonModel:
    """The model, with the steps and the guidance that its UNet has learned to draw with."""
    drawing = model.config.diffusion.model_copy(update={"steps": steps, "guidance": guidance})
    model.diffusion.config = drawing
    return replace(model, config=model.config.model_copy(update={"diffusion": drawing}))


def draw_paths(
    folder: Path, world: World, model: PigeonModel, codes: CodeCache, count: int, placement: Placement
) -> None:
    """Write `count` of the teacher's paths to `folder`; those that an earlier run wrote are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = model.diffusion.latent_shape
    latents_path, codes_path = folder / "paths.npy", folder / "codes.npy"
    first = codes.answers.shape[-1]
    if not latents_path.exists():
        np.lib.format.open_memmap(codes_path, mode="w+", dtype="int16", shape=(count, first)).flush()
        np.lib.format.open_memmap(latents_path, mode="w+", dtype="float32", shape=(count, STEPS + 1, *shape)).flush()
    latents, drawn = (
        np.lib.format.open_memmap(latents_path, mode="r+"),
        np.lib.format.open_memmap(codes_path, mode="r+"),
    )
    for start in range(0, len(latents), CHUNK):
        if latents[start].any():  # noise is never zero
            continue
        rng = np.random.default_rng((1, start))
        some = min(CHUNK, len(latents) - start)
        triple, _ = world.some_unseen(world.sample(some, rng), UNSEEN_SHARE, rng)
        rows = codes.mixed(world, triple, rng, OTHER_STYLE_SHARE).numpy().astype(np.int16)
        noise = rng.standard_normal((some, *shape)).astype(np.float32)
        drawn[start : start + some] = rows
        latents[start : start + some] = teacher_path(model, rows, placement.put(noise)).cpu().numpy()
        if start % (CHUNK * 20) == 0:
            log.info("paths: %d of %d", start, len(latents))
    latents.flush()
    drawn.flush()


def read_paths(folder: Path) -> Paths:
    """The paths that `draw_paths` wrote."""
    return Paths(np.load(folder / "codes.npy"), np.load(folder / "paths.npy", mmap_mode="r"))


@torch.no_grad()
def teacher_path(model: PigeonModel, codes: npt.NDArray[np.int16], noise: Tensor) -> Tensor:
    """Codes (B, N) and noise (B, 4, h, w) -> latents (B, STEPS + 1, 4, h, w).

    Where the teacher is when the student's steps begin and end.
    """
    embeds, pooled = conditions(model.code_decoder, codes)
    both = torch.cat([torch.zeros_like(embeds), embeds]), torch.cat([torch.zeros_like(pooled), pooled])
    schedule = DdimSchedule.from_config(model.diffusion.scheduler, TEACHER_STEPS)
    latents, path = noise, [noise]
    for index, timestep in enumerate(schedule.timesteps):
        times = torch.full((2 * len(latents),), int(timestep))
        without, given = model.diffusion.unet_output(torch.cat([latents, latents]), times, *both).chunk(2)
        latents = after(schedule, index, latents, without + TEACHER_GUIDANCE * (given - without))
        if (index + 1) % (TEACHER_STEPS // STEPS) == 0:
            path.append(latents)
    return torch.stack(path, dim=1)


def conditions(decoder: CodeDecoder, codes: npt.NDArray[np.int16]) -> tuple[Tensor, Tensor]:
    """Codes (B, N) -> prompt_embeds (B, Q, E) and pooled (B, p)."""
    rows = torch.from_numpy(codes.astype(np.int64))
    with torch.no_grad():
        embeds, pooled = decoder(rows, torch.full((len(rows),), rows.shape[1]))
    return embeds, pooled


def stepped(
    student: Diffusion, schedule: DdimSchedule, index: int, latents: Tensor, embeds: Tensor, pooled: Tensor
) -> tuple[Tensor, Tensor]:
    """The student's velocity and the latents after its step, (B, 4, h, w) each."""
    times = torch.full((len(latents),), int(schedule.timesteps[index]))
    velocity = student.unet_output(latents, times, embeds, pooled)
    return velocity, after(schedule, index, latents, velocity)


def after(schedule: DdimSchedule, index: int, latents: Tensor, velocity: Tensor) -> Tensor:
    """DDIM's step `index` by v-prediction."""
    kept, moved = _step_factors(schedule, index)
    return kept * latents + moved * velocity


def velocity_to(schedule: DdimSchedule, index: int, start: Tensor, end: Tensor) -> Tensor:
    """The velocity with which step `index` leads from `start` to `end`."""
    kept, moved = _step_factors(schedule, index)
    return (end - kept * start) / moved


def _step_factors(schedule: DdimSchedule, index: int) -> tuple[float, float]:
    now, then = float(schedule.alphas[index]), float(schedule.previous_alphas[index])
    kept = (then * now) ** 0.5 + ((1 - then) * (1 - now)) ** 0.5
    moved = ((1 - then) * now) ** 0.5 - (then * (1 - now)) ** 0.5
    return kept, moved
