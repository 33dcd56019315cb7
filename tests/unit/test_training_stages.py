"""The stages' parts that must hold whatever is trained.

Held-out pairs are never drawn, every code has one role, latents are scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.ddim import DdimSchedule
from generator.pigeon.diffusion import cells, sketch
from generator.pigeon.model import new_model
from generator.pigeon.presets import NANO_SCHEDULER, nano, tiny
from generator.training.nano.imputation import imputer, refiner
from generator.training.nano.imputation.imputer import train_imputer
from generator.training.nano.imputation.latent_critic import (
    SHARPNESS,
    Critique,
    Latents,
    build_critic,
    taken_for_another,
    train_critic,
)
from generator.training.nano.imputation.refiner import train_refiner
from generator.training.nano.stages import diffusion
from generator.training.nano.stages.assemble import TEXT_TOKENIZER, assemble_model
from generator.training.nano.stages.codes import CodeCache
from generator.training.nano.stages.decoder import build_decoder_task
from generator.training.nano.stages.diffusion import DiffusionTask, train_diffusion, training_alphas
from generator.training.nano.stages.language import learning_language
from generator.training.nano.stages.tokenizer import Roles, another_with, kept_grid, plane_waves
from generator.training.nano.stages.vae import build_vae, unit_variance
from generator.training.nano.stages.vae_finetune import train_vae_finetune
from generator.training.nano.world import World
from generator.training.processes import ProcessGroup
from generator.training.trainer import Trainer, TrainerConfig
from tests.support.training_world import coded, drawn, small_world, to_look_at, weights_of

torch.set_num_threads(1)


class Blots:
    """A world of noise: `unit_variance` needs pictures and nothing else of one."""

    def batch(self, count: int, rng: np.random.Generator) -> Blots:
        self.pixels = rng.random((count, 3, 64, 64), dtype=np.float32)
        return self


def test_the_grid_keeps_sixteen_patches_evenly() -> None:
    assert kept_grid(16).tolist() == [1.0] * 16
    of_64 = kept_grid(64).reshape(8, 8)
    assert of_64.sum() == 16
    assert of_64.reshape(4, 2, 4, 2).sum(dim=(1, 3)).eq(1).all()


def test_near_places_look_alike() -> None:
    waves = torch.nn.functional.normalize(plane_waves(8, 128), dim=-1)
    likeness = (waves @ waves.t()).reshape(8, 8, 8, 8)
    assert likeness[3, 3, 3, 3] == pytest.approx(1.0)
    assert likeness[3, 3, 3, 4] > likeness[3, 3, 3, 7]
    assert likeness[3, 3, 4, 3] > likeness[3, 3, 7, 3]


def test_scaled_latents_have_unit_variance_and_the_same_pictures() -> None:
    torch.manual_seed(1)
    vae, world = build_vae().eval(), Blots()
    pixels = torch.from_numpy(world.batch(64, np.random.default_rng(0)).pixels) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels[:2]).latent_dist.mode()).sample
        spread = vae.encode(pixels[:2]).latent_dist.std
        scale = torch.cat([vae.encode(pixels).latent_dist.mode()]).std(dim=(0, 2, 3))
    unit_variance(vae, world, images=64)  # type: ignore[arg-type]  # all that it uses of a World
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist
        after = vae.decode(latents.mode()[:2]).sample
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std[:2], spread / scale[:, None, None], rtol=1e-2, atol=0)
    assert latents.mode().std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=0.05)


def test_training_noise_is_the_sampling_schedule() -> None:
    alphas = training_alphas(dict(NANO_SCHEDULER))
    sampling = DdimSchedule.from_config(NANO_SCHEDULER, nano().diffusion.steps)
    assert len(alphas) == 1000
    np.testing.assert_allclose(alphas.numpy()[sampling.timesteps], sampling.alphas, atol=1e-6)
    assert (alphas.diff() < 0).all()


@pytest.fixture
def world() -> World:
    return small_world()


def test_held_out_pairs_are_never_drawn(world: World) -> None:
    rng = np.random.default_rng(0)
    concept, style, palette = world.sample(5000, rng)
    assert world.trained[concept, style].all()
    assert set(palette.tolist()) == {0, 1, 2}
    assert concept.max() < 10
    anything = world.sample_any(5000, rng)
    assert world.trained[anything[:2]].all()
    assert anything[0].max() == 19
    other = world.other_styles(concept, style, rng)
    assert (other != style).all()
    assert world.trained[concept, other].all()


def test_a_share_of_the_rows_takes_a_style_that_may_not_be_seen(world: World) -> None:
    rng = np.random.default_rng(0)
    before = world.sample(4000, rng)
    (concept, style, palette), unseen = world.some_unseen(before, 0.5, rng)
    np.testing.assert_array_equal(unseen, ~world.trained[concept, style])
    np.testing.assert_array_equal(style[~unseen], before[1][~unseen])
    np.testing.assert_array_equal(concept, before[0])
    np.testing.assert_array_equal(palette, before[2])
    could = (~world.trained[concept]).any(axis=1)
    assert unseen[could].mean() == pytest.approx(0.5, abs=0.05)
    hidden = np.argwhere(~world.trained & world.shown[:, None] & world.trained.any(axis=1, keepdims=True))
    assert {*zip(concept[unseen].tolist(), style[unseen].tolist(), strict=True)} == {*map(tuple, hidden.tolist())}


def test_a_role_is_taken_by_another_picture_that_shares_only_it() -> None:
    style, concept = np.array([0, 0, 0, 1, 2]), np.array([5, 5, 6, 6, 7])
    chosen = np.stack([another_with(style, concept, np.random.default_rng(seed)) for seed in range(20)])
    assert (chosen[:, :2] == 2).all()
    assert set(chosen[:, 2].tolist()) == {0, 1}
    assert (chosen[:, 3:] == [3, 4]).all()  # nobody else: themselves


def test_mixed_codes_come_from_the_picture_that_has_the_role() -> None:
    codes = torch.arange(3)[:, None].expand(3, 16)
    roles = Roles(np.array([1, 1, 1]), np.array([2, 2, 2]), np.array([0, 1, 2]))
    assert roles.mixed(codes)[0].tolist() == [1, 1, 2, 2, *[0] * 12]


def test_answers_are_what_the_tokenizer_says_most_and_a_thing_has_one_in_all_styles(world: World) -> None:
    clean = coded(world)
    favourite = [int(np.flatnonzero(styles)[0]) if styles.any() else 0 for styles in world.trained]
    clean[..., 4:] = (10 * np.arange(20) + favourite)[:, None, None, None]
    codes = coded(world)
    for concept in np.flatnonzero(world.trained.sum(axis=1) > 2):
        # Of a thing's drawings the second says nearly what the first says; the others speak of themselves.
        second = np.flatnonzero(world.trained[concept])[1]
        codes[concept, second, :, 4:-1] = clean[concept, second, :, 4:-1]
    codes[2, :, 0, :2] = 7  # one concept's pictures say something else of their palette
    codes[~world.trained] = 9  # and what is held out counts for nothing
    cache = CodeCache.of(codes, world)
    shown = world.shown & (world.trained.sum(axis=1) > 2)
    np.testing.assert_array_equal(cache.answers[shown], clean[shown])
    np.testing.assert_array_equal(cache.codes, codes)


def test_mixed_conditions_mean_the_picture_and_never_show_a_held_out_one(world: World) -> None:
    codes = coded(world)
    codes[~world.trained] = -1
    cache = CodeCache.of(codes, world)
    rng = np.random.default_rng(3)
    triple = world.sample(400, rng)
    concept, style, palette = triple
    rows = cache.mixed(world, triple, rng, other_style_share=0.5).numpy()
    assert (rows[:, :2] == 100 + palette[:, None]).all()
    assert (rows[:, 2:4] == 200 + style[:, None]).all()
    assert (rows[:, 4:] // 10 == concept[:, None]).all()
    spoken = (rows == cache.answers[triple]).all(axis=1)
    assert 0.6 < spoken.mean() < 0.85  # the answers, and what happens to say the same
    elsewhere = (rows[:, 4] % 10 != style)[~spoken]
    assert 0.3 < elsewhere.mean() < 0.7
    unseen = np.argwhere(~world.trained & world.shown[:, None])
    held_out = (unseen[:, 0], unseen[:, 1], np.zeros(len(unseen), np.int64))
    guessed = cache.mixed(world, held_out, rng, other_style_share=0.5).numpy()
    np.testing.assert_array_equal(guessed, cache.answers[held_out])


def test_a_sketch_is_the_cells_that_it_was_cut_into() -> None:
    latents = torch.randn(2, 4, 16, 16)
    cut = cells(latents, queries=16)
    assert cut.shape == (2, 16, 64)
    torch.testing.assert_close(sketch(torch.cat([cut, torch.randn(2, 16, 7)], dim=2), 4, 16), latents, rtol=0, atol=0)


def test_critic_and_imputer_learn_nothing_from_what_is_held_out(world: World, tmp_path: Path) -> None:
    for number, latents in enumerate(drawn(world)):
        folder = tmp_path / str(number)
        torch.manual_seed(0)  # of the weights that each begins with
        train_critic(folder / "critic", world, latents, TrainerConfig(steps=2), batch=4)
        train_imputer(folder / "imputer", to_look_at(world), TrainerConfig(steps=2), concepts=3)
        world.art.pixels[~world.trained] = 7
    for stage in ("critic", "imputer"):
        first, second = (weights_of(tmp_path / number / stage) for number in "01")
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_critique_tells_the_right_drawing_from_the_things_others(world: World) -> None:
    latents, changed = drawn(world)
    torch.manual_seed(0)
    critic = build_critic(world, latents)
    concept = np.flatnonzero(world.trained.sum(axis=1) >= 4)[:5]
    style = world.trained[concept].argmax(axis=1)
    triple = concept, style, np.ones(5, np.int64)
    right = torch.from_numpy(latents[triple].astype(np.float32))
    wrong = torch.from_numpy(
        latents[concept, world.other_styles(*triple[:2], np.random.default_rng(0)), 1].astype("f4")
    )
    critique = Critique(critic, world, latents, changed)
    mistaken, unlike = critique(triple, right)
    assert mistaken.shape == unlike.shape == (5,)
    assert unlike.max() < 1e-4
    # Nothing nearer is possible: at the right drawing every other has a share of e to the minus SHARPNESS.
    others = torch.from_numpy(world.trained[concept].sum(axis=1) - 1.0).float()
    torch.testing.assert_close(mistaken, torch.log1p(others * math.exp(-SHARPNESS)), rtol=1e-2, atol=0)
    taken, apart = critique(triple, wrong)
    assert taken.min() > 1
    assert apart.min() > 0.01
    hidden = latents.copy()
    hidden[~world.trained] = 7
    torch.testing.assert_close(Critique(critic, world, hidden, changed)(triple, wrong), (taken, apart))
    # What may not be seen is to be like its guess, and unlike what may.
    unseen = np.argwhere(~world.trained & world.trained.any(axis=1, keepdims=True))[:4].T
    guessed = unseen[0], unseen[1], np.ones(unseen.shape[1], np.int64)
    mistaken, unlike = critique(guessed, torch.from_numpy(changed[guessed].astype(np.float32)))
    assert unlike.max() < 1e-4
    assert mistaken.max() < 1


def test_drawings_that_are_nearly_alike_are_told_apart_as_others_are() -> None:
    right, near, far = torch.zeros(2), torch.tensor([0.3, 0.0]), torch.tensor([0.0, 1.0])
    drawings = torch.stack([right, near, far])[None].expand(4, -1, -1)
    style, known = torch.zeros(4, dtype=torch.long), torch.tensor([[1.0, 1, 0]] * 2 + [[1.0, 0, 1]] * 2)
    made = torch.stack([near / 2, near, far / 2, far])  # half of the way to the one that counts, and there
    taken, apart = taken_for_another(made, drawings, style, known)
    torch.testing.assert_close(taken[:2], taken[2:])
    torch.testing.assert_close(taken[:2], torch.tensor([math.log(2), math.log1p(math.exp(SHARPNESS))]))
    torch.testing.assert_close(apart, made.square().sum(dim=1))
    aside, _ = taken_for_another(made[:1] + torch.tensor([[0.0, 5.0]]), drawings[:1], style[:1], known[:1])
    torch.testing.assert_close(aside, taken[:1])  # being far from both is neither reward nor fault


def test_polish_teaches_the_vaes_decoder_alone_and_shows_it_guesses_of_what_is_held_out(
    world: World, tmp_path: Path
) -> None:
    words = Tokenizer(WordLevel({"a": 0}))
    cache = CodeCache.of(coded(world) % 512, world)
    guesses = np.random.default_rng(0).integers(0, 256, world.art.pixels.shape, dtype=np.uint8)
    made = []
    for name in ("first", "second", "third"):
        torch.manual_seed(0)
        model = new_model(nano(), words)
        before = {key: weight.clone() for key, weight in model.diffusion.state_dict().items()}
        latents = np.zeros((20, 6, 3, 4, 16, 16), np.float16)
        config = TrainerConfig(steps=2)
        train_vae_finetune(tmp_path / name, world, model, cache, latents, guesses, config, drawings=16, batch=8)
        changed = {key for key, weight in model.diffusion.state_dict().items() if not torch.equal(weight, before[key])}
        assert changed
        assert all(key.startswith("vae.decoder.") for key in changed)
        made.append(weights_of(tmp_path / name))
        world.art.pixels[~world.trained] = 7
        if name == "second":
            guesses[~world.trained] = 7
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert any(not torch.equal(weight, made[2][key]) for key, weight in made[1].items())
    with np.load(tmp_path / "first" / "drawn.npz") as kept:
        concept, style, _ = kept["triples"].T
        assert kept["drawn"].shape == (16, 4, 16, 16)
    assert 0 < world.trained[concept, style].mean() < 1


def learn_to_draw(world: World, folder: Path, latents: Latents, imputed: Latents) -> None:
    torch.manual_seed(0)
    model = new_model(nano(), Tokenizer(WordLevel({"a": 0})))
    cache, critic = CodeCache.of(coded(world) % 512, world), build_critic(world, latents)
    train_diffusion(folder, world, model, cache, latents, imputed, critic, TrainerConfig(steps=2), batch=6)


def test_the_unet_is_shown_guesses_of_what_is_held_out_and_never_the_drawings(world: World, tmp_path: Path) -> None:
    latents, changed = np.random.default_rng(0).standard_normal((2, 20, 6, 3, 4, 16, 16)).astype(np.float16)
    hidden = latents.copy()
    hidden[~world.trained] = 7
    elsewhere = changed.copy()
    elsewhere[~world.trained] = 1
    made = []
    for number, images in enumerate([(latents, changed), (hidden, changed), (latents, elsewhere)]):
        learn_to_draw(world, tmp_path / str(number), *images)
        made.append(weights_of(tmp_path / str(number)))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert any(not torch.equal(weight, made[2][name]) for name, weight in made[0].items())


def test_two_processes_share_a_step_of_unet_imputer_and_refiner(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = np.random.default_rng(0).standard_normal((20, 6, 3, 4, 16, 16)).astype(np.float16)
    drawings = to_look_at(world)

    def gradients(stage: ModuleType, train: Callable[[], None], group: ProcessGroup) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}

        class OneStep(Trainer):
            def run(self, *_: object) -> None:
                torch.manual_seed(3)
                self.step = 1000
                part = self.loss(self.step, np.random.default_rng(3))
                assert isinstance(part, tuple), "a step of one part"
                part[0].backward()
                found.update({name: p.grad for name, p in self.module.named_parameters() if p.grad is not None})

        monkeypatch.setattr(stage, "Trainer", OneStep)
        monkeypatch.setattr(ProcessGroup, "join", lambda *_: group)
        torch.manual_seed(0)
        train()
        return found

    for stage, train in (
        (diffusion, lambda: learn_to_draw(world, tmp_path, latents, latents)),
        (imputer, lambda: train_imputer(tmp_path, drawings, TrainerConfig(steps=1), concepts=3)),
        (refiner, lambda: train_refiner(tmp_path, world, world.art.pixels, TrainerConfig(steps=1), batch=4)),
    ):
        whole = gradients(stage, train, ProcessGroup())
        halves = [gradients(stage, train, ProcessGroup(rank, 2)) for rank in range(2)]
        assert whole.keys() == halves[0].keys() | halves[1].keys()
        for name, gradient in whole.items():
            both = sum(half.get(name, torch.zeros_like(gradient)) for half in halves)
            torch.testing.assert_close(both, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-7)


def test_the_decoder_that_serves_is_its_own_stages_and_the_diffusions(world: World, tmp_path: Path) -> None:
    config, words = tiny(), Tokenizer(WordLevel({"a": 0}))
    folder = tmp_path / TEXT_TOKENIZER
    folder.parent.mkdir()
    words.save(str(folder))

    def saved(module: torch.nn.Module, name: str) -> None:
        Trainer(module, lambda step, rng: (torch.zeros(()), {}), tmp_path / name, TrainerConfig(1)).folder.mkdir()
        Trainer(module, lambda step, rng: (torch.zeros(()), {}), tmp_path / name, TrainerConfig(1)).save()

    early, late = new_model(config, words), new_model(config, words)
    saved(learning_language(early.personalizer), "language")
    decoding = build_decoder_task(config, world)
    decoding.decoder.load_state_dict(late.code_decoder.decoder.state_dict())
    saved(decoding, "decoder")
    drawing = DiffusionTask(late.diffusion, late.code_decoder)
    with torch.no_grad():
        late.code_decoder.decoder.unet_attnpool.c_proj.weight.add_(1.0)
    saved(drawing, "diffusion")
    made = assemble_model(tmp_path, world, config)
    for name, weight in made.code_decoder.decoder.state_dict().items():
        torch.testing.assert_close(weight, late.code_decoder.decoder.state_dict()[name], rtol=0, atol=0)
    torch.testing.assert_close(made.personalizer.adapter.state_dict(), early.personalizer.adapter.state_dict())
