"""The repository: built once, refused when it does not fit, replaced whole, adapters kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from generator.pigeon.checkpoint import load_model
from generator.serving import adapters, build, replacement
from generator.serving.repository import (
    MODELS,
    check_repository,
    checkpoint_folder,
    default_checkpoint,
    read_manifest,
    repository_folder,
    tree_hashes,
)
from generator.serving.versions import Versions, checkpoint_versions
from schemas.errors import InputError, LockHeld, ModelError
from schemas.settings import Settings
from tests.support.tiny_serving import other_adapter, tiny_build

pytestmark = pytest.mark.timeout(1200)  # the first run exports the tiny model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    tiny_build(folder)
    return folder


@pytest.fixture
def world(original: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(checkpoint, repository), to be damaged."""
    shutil.copytree(original, tmp_path / "w")
    return tmp_path / "w" / "checkpoint", tmp_path / "w" / "models"


def no_export(*_: object) -> None:
    raise AssertionError("something was exported")


def test_unchanged_input_builds_nothing(world, monkeypatch) -> None:
    checkpoint, repository = world
    monkeypatch.setattr(build, "_write", no_export)
    times = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    built = build.build_repository(checkpoint, "nano", repository)
    assert not built.rebuilt
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == times
    (checkpoint / "README.md").write_text("a model card is no input")
    assert not build.build_repository(checkpoint, "nano", repository).rebuilt


def test_the_manifest_says_what_is_there(world) -> None:
    checkpoint, repository = world
    manifest = check_repository(repository, "nano", checkpoint)
    assert set(manifest.models) == set(MODELS) == {path.name for path in repository.iterdir() if path.is_dir()}
    pigeon = manifest.models["pigeon"]
    assert {shape.name: shape.dims for shape in pigeon.outputs}["images"] == (-1, 32, 32, 3)
    assert manifest.precision == "float32"
    assert all(entry.max_abs_diff < 1e-3 for entry in manifest.agreement.values())
    for name in MODELS:
        text = (repository / name / "config.pbtxt").read_text()
        assert f'name: "{name}"' in text
        assert manifest.build in text
        for version in (manifest.tokenizer_version, manifest.drawing_version, manifest.base_weights):
            assert len(version) == 16
            assert version in text
        assert "dynamic_batching" not in text, "a task's result must not depend on its neighbours"
        assert "queue_policy" not in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "manifest.json").unlink(), "no manifest.json, so it is empty or incomplete"),
        (lambda r: (r / "manifest.json").write_text("{}"), r"manifest.json: build: Field required"),
        (lambda r: (r / "unet" / "1" / "model.onnx").unlink(), "unet/1/model.onnx is missing"),
        (lambda r: (r / "pigeon" / "1" / "model.py").write_text("#"), "pigeon/1/model.py was changed"),
        (lambda r: _edit(r, lambda m: m["models"].pop("vae_decoder")), "no model vae_decoder"),
        (lambda r: _edit(r, lambda m: m["models"].pop("pictures")), "no model pictures"),
        (
            lambda r: _edit(r, lambda m: (m.pop("drawing_version"), m.pop("base_weights"))),
            "built by an earlier release, .*; run `pigeon models build`",
        ),
        (lambda r: _edit(r, lambda m: m.update(preset="lavit-7b")), "built for preset lavit-7b, the settings say nano"),
        (lambda r: _edit(r, lambda m: m.update(checkpoint_hash="0")), "built from another checkpoint"),
    ],
)
def test_a_repository_that_does_not_fit_is_refused(world, damage, message) -> None:
    checkpoint, repository = world
    damage(repository)
    with pytest.raises(ModelError, match=message):
        check_repository(repository, "nano", checkpoint)


def _edit(repository: Path, change) -> None:
    path = repository / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _versions(checkpoint: Path) -> Versions:
    return checkpoint_versions(tree_hashes(checkpoint), load_model(checkpoint))


def _edit_config(checkpoint: Path, section: str, **fields: object) -> None:
    path = checkpoint / "config.json"
    value = json.loads(path.read_text())
    value[section] |= fields
    path.write_text(json.dumps(value))


def _edit_weight(name: str, part: str) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        path = checkpoint / name
        state = load_file(path)
        key = next(key for key in state if part in key)
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        save_file({**state, key: state[key] * np.float32(1.5)}, path, metadata)

    return edit


def _edit_codebook(checkpoint: Path) -> None:
    """Another codebook in all parts; their marks are of the old one, and a checkpoint of before has none."""
    for path in checkpoint.rglob("*.safetensors"):
        save_file(load_file(path), path)
    _edit_weight("visual_tokenizer/tokenizer_encoder.safetensors", "quantize.embedding")(checkpoint)


DECODER = "visual_tokenizer/highres_tokenizer_decoder.safetensors"
PIXELS = "highres_pixel_decoding"


@pytest.mark.parametrize(
    ("change", "versions"),
    [
        (lambda c: (c / "README.md").write_text("a model card"), set()),
        (lambda c: _edit_config(c, "diffusion", steps=4), {"drawing_version"}),
        (lambda c: _edit_config(c, "diffusion", guidance=1.0), {"drawing_version"}),
        (_edit_weight(f"{PIXELS}/unet/diffusion_pytorch_model.safetensors", "conv_out"), {"drawing_version"}),
        (lambda c: _edit_scheduler(c, timestep_spacing="leading"), {"drawing_version"}),
        (
            _edit_weight(f"{PIXELS}/vae/diffusion_pytorch_model.safetensors", "decoder.conv_out"),
            {"drawing_version", "base_weights"},
        ),
        (_edit_weight(DECODER, "pos_embed"), {"drawing_version", "base_weights", "adapter_base"}),
        (
            _edit_codebook,
            {"drawing_version", "base_weights", "adapter_base", "tokenizer_version"},
        ),
        (
            _edit_weight("visual_tokenizer/eva_vitg_psz14.safetensors", "pos_embed"),
            {"base_weights", "adapter_base", "tokenizer_version"},
        ),
        (_edit_weight("language_model/model.safetensors", "lm_head"), {"base_weights", "adapter_base"}),
        (_edit_weight("pigeon/llama/adapter_model.safetensors", "lora_B"), {"base_weights"}),
        (_edit_weight("pigeon/adapter/model.safetensors", "encoder"), {"base_weights", "adapter_base"}),
        (_edit_weight("image_scorer/model.safetensors", "image"), {"base_weights", "tokenizer_version"}),
        (lambda c: _edit_config(c, "generation", temperature=0.9), {"base_weights"}),
        (lambda c: _edit_config(c, "generation", taste_positions=[]), {"base_weights"}),
    ],
)
def test_a_version_changes_with_what_it_stands_for_and_nothing_else(world, change, versions: set[str]) -> None:
    checkpoint, _ = world
    before = _versions(checkpoint)
    change(checkpoint)
    after = _versions(checkpoint)
    assert {name for name, value in vars(before).items() if vars(after)[name] != value} == versions


def _edit_scheduler(checkpoint: Path, **fields: object) -> None:
    path = checkpoint / PIXELS / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def place_adapter(repository: Path, number: int, base: str) -> None:
    folder = repository / "personalizer" / str(number)
    shutil.copytree(repository / "personalizer" / "1", folder)
    (folder / "adapter.json").write_text(json.dumps({"base": base, "sha256": "x"}))


def test_a_rebuild_carries_adapters_of_the_same_base(world, monkeypatch) -> None:
    checkpoint, repository = world
    base = read_manifest(repository).adapter_base
    place_adapter(repository, 2, base)
    place_adapter(repository, 3, "another base")
    (repository / "unet" / "1" / "model.onnx").unlink()
    fresh = repository.with_name("fresh")
    shutil.copytree(repository, fresh, ignore=shutil.ignore_patterns("2", "3"))

    def written(checkpoint, preset, staging, *_):
        shutil.copytree(fresh, staging, dirs_exist_ok=True)
        return read_manifest(fresh)

    monkeypatch.setattr(build, "_write", written)
    built = build.build_repository(checkpoint, "nano", repository)
    assert (built.rebuilt, built.kept_adapters, built.dropped_adapters) == (True, (2,), (3,))
    assert sorted(p.name for p in (repository / "personalizer").iterdir() if p.is_dir()) == ["1", "2", "graph"]
    assert json.loads((repository / "personalizer" / "2" / "adapter.json").read_text())["base"] == base


def test_a_failed_build_leaves_the_old_repository(world, monkeypatch) -> None:
    checkpoint, repository = world

    def fail(*_):
        raise ModelError("unet: ONNX differs from PyTorch")

    monkeypatch.setattr(build, "_write", fail)
    monkeypatch.setattr(build, "_current", lambda *_: None)
    with pytest.raises(ModelError, match="differs"):
        build.build_repository(checkpoint, "nano", repository)
    check_repository(repository, "nano", checkpoint)
    assert {path.name for path in repository.parent.iterdir()} == {"checkpoint", "models", "models.lock"}


def test_a_crash_between_the_two_renames_is_mended(world, monkeypatch) -> None:
    checkpoint, repository = world
    repository.rename(repository.with_name("models.old"))
    monkeypatch.setattr(build, "_write", no_export)
    assert not build.build_repository(checkpoint, "nano", repository).rebuilt
    assert not repository.with_name("models.old").exists()


def test_two_builds_at_once(world) -> None:
    checkpoint, repository = world
    with replacement.locked(repository), pytest.raises(LockHeld, match="another build or pull is under way"):
        build.build_repository(checkpoint, "nano", repository)


def test_a_checkpoint_of_another_preset_is_refused(world, tmp_path) -> None:
    checkpoint, _ = world
    with pytest.raises(ModelError, match="is a nano, the settings say preset lavit-7b"):
        build.build_repository(checkpoint, "lavit-7b", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_where_things_are(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert repository_folder(settings) == Path(".pigeon/models")
    assert default_checkpoint().parts[-3:] == ("deploy", "models", "nano")
    with pytest.raises(ModelError, match="set PIGEON_MODELS__CHECKPOINT"):
        checkpoint_folder(Settings(models={"preset": "lavit-7b"}))
    with pytest.raises(ModelError, match=r"no config\.json there"):
        checkpoint_folder(Settings(models={"checkpoint": tmp_path}))
    assert checkpoint_folder(settings) == default_checkpoint()
    monkeypatch.setattr("generator.serving.repository.default_checkpoint", lambda: tmp_path / "deploy/models/nano")
    with pytest.raises(ModelError, match="set PIGEON_MODELS__CHECKPOINT to deploy/models/nano of a checkout"):
        checkpoint_folder(settings)


def test_adapters_that_do_not_fit_are_refused(world, tmp_path) -> None:
    """Before anything is written or the server is asked."""
    checkpoint, repository = world
    settings = Settings(triton={"model_repository": repository, "url": "127.0.0.1:1"})
    good = other_adapter(checkpoint, tmp_path / "good")
    with pytest.raises(InputError, match="others start at 2"):
        adapters.install_adapter(settings, 1, good)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        adapters.install_adapter(settings, 2, tmp_path / "nothing")

    config = good / "llama" / "adapter_config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"r": 4}))
    with pytest.raises(ModelError, match="r is 4, the served model takes 8"):
        adapters.install_adapter(settings, 2, good)
    config.write_text(text)

    weights = good / "llama" / "adapter_model.safetensors"
    state = load_file(weights)
    name = next(name for name in state if "layers.1" in name and "v_proj" in name and "lora_B" in name)
    save_file({**state, name: np.full_like(state[name], np.nan)}, weights)
    with pytest.raises(ModelError, match=r"v_proj\.lora_B\.weight is not finite; its training diverged"):
        adapters.install_adapter(settings, 2, good)
    save_file({n: v for n, v in state.items() if n != name}, weights)
    with pytest.raises(ModelError, match=r"v_proj\.lora_B\.weight is missing"):
        adapters.install_adapter(settings, 2, good)
    save_file(state, weights)

    mask = good / "mask_generator" / "model.safetensors"
    save_file({n: v + 1 for n, v in load_file(mask).items()}, mask)
    with pytest.raises(ModelError, match="a retrained mask_generator needs a new checkpoint"):
        adapters.install_adapter(settings, 2, good)
    assert sorted(p.name for p in (repository / "personalizer").iterdir() if p.is_dir()) == ["1", "graph"]
