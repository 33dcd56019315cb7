"""Checkpoint directories of every preset: LaVIT-7B-v2's layout, Pigeon's parts beside it.

PIGEON.md section 7.

    config.json                         PigeonConfig; LaVIT's own folder has none, then the caller gives it
    wording.json                        PromptWording (optional: the prompt's sentences, instead of config.json's)
    visual_tokenizer/                   eva_vitg_psz14, tokenizer_encoder, highres_tokenizer_decoder
    language_model/                     Hugging Face LLaMA; tokenizer.json or tokenizer.model
    highres_pixel_decoding/             unet/, vae/, scheduler/ in diffusers' layout; optional: unet_lora/, merged into the UNet
    pigeon/                             llama/ (PEFT), mask_generator/, adapter/; may lie elsewhere
    image_scorer/                       model (optional: only if config.json has a scorer)

Weights without a suffix above are .safetensors or .bin, whole or in shards with an index. We write them as float16.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from generator.pigeon.config import PigeonConfig
from generator.pigeon.decoder import CodeDecoder, HighresVQDecoder
from generator.pigeon.memory import MemoryNeed, bytes_of, check_memory
from generator.pigeon.model import PigeonModel
from generator.pigeon.one_codebook import check_codebook, codebook_mark
from generator.pigeon.personalizer import Personalizer
from generator.pigeon.placement import Network, Placement
from generator.pigeon.pretrained import load_diffusion, load_llama, load_text_tokenizer
from generator.pigeon.prompt import PromptWording
from generator.pigeon.scorer import ImageScorer
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from generator.pigeon.weights import fill, find_weights, read_shapes, read_weights, write_weights
from schemas.errors import ModelError

log = logging.getLogger(__name__)
ENCODER = "visual_tokenizer/eva_vitg_psz14"
TOKENIZER = "visual_tokenizer/tokenizer_encoder"
DECODER = "visual_tokenizer/highres_tokenizer_decoder"
LANGUAGE = "language_model"
PIXELS = "highres_pixel_decoding"
PIGEON = "pigeon"
LORA = "llama"
MASKS = "mask_generator"
ADAPTER = "adapter"
SCORER = "image_scorer/model"
WORDING = "wording.json"

WEIGHT_FILES = {
    ENCODER: "the image encoder",
    TOKENIZER: "keep decision, merger and quantizer",
    DECODER: "the token decoder",
    LANGUAGE: "the language model, model.safetensors or pytorch_model.bin",
    f"{PIXELS}/unet": "the UNet, diffusion_pytorch_model",
    f"{PIXELS}/vae": "the VAE, diffusion_pytorch_model",
    f"{PIGEON}/{LORA}": "LoRA (PEFT's adapter_model)",
    f"{PIGEON}/{MASKS}": "the mask generator",
    f"{PIGEON}/{ADAPTER}": "the reference adapter",
    SCORER: "the image scorer",
}
NETWORKS: dict[str, tuple[Network, bool]] = {
    ENCODER: ("tokenizer", True),
    TOKENIZER: ("tokenizer", True),
    DECODER: ("language", True),
    LANGUAGE: ("language", True),
    f"{PIXELS}/unet": ("diffusion", True),
    f"{PIXELS}/vae": ("diffusion", True),
    f"{PIGEON}/{LORA}": ("language", False),
    f"{PIGEON}/{MASKS}": ("language", False),
    f"{PIGEON}/{ADAPTER}": ("language", False),
    SCORER: ("scorer", True),
}
"""The network that each file's weights are part of, and whether the file is always in the checkpoint's folder."""
HALVED = {ENCODER: "", TOKENIZER: "causal_encoder.", DECODER: "", LANGUAGE: "", f"{PIXELS}/unet": ""}
"""Beginning of the names of the weights that have the placement's precision; the others are float32."""
PLAIN_FILES = {
    f"{LANGUAGE}/config.json": "the language model's configuration",
    f"{PIXELS}/unet/config.json": "the UNet, diffusers' layout",
    f"{PIXELS}/vae/config.json": "the VAE, diffusers' layout",
    f"{PIXELS}/scheduler/scheduler_config.json": "the noise schedule",
}
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def missing_files(folder: Path, config: PigeonConfig, pigeon: Path | None = None) -> list[str]:
    """What a checkpoint folder lacks, one line each; empty when complete."""
    lines = [f"{name} ({what})" for name, what in PLAIN_FILES.items() if not (folder / name).is_file()]
    if not any((folder / LANGUAGE / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        lines.append(f"{LANGUAGE}/tokenizer.json or tokenizer.model (its text tokenizer)")
    for name, what in WEIGHT_FILES.items():
        if name == SCORER and config.scorer is None:
            continue
        path = folder / name
        if pigeon is not None and name.startswith(f"{PIGEON}/"):
            path = pigeon / name.removeprefix(f"{PIGEON}/")
        if find_weights(path) is None:
            shown = name if path == folder / name else str(path)
            lines.append(f"{shown}{'/*' if path.is_dir() else ''}.safetensors or .bin ({what})")
    return lines


def load_model(
    folder: Path,
    config: PigeonConfig | None = None,
    *,
    pigeon: Path | None = None,
    placement: Placement | None = None,
) -> PigeonModel:
    """A whole checkpoint in evaluation mode; float32 on the CPU if `placement` does not say otherwise.

    config: what the checkpoint must be (`presets.preset("lavit-7b")`). A folder's own config.json is what is built, and
    must bear the same name; LaVIT's published folder has none, and is built as this says.
    pigeon: the folder of Pigeon's parts when it is not `folder/pigeon`.

    Raises:
        ModelError: no such folder, a file is missing (all are named), damaged, or does not fit config.json.
        InputError: a device that this machine does not have.
    """
    placement = placement or Placement()
    config = read_config(folder, config)
    missing = missing_files(folder, config, pigeon)
    if missing:
        raise ModelError(f"{folder}: {len(missing)} files are missing: {'; '.join(missing)}")

    for device, need in weights_needed(folder, config, pigeon, placement).items():
        log.info("%s: weights on %s %s", folder, device, need)
        check_memory(need, device, "give another compute.device, or compute.precision bf16, which halves most of it")
    dtype = placement.dtype
    tokenizer = _empty(lambda: DynamicVisualTokenizer(config.tokenizer), placement.device("tokenizer"))
    tokenizer.quantize.usage.fill_(1.0)  # the only tensor of it that no file holds
    for half in (tokenizer.encoder, tokenizer.causal_encoder):
        half.to(dtype)
    _fill_from(folder / ENCODER, tokenizer.encoder)
    _fill_from(folder / TOKENIZER, tokenizer, skip=("encoder.",))
    device = placement.device("language")
    decoder = _empty(lambda: HighresVQDecoder(config.decoder, config.tokenizer.code_dim), device).to(dtype)
    _fill_from(folder / DECODER, decoder)
    codebook = tokenizer.quantize.embedding.weight
    check_codebook(folder, codebook, TOKENIZER, (ENCODER, DECODER), (LANGUAGE, f"{PIXELS}/unet"))
    code_decoder = CodeDecoder(decoder, codebook.to(device))
    personalizer = Personalizer(config, load_llama(folder / LANGUAGE, config, placement), code_decoder)
    for part in (personalizer.mask_generator, personalizer.adapter):
        part.to(device)
    load_adapter(personalizer, pigeon or folder / PIGEON)
    scorer = None
    if config.scorer is not None:
        scorer = ImageScorer(config.scorer).to(placement.device("scorer"))
        _fill_from(folder / SCORER, scorer)
    return PigeonModel(
        config=config,
        tokenizer=tokenizer,
        code_decoder=code_decoder,
        personalizer=personalizer,
        diffusion=load_diffusion(folder / PIXELS, config, placement),
        scorer=scorer,
        text_tokenizer=load_text_tokenizer(folder / LANGUAGE, config),
    ).eval()


def weights_needed(
    folder: Path,
    config: PigeonConfig | None = None,
    pigeon: Path | None = None,
    placement: Placement | None = None,
) -> dict[torch.device, MemoryNeed]:
    """Bytes of a whole checkpoint's weights by device, from the files' headers.

    The arguments are those of `load_model`.

    Raises:
        ModelError, InputError: as `load_model`.
    """
    placement = placement or Placement()
    half = placement.dtype.itemsize
    found: dict[torch.device, MemoryNeed] = {}
    for name, (network, kept) in NETWORKS.items():
        stem = folder / name if pigeon is None or kept else pigeon / name.removeprefix(f"{PIGEON}/")
        path = find_weights(stem)
        if path is None:
            continue
        shapes, halved = read_shapes(path), HALVED.get(name)
        narrow = [shape for weight, shape in shapes.items() if halved is not None and weight.startswith(halved)]
        wide = [shape for weight, shape in shapes.items() if halved is None or not weight.startswith(halved)]
        need = MemoryNeed({network: bytes_of(narrow, half) + bytes_of(wide, 4)})
        device = placement.device(network)
        found[device] = found[device] + need if device in found else need
    return found


def read_config(folder: Path, wanted: PigeonConfig | None = None) -> PigeonConfig:
    """A checkpoint's configuration; `wanted` as `config` of `load_model`.

    Raises:
        ModelError: there is none, or another one than `wanted`.
    """
    path = folder / "config.json"
    if (folder / "model_index.json").is_file():
        raise ModelError(
            f"{folder}: is a pipeline of diffusers, which can draw nights (models.preset = pipeline) and not be trained or "
            "evaluated; give the folder of a Pigeon checkpoint"
        )
    if path.is_file():
        try:
            config = PigeonConfig.from_json(path)
        except ValueError as error:
            raise ModelError(str(error)) from error
        if wanted is not None and wanted.name != config.name:
            raise ModelError(f"{path}: this checkpoint is a {config.name}, asked for was {wanted.name}")
    elif wanted is not None and folder.is_dir():
        config = wanted
    else:
        raise ModelError(
            f"{folder}: no config.json there; give the folder of a Pigeon checkpoint "
            "(for LaVIT's published folder, write generator.pigeon.presets.preset('lavit-7b').to_json() to it)"
        )
    path = folder / WORDING
    if not path.is_file():
        return config
    try:
        wording = TypeAdapter(PromptWording).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{path}: {'.'.join(map(str, first['loc'])) or 'wording'}: {first['msg']}") from error
    return config.model_copy(update={"wording": wording})


def _empty(make: Callable[[], AnyModule], device: torch.device) -> AnyModule:
    """A module whose weights are yet to be read.

    Drawing a billion of them at random first takes longer than reading them.
    """
    with torch.device("meta"):
        module = make()
    return module.to_empty(device=device)


def save_model(model: PigeonModel, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes a whole checkpoint; existing files are overwritten. Leaves the model as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(model.config.to_json(), encoding="utf-8")
    state = model.tokenizer.state_dict()
    inner = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    mark = codebook_mark(state["quantize.embedding.weight"].to(dtype))
    write_weights(model.tokenizer.encoder.state_dict(), folder / f"{ENCODER}.safetensors", dtype, mark)
    write_weights(inner, folder / f"{TOKENIZER}.safetensors", dtype, mark)
    write_weights(model.code_decoder.decoder.state_dict(), folder / f"{DECODER}.safetensors", dtype, mark)
    _save_llama(model.personalizer.llama, folder / LANGUAGE, dtype, mark)
    model.text_tokenizer.save(str(folder / LANGUAGE / "tokenizer.json"))
    save_adapter(model.personalizer, folder / PIGEON, dtype)
    for name, network in (("unet", model.diffusion.unet), ("vae", model.diffusion.vae)):
        path = folder / PIXELS / name / "diffusion_pytorch_model.safetensors"
        write_weights(network.state_dict(), path, dtype, mark if name == "unet" else None)
        config = json.loads(network.to_json_string())
        config.pop("_name_or_path", None)  # where this one was loaded from is nobody's business
        _write_json(folder / PIXELS / name / "config.json", config)
    schedule = {"_class_name": "DDIMScheduler", **model.diffusion.scheduler}
    _write_json(folder / PIXELS / "scheduler" / "scheduler_config.json", schedule)
    if model.scorer is not None:
        write_weights(model.scorer.state_dict(), folder / f"{SCORER}.safetensors", dtype)


def save_adapter(personalizer: Personalizer, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """What training changes and a night swaps: folder/{llama,mask_generator,adapter}."""
    llama = personalizer.llama
    write_weights(get_peft_model_state_dict(llama), folder / LORA / "adapter_model.safetensors", dtype)
    adapter_config = llama.peft_config["default"].to_dict()
    adapter_config["target_modules"] = sorted(adapter_config["target_modules"])
    adapter_config["inference_mode"] = True
    adapter_config["base_model_name_or_path"] = None
    _write_json(folder / LORA / "adapter_config.json", adapter_config)
    write_weights(personalizer.mask_generator.state_dict(), folder / MASKS / "model.safetensors", dtype)
    write_weights(personalizer.adapter.state_dict(), folder / ADAPTER / "model.safetensors", dtype)


def load_adapter(personalizer: Personalizer, folder: Path) -> None:
    """Puts folder/{llama,mask_generator,adapter} into a personalizer.

    Raises:
        ModelError: a file is missing, damaged, or of another rank or width.
    """
    path = find_weights(folder / LORA)
    if path is None:
        raise ModelError(f"{folder / LORA}: no adapter_model.safetensors or .bin there")
    language = personalizer.config.language
    config_path = folder / LORA / "adapter_config.json"
    if config_path.is_file():
        found = json.loads(config_path.read_text(encoding="utf-8"))
        for field, wanted in (("r", language.lora_rank), ("lora_alpha", language.lora_alpha)):
            if field in found and found[field] != wanted:
                raise ModelError(f"{config_path}: {field} is {found[field]}, config.json asks for {wanted}")
    state = read_weights(path)
    own = get_peft_model_state_dict(personalizer.llama)
    extra = sorted(name for name in state if "lora_" in name and name not in own)
    if extra:
        raise ModelError(
            f"{path}: {extra[0]} has no place here; config.json puts LoRA on {', '.join(language.lora_targets)} "
            f"of {language.depth} layers"
        )
    for name, value in own.items():
        if name not in state:
            raise ModelError(f"{path}: {name} {tuple(value.shape)} is missing; is this adapter for this checkpoint?")
        if state[name].shape != value.shape:
            raise ModelError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, config.json asks for {tuple(value.shape)}"
            )
    set_peft_model_state_dict(personalizer.llama, {name: state[name] for name in own})
    _fill_from(folder / MASKS, personalizer.mask_generator)
    _fill_from(folder / ADAPTER, personalizer.adapter)


def _fill_from(stem: Path, module: torch.nn.Module, *, skip: tuple[str, ...] = ()) -> None:
    path = find_weights(stem)
    if path is None:
        raise ModelError(f"{stem}: no such weights; expected {stem.name}.safetensors or .bin")
    fill(module, read_weights(path), path, skip=skip)


def _save_llama(llama: PeftModel, folder: Path, dtype: torch.dtype, mark: str) -> None:
    base: Any = llama.get_base_model()
    state: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): value for name, value in base.state_dict().items() if ".lora_" not in name
    }
    if base.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    write_weights(state, folder / "model.safetensors", dtype, mark)
    base.config.save_pretrained(folder)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, default=str, sort_keys=True) + "\n", encoding="utf-8")
