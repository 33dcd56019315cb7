"""Checkpoints: what is saved comes back; what is missing or misshapen is named."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.checkpoint import load_adapter, load_model, save_adapter, save_model
from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.presets import tiny
from schemas.errors import ModelError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> PigeonModel:
    torch.manual_seed(3)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3"))
    made = new_model(tiny(), words)
    with torch.no_grad():
        for network in made.networks():
            for parameter in network.parameters():
                parameter.copy_(torch.randn_like(parameter).mul(0.1).half())
    return made.eval()


@pytest.fixture(scope="module")
def saved(model: PigeonModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(model, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoint")


def same(left: PigeonModel, right: PigeonModel) -> None:
    assert left.config == right.config
    for ours, theirs in zip(left.networks(), right.networks(), strict=True):
        expected = theirs.state_dict()
        for name, value in ours.state_dict().items():
            assert value.dtype == expected[name].dtype
            # Weights are half-precision numbers here; the sinusoid table is not.
            torch.testing.assert_close(value, expected[name], rtol=0, atol=5e-4 if name.endswith("pe") else 0)


def test_what_is_saved_comes_back(model: PigeonModel, saved: Path) -> None:
    loaded = load_model(saved)
    same(loaded, model)
    assert loaded.code_decoder.codebook.data_ptr() == loaded.tokenizer.quantize.embedding.weight.data_ptr()
    assert all(load_file(path)[name].dtype == torch.float16
               for path in saved.rglob("*.safetensors") for name in list(load_file(path))[:1])  # fmt: skip


def test_a_checkpoint_says_nothing_of_where_its_weights_were_loaded_from(saved: Path, tmp_path: Path) -> None:
    save_model(load_model(saved), tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(saved) not in path.read_text(), path.name


def test_bin_files_load_too(model: PigeonModel, folder: Path) -> None:
    for path in (folder / "visual_tokenizer").glob("*.safetensors"):
        torch.save({"model": load_file(path)}, path.with_suffix(".bin"))
        path.unlink()
    path = folder / "pigeon" / "adapter" / "model.safetensors"
    torch.save({**load_file(path), "unread.weight": torch.zeros(1)}, path.with_name("anything.bin"))
    path.unlink()
    same(load_model(folder), model)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shapes and other weights."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("another")
    save_model(new_model(tiny(), Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3"))), folder)
    return folder


def unmark(folder: Path) -> None:
    """As a checkpoint of before there were marks."""
    for path in folder.rglob("*.safetensors"):
        save_file(load_file(path), path)


MIXED = {
    "visual_tokenizer/highres_tokenizer_decoder": "visual_tokenizer/highres_tokenizer_decoder",
    "visual_tokenizer/eva_vitg_psz14": "visual_tokenizer/eva_vitg_psz14",
    "visual_tokenizer/tokenizer_encoder": "visual_tokenizer/eva_vitg_psz14, visual_tokenizer/highres_tokenizer_decoder",
    "language_model/model": "language_model",
    "highres_pixel_decoding/unet/diffusion_pytorch_model": "highres_pixel_decoding/unet",
}


@pytest.mark.parametrize("part", MIXED)
def test_a_part_of_another_checkpoint_is_refused_by_name(folder: Path, another: Path, part: str) -> None:
    """INPUTS 28 (LaVIT#6): alike in every shape, and what both draw together is noise."""
    shutil.copyfile(another / f"{part}.safetensors", folder / f"{part}.safetensors")
    with pytest.raises(
        ModelError, match=f": {MIXED[part]}.*: not made with the codebook in visual_tokenizer/tokenizer_encoder"
    ):
        load_model(folder)


@pytest.mark.parametrize("part", list(MIXED)[:3])
@pytest.mark.parametrize("older", ["folder", "another"])
def test_a_part_of_a_checkpoint_without_marks_is_refused_in_one_with_marks_and_the_other_way_round(
    folder: Path, another: Path, tmp_path: Path, part: str, older: str
) -> None:
    """INPUTS 28: the committed nano is from before there were marks."""
    another = shutil.copytree(another, tmp_path / "another")
    unmark(folder if older == "folder" else another)
    shutil.copyfile(another / f"{part}.safetensors", folder / f"{part}.safetensors")
    with pytest.raises(ModelError, match="parts of another checkpoint"):
        load_model(folder)


def test_a_checkpoint_without_marks_is_one(folder: Path, model: PigeonModel) -> None:
    """INPUTS 28: what others publish bears none."""
    unmark(folder)
    same(load_model(folder), model)


def test_an_adapter_alone_can_be_swapped(model: PigeonModel, saved: Path, tmp_path: Path) -> None:
    other = load_model(saved)
    with torch.no_grad():
        for parameter in other.personalizer.adapter.parameters():
            parameter.add_(1)
        for name, parameter in other.personalizer.llama.named_parameters():
            if "lora_" in name:
                parameter.add_(1)
    save_adapter(other.personalizer, tmp_path)
    champion = load_model(saved)
    load_adapter(champion.personalizer, tmp_path)
    torch.testing.assert_close(champion.personalizer.lora().b, other.personalizer.lora().b, rtol=0, atol=1e-3)
    assert (champion.personalizer.lora().a - model.personalizer.lora().a).abs().min() > 0.5


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def drop_weight(path: Path) -> None:
    state = load_file(path)
    state.popitem()
    save_file(state, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json there"),
        (
            lambda f: shutil.rmtree(f / "visual_tokenizer"),
            r"3 files are missing: visual_tokenizer/eva_vitg_psz14\.safetensors or \.bin \(the image encoder\)",
        ),
        (lambda f: (f / "language_model" / "tokenizer.json").unlink(), "its text tokenizer"),
        (lambda f: (f / "language_model" / "model.safetensors").unlink(), "model.safetensors"),
        (
            lambda f: drop_weight(f / "language_model" / "model.safetensors"),
            "language_model: 1 weights are missing, the first is",
        ),
        (lambda f: drop_weight(f / "image_scorer" / "model.safetensors"), "weights are missing, the first is"),
        (
            lambda f: drop_weight(f / "highres_pixel_decoding" / "vae" / "diffusion_pytorch_model.safetensors"),
            "vae: 1 weights are missing",
        ),
        (
            lambda f: edit_json(f / "config.json", lambda c: c["decoder"].update(queries=6)),
            r"query_embed has shape \(1, 5, 20\), config.json asks for \(1, 6, 20\)",
        ),
        (lambda f: edit_json(f / "config.json", lambda c: c.update(colour=1)), "colour: Extra inputs are not permitted"),
        (
            lambda f: edit_json(f / "pigeon" / "llama" / "adapter_config.json", lambda c: c.update(r=4)),
            "r is 4, config.json asks for 8",
        ),
        (
            lambda f: (f / "visual_tokenizer" / "eva_vitg_psz14.safetensors").write_bytes(b"not weights"),
            "eva_vitg_psz14.safetensors: cannot be read as weights",
        ),
    ],
)  # fmt: skip
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


class Exploit:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_a_pickle_with_code_is_refused_and_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "visual_tokenizer" / "eva_vitg_psz14.safetensors"
    path.unlink()
    with path.with_suffix(".bin").open("wb") as file:
        pickle.dump({"weight": Exploit()}, file)
    with pytest.raises(ModelError, match=r"eva_vitg_psz14\.bin: cannot be read as weights"):
        load_model(folder)
    assert "executed" not in capsys.readouterr().out
