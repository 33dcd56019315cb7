"""The published layout (no config.json of ours, Pigeon's parts beside it), small and random.

Every form of file, every precision.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from generator.pigeon import pretrained
from generator.pigeon.checkpoint import load_model
from generator.pigeon.config import PigeonConfig
from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.pipeline import Item, PigeonPipeline, Task, TaskResult
from generator.pigeon.placement import Placement
from generator.pigeon.presets import SDXL_SCHEDULER, tiny
from schemas.errors import InputError, ModelError

torch.set_num_threads(1)
CHECKOUT = Path(__file__).parents[2]
PIECES = [("▁", 1), ("a", 1), ("b", 1), ("c", 1), ("ab", 1), ("▁ab", 1), ("▁a", 1), ("ca", 1), ("abc", 1)]


def small(name: str = "lavit-7b") -> PigeonConfig:
    """Shaped as `lavit-7b`: no scorer, the network's UNet sees latents only, SDXL's schedule."""
    fields = tiny().model_dump(mode="json")
    fields |= {"name": name, "scorer": None}
    fields["diffusion"]["unet"]["in_channels"] = 4
    fields["diffusion"]["scheduler"] = SDXL_SCHEDULER
    fields["decoder"]["code_table"] = None
    return PigeonConfig.model_validate(fields)


def sentencepiece_file() -> bytes:
    proto: Any = sentencepiece
    model = proto.ModelProto()
    for piece, kind in [("<unk>", 2), ("<s>", 3), ("</s>", 3), *PIECES]:
        model.pieces.add(piece=piece, type=kind, score=-float(len(model.pieces)))
    model.trainer_spec.model_type = 2
    return bytes(model.SerializeToString())


def store(state: dict[str, Tensor], stem: Path, suffix: str, shards: int = 1) -> None:
    """One file, or shards with their index, in the form that Hugging Face's libraries write."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().clone().contiguous() for name, value in state.items()}
    names = list(state)
    where: dict[str, str] = {}
    for number in range(shards):
        part = {name: state[name] for name in names[number::shards]}
        file = stem.name + ("" if shards == 1 else f"-{number + 1:05}-of-{shards:05}") + suffix
        if suffix == ".bin":
            torch.save(part, stem.parent / file)
        else:
            save_file(part, stem.parent / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (stem.parent / f"{stem.name}{suffix}.index.json").write_text(json.dumps(index))


def publish(model: PigeonModel, folder: Path, suffix: str = ".bin", shards: int = 1) -> Path:
    """-> folder/lavit and folder/pigeon."""
    lavit, pigeon = folder / "lavit", folder / "pigeon"
    tokenizer = model.tokenizer.state_dict()
    unread = {"norm.weight": torch.zeros(3), "head.weight": torch.zeros(3)}
    visual = lavit / "visual_tokenizer"
    store({**model.tokenizer.encoder.state_dict(), **unread}, visual / "eva_vitg_psz14", suffix, shards)
    inner = {name: value for name, value in tokenizer.items() if not name.startswith("encoder.")}
    store({**inner, "vit_proj.weight": torch.zeros(2, 2)}, visual / "tokenizer_encoder", suffix)
    store(model.code_decoder.decoder.state_dict(), visual / "highres_tokenizer_decoder", suffix)
    base: Any = model.personalizer.llama.get_base_model()
    weights = {n.replace(".base_layer.", "."): v for n, v in base.state_dict().items() if ".lora_" not in n}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # as transformers 4 left it in the file
    language = lavit / "language_model"
    store(weights, language / ("pytorch_model" if suffix == ".bin" else "model"), suffix, shards)
    base.config.save_pretrained(language)
    (language / "tokenizer.model").write_bytes(sentencepiece_file())
    for name, network in (("unet", model.diffusion.unet), ("vae", model.diffusion.vae)):
        network.save_config(lavit / "highres_pixel_decoding" / name)
        stem = lavit / "highres_pixel_decoding" / name / "diffusion_pytorch_model"
        store(network.state_dict(), stem, suffix, shards if name == "unet" else 1)
    scheduler: Any = DDIMScheduler(**SDXL_SCHEDULER)
    scheduler.save_pretrained(lavit / "highres_pixel_decoding" / "scheduler")
    model.personalizer.llama.save_pretrained(str(pigeon / "llama"))
    store(model.personalizer.mask_generator.state_dict(), pigeon / "mask_generator" / "pytorch_model", suffix, shards)
    torch.save({"state": 1}, pigeon / "mask_generator" / "optimizer.bin")
    store(model.personalizer.adapter.state_dict(), pigeon / "adapter" / "adapter", suffix)
    return lavit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PigeonModel:
    torch.manual_seed(11)
    language = tmp_path_factory.mktemp("language")
    (language / "tokenizer.model").write_bytes(sentencepiece_file())
    made = new_model(small(), pretrained.load_text_tokenizer(language, small()))
    with torch.no_grad():
        for parameter in (*made.tokenizer.parameters(), *made.personalizer.parameters()):
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return made.eval()


@pytest.fixture(scope="module")
def published(model: PigeonModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(model, tmp_path_factory.mktemp("published"), ".bin", 2)


@pytest.fixture
def lavit(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published.parent, tmp_path / "copy") / "lavit"


def load(lavit: Path, **options: Any) -> PigeonModel:
    return load_model(lavit, small(), pigeon=lavit.parent / "pigeon", **options)


def drawn(model: PigeonModel) -> TaskResult:
    def image(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    task = Task([Item("ab", image(1)), Item("c", image(2))], Item("ab c", image(3), "b"), 7, (0.0, 0.5))
    (result,) = PigeonPipeline(model)([task])
    return result


@pytest.mark.parametrize(("suffix", "shards"), [(".bin", 1), (".bin", 2), (".safetensors", 1), (".safetensors", 3)])
def test_every_form_of_file_gives_the_same_model(model: PigeonModel, tmp_path: Path, suffix: str, shards: int) -> None:
    loaded = load(publish(model, tmp_path, suffix, shards))
    for ours, theirs in zip(loaded.networks(), model.networks(), strict=True):
        expected = theirs.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    ours, theirs = drawn(loaded), drawn(model)
    assert [c.codes for c in ours.candidates] == [c.codes for c in theirs.candidates]
    assert all((a.image == b.image).all() for a, b in zip(ours.candidates, theirs.candidates, strict=True))
    assert loaded.diffusion.scheduler["timestep_spacing"] == "leading"
    assert loaded.personalizer.llama.get_base_model().config._attn_implementation == "sdpa"


def test_sentencepiece_text_ids(published: Path) -> None:
    """The ids are those that the SentencePiece library itself (0.2.3) gives for this file."""
    tokenizer = pretrained.load_text_tokenizer(published / "language_model", small())
    texts = ["ab", "abc", "ca b", "a", "bab"]
    assert [tokenizer.encode(text, add_special_tokens=False).ids for text in texts] == SENTENCEPIECE_IDS


SENTENCEPIECE_IDS = [[8], [8, 6], [3, 10, 3, 5], [9], [3, 5, 7]]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The difference's share of the whole."""
    return float((ours.float() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_draws_and_keeps_what_decides_in_float32(
    model: PigeonModel, published: Path, precision: Any
) -> None:
    loaded = load(published, placement=Placement(precision))
    dtype = Placement(precision).dtype
    base = loaded.personalizer.llama.get_base_model()
    for half in (loaded.tokenizer.encoder, loaded.tokenizer.causal_encoder, loaded.code_decoder, loaded.diffusion.unet):
        assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert base.lm_head.weight.dtype == dtype
    full = (loaded.tokenizer.token_predictor, loaded.tokenizer.quantize, loaded.personalizer.mask_generator)
    for whole in (*full, loaded.personalizer.adapter, loaded.diffusion.vae):
        assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    ids = torch.arange(30)[None]
    expected = model.personalizer.llama.get_base_model()(ids).logits
    assert apart(base(ids).logits, expected) < (0.04 if precision == "bf16" else 0.01)
    result = drawn(loaded)
    assert all(candidate.image.shape == (32, 32, 3) for candidate in result.candidates)
    assert all(2 <= len(candidate.codes) <= 9 for candidate in result.candidates)


def test_eight_bit_without_torchao_says_what_to_install(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"torchao is not installed; pip install 'pigeon-posters\[lavit\]'"):
        load(published, placement=Placement("bf16", eight_bit=True))


def test_the_command_does_not_repeat_what_torchao_says_of_kernels_for_other_machines() -> None:
    code = "from generator import cli; cli._set_up_logging(debug=False); import generator.pigeon.checkpoint"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.filterwarnings("default")  # torchao's own
def test_eight_bit_is_near_and_small(model: PigeonModel, published: Path) -> None:
    loaded = load(published, placement=Placement("bf16", eight_bit=True))
    weight = loaded.personalizer.step().q_projs[0].weight
    assert type(weight).__name__ != "Parameter"
    ids = torch.arange(30)[None]
    with torch.no_grad():
        logits = loaded.personalizer.llama.get_base_model()(ids).logits
        expected = model.personalizer.llama.get_base_model()(ids).logits
    assert apart(logits, expected) < 0.08
    assert all(2 <= len(candidate.codes) <= 9 for candidate in drawn(loaded).candidates)


def test_devices_are_per_network(published: Path) -> None:
    loaded = load(published, placement=Placement(devices={"language": "cpu", "diffusion": "cpu"}))
    assert {parameter.device.type for network in loaded.networks() for parameter in network.parameters()} == {"cpu"}
    with pytest.raises(InputError, match=r"devices: 'abacus' for the tokenizer"):
        load(published, placement=Placement(devices={"tokenizer": "abacus"}))
    with pytest.raises(InputError, match=r"unknown network 'unet'; one of tokenizer, language, diffusion, scorer"):
        Placement(devices={"unet": "cpu"})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"precision: 'int4' must be one of fp32, bf16, fp16"):
        Placement("int4")  # type: ignore[arg-type]


def test_wording_of_the_folder_is_used(lavit: Path) -> None:
    wording = replace(small().wording, instruction="abc ")
    (lavit / "wording.json").write_text(json.dumps(vars(wording)))
    assert load(lavit).config.wording == wording
    assert load(lavit).config.ids == small().ids
    (lavit / "wording.json").write_text(json.dumps({"instruction": "a", "reference": "b", "response": "<img>"}))
    with pytest.raises(ModelError, match=r"wording\.json: .*reference must hold <emb> exactly once"):
        load(lavit)


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def reshape(path: Path, name: str) -> None:
    state = torch.load(path, weights_only=True)
    state[name] = torch.zeros(3, 5)
    torch.save(state, path)


def shard_of(folder: Path, name: str) -> Path:
    (index,) = folder.glob("*.index.json")
    return folder / json.loads(index.read_text())["weight_map"][name]


class Exploit:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def poison(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Exploit()}))


def extra_lora(lavit: Path) -> None:
    path = lavit.parent / "pigeon" / "llama" / "adapter_model.safetensors"
    state = load_file(path)
    save_file({**state, "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight": torch.zeros(8, 32)}, path)


GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f.parent / "pigeon"), r"3 files are missing: .*pigeon/llama\.safetensors or \.bin \(LoRA"),
        (lambda f: (f / "language_model/tokenizer.model").unlink(), r"language_model/tokenizer\.json or tokenizer\.model"),
        (lambda f: (f / "language_model/tokenizer.model").write_bytes(b""), r"tokenizer\.model: not a tokenizer"),
        (
            lambda f: (f / "language_model/pytorch_model.bin.index.json").unlink(),
            r"language_model: 2 weight files .* and no index",
        ),
        (lambda f: shard_of(f / "language_model", GATE).unlink(), r"1 of 2 shards are missing, the first is pytorch_model-0"),
        (
            lambda f: (f / "language_model/pytorch_model.bin.index.json").write_text("[]"),
            r"pytorch_model\.bin\.index\.json: not an index of shards",
        ),
        (
            lambda f: reshape(shard_of(f / "language_model", GATE), GATE),
            r"gate_proj\.weight has shape \(3, 5\), language_model/config\.json asks for \(48, 32\)",
        ),
        (
            lambda f: edit(f / "language_model/config.json", num_hidden_layers=3),
            r"num_hidden_layers is 3, preset lavit-7b asks for 2",
        ),
        (lambda f: poison(shard_of(f / "language_model", GATE)), r"cannot be read as weights"),
        (
            lambda f: reshape(f / "highres_pixel_decoding/vae/diffusion_pytorch_model.bin", "decoder.conv_in.bias"),
            r"decoder\.conv_in\.bias has shape \(3, 5\), vae/config\.json asks for \(8,\)",
        ),
        (lambda f: poison(f / "highres_pixel_decoding/vae/diffusion_pytorch_model.bin"), r"cannot be read as weights"),
        (
            lambda f: edit(f / "highres_pixel_decoding/unet/config.json", cross_attention_dim=99),
            r"cross_attention_dim is 99, preset lavit-7b asks for 16 \(the token decoder's prompt_embeds\)",
        ),
        (
            lambda f: edit(f / "highres_pixel_decoding/scheduler/scheduler_config.json", beta_schedule="steps"),
            r"scheduler: scheduler beta_schedule: 'steps'|scheduler: steps",
        ),
        (
            lambda f: (f / "highres_pixel_decoding/unet").rename(f / "elsewhere"),
            r"2 files are missing: highres_pixel_decoding/unet/config\.json",
        ),
        (
            lambda f: reshape(f / "visual_tokenizer/tokenizer_encoder.bin", "quantize.embedding.weight"),
            r"quantize\.embedding\.weight has shape \(3, 5\), config\.json asks for \(32, 6\)",
        ),
        (extra_lora, r"k_proj\.lora_A\.weight has no place here; config\.json puts LoRA on q_proj, v_proj of 2 layers"),
        (
            lambda f: (f / "config.json").write_text(small("nano").to_json()),
            r"this checkpoint is a nano, asked for was lavit-7b",
        ),
    ],
)  # fmt: skip
def test_damage_is_named(
    lavit: Path, damage: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(lavit)
    with pytest.raises(ModelError, match=message) as caught:
        load(lavit)
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_a_folder_without_configuration_needs_a_preset(published: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json there.*presets\.preset\('lavit-7b'\)"):
        load_model(published)
    with pytest.raises(ModelError, match=r"no config\.json there"):
        load_model(published / "nowhere", small())
