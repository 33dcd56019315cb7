"""Checkpoint directories: LaVIT-7B-v2's layout with Pigeon's parts beside it (PIGEON.md section 7), for every preset.

    config.json                         PigeonConfig
    visual_tokenizer/                   eva_vitg_psz14, tokenizer_encoder, highres_tokenizer_decoder
    language_model/                     Hugging Face LLaMA and tokenizer.json
    highres_pixel_decoding/             unet/, vae/, scheduler/ in diffusers' layout
    pigeon/                             llama/ (PEFT), mask_generator/, adapter/
    image_scorer/                       model (optional: only if config.json has a scorer)

Weights without a suffix above are .safetensors or .bin. They are stored as float16 and loaded as float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from generator.pigeon.config import PigeonConfig
from generator.pigeon.diffusion import Diffusion
from generator.pigeon.model import PigeonModel, new_code_decoder
from generator.pigeon.personalizer import Personalizer
from generator.pigeon.scorer import ImageScorer
from generator.pigeon.tokenizer import DynamicVisualTokenizer
from generator.pigeon.weights import fill, find_weights, read_weights, write_weights
from schemas.errors import ModelError

ENCODER = "visual_tokenizer/eva_vitg_psz14"
TOKENIZER = "visual_tokenizer/tokenizer_encoder"
DECODER = "visual_tokenizer/highres_tokenizer_decoder"
LANGUAGE = "language_model"
PIXELS = "highres_pixel_decoding"
LORA = "llama"
MASKS = "mask_generator"
ADAPTER = "adapter"
SCORER = "image_scorer/model"

WEIGHT_FILES = {
    ENCODER: "the image encoder",
    TOKENIZER: "keep decision, merger and quantizer",
    DECODER: "the token decoder",
    f"pigeon/{LORA}": "LoRA (PEFT's adapter_model)",
    f"pigeon/{MASKS}": "the mask generator",
    f"pigeon/{ADAPTER}": "the reference adapter",
    SCORER: "the image scorer",
}
PLAIN_FILES = {
    f"{LANGUAGE}/config.json": "the language model's configuration",
    f"{LANGUAGE}/tokenizer.json": "its text tokenizer (tokenizers' JSON form)",
    f"{PIXELS}/unet/config.json": "the UNet, diffusers' layout",
    f"{PIXELS}/vae/config.json": "the VAE, diffusers' layout",
    f"{PIXELS}/scheduler/scheduler_config.json": "the noise schedule",
}


def missing_files(folder: Path, config: PigeonConfig) -> list[str]:
    """What a checkpoint folder lacks, one line each; empty when complete."""
    lines = [f"{name} ({what})" for name, what in PLAIN_FILES.items() if not (folder / name).is_file()]
    for name, what in WEIGHT_FILES.items():
        if name == SCORER and config.scorer is None:
            continue
        if find_weights(folder / name) is None:
            lines.append(f"{name}{'/*' if (folder / name).is_dir() else ''}.safetensors or .bin ({what})")
    return lines


def load_model(folder: Path) -> PigeonModel:
    """A whole checkpoint, float32 on the CPU, in evaluation mode.

    Raises:
        ModelError: no such folder, a file is missing (all are named), damaged, or does not fit config.json.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json there; give the folder of a Pigeon checkpoint")
    try:
        config = PigeonConfig.from_json(folder / "config.json")
    except ValueError as error:
        raise ModelError(str(error)) from error
    missing = missing_files(folder, config)
    if missing:
        raise ModelError(f"{folder}: {len(missing)} files are missing: {'; '.join(missing)}")

    tokenizer = DynamicVisualTokenizer(config.tokenizer)
    _fill_from(folder / ENCODER, tokenizer.encoder)
    _fill_from(folder / TOKENIZER, tokenizer, skip=("encoder.",))
    code_decoder = new_code_decoder(config, tokenizer)
    _fill_from(folder / DECODER, code_decoder.decoder)
    personalizer = Personalizer(config, _load_llama(folder / LANGUAGE, config), code_decoder)
    load_adapter(personalizer, folder / "pigeon")
    scorer = None
    if config.scorer is not None:
        scorer = ImageScorer(config.scorer)
        _fill_from(folder / SCORER, scorer)
    return PigeonModel(
        config=config,
        tokenizer=tokenizer,
        code_decoder=code_decoder,
        personalizer=personalizer,
        diffusion=_load_diffusion(folder / PIXELS, config),
        scorer=scorer,
        text_tokenizer=_load_text_tokenizer(folder / LANGUAGE / "tokenizer.json", config),
    ).eval()


def save_model(model: PigeonModel, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes a whole checkpoint; existing files are overwritten. Leaves the model as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(model.config.to_json(), encoding="utf-8")
    state = model.tokenizer.state_dict()
    inner = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    write_weights(model.tokenizer.encoder.state_dict(), folder / f"{ENCODER}.safetensors", dtype)
    write_weights(inner, folder / f"{TOKENIZER}.safetensors", dtype)
    write_weights(model.code_decoder.decoder.state_dict(), folder / f"{DECODER}.safetensors", dtype)
    _save_llama(model.personalizer.llama, folder / LANGUAGE, dtype)
    model.text_tokenizer.save(str(folder / LANGUAGE / "tokenizer.json"))
    save_adapter(model.personalizer, folder / "pigeon", dtype)
    for name, network in (("unet", model.diffusion.unet), ("vae", model.diffusion.vae)):
        write_weights(network.state_dict(), folder / PIXELS / name / "diffusion_pytorch_model.safetensors", dtype)
        network.save_config(folder / PIXELS / name)
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


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one on standard error for every load, a test or a server included."""
    bars: Any = transformers_logging  # has no annotations
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _load_llama(folder: Path, config: PigeonConfig) -> LlamaForCausalLM:
    try:
        with _without_progress_bar():
            loaded: Any = LlamaForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: {str(error).splitlines()[0]}") from error
    llama: LlamaForCausalLM = loaded[0]
    _refuse_missing(folder, loaded[1])
    wanted = {
        "vocab_size": config.ids.vocab_size,
        "hidden_size": config.language.width,
        "num_hidden_layers": config.language.depth,
        "num_attention_heads": config.language.heads,
    }
    for field, value in wanted.items():
        found = getattr(llama.config, field)
        if found != value:
            raise ModelError(f"{folder}/config.json: {field} is {found}, the checkpoint's config.json asks for {value}")
    return llama


def _save_llama(llama: PeftModel, folder: Path, dtype: torch.dtype) -> None:
    base: Any = llama.get_base_model()
    state: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): value for name, value in base.state_dict().items() if ".lora_" not in name
    }
    if base.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    write_weights(state, folder / "model.safetensors", dtype)
    base.config.save_pretrained(folder)


def _load_diffusion(folder: Path, config: PigeonConfig) -> Diffusion:
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    loaded = {}
    for name, kind in kinds.items():
        try:
            loaded[name], info = kind.from_pretrained(
                folder / name,
                torch_dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                low_cpu_mem_usage=False,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder / name}: {str(error).splitlines()[0]}") from error
        _refuse_missing(folder / name, info)
    found = loaded["unet"].config["cross_attention_dim"]
    if found != config.decoder.prompt_width:
        raise ModelError(
            f"{folder}/unet/config.json: cross_attention_dim is {found}, the decoder gives {config.decoder.prompt_width}"
        )
    schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return Diffusion(config.diffusion, loaded["unet"], loaded["vae"], schedule)


def _refuse_missing(folder: Path, info: Mapping[str, Any]) -> None:
    """Both libraries fill missing weights with random numbers and only warn."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}; copy the folder again"
        )


def _load_text_tokenizer(path: Path, config: PigeonConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"{path}: not a tokenizer ({error})") from error
    if tokenizer.get_vocab_size(with_added_tokens=False) > config.ids.text_size:
        raise ModelError(
            f"{path}: {tokenizer.get_vocab_size(with_added_tokens=False)} text ids, config.json has {config.ids.text_size}"
        )
    return tokenizer


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, default=str, sort_keys=True) + "\n", encoding="utf-8")
