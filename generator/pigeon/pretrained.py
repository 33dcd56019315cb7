"""Loading of LLaMA, UNet, VAE, schedule and text tokenizer by their libraries, checked first.

The libraries only warn about weights that are missing or misshapen, or name them on the tenth line of a trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from generator.pigeon.config import PigeonConfig
from generator.pigeon.diffusion import Diffusion
from generator.pigeon.lcm import schedule_from_config
from generator.pigeon.placement import Placement
from generator.pigeon.unet_lora import merge_lora
from generator.pigeon.weights import find_weights, read_shapes
from schemas.errors import ModelError

UNET_LORA = "unet_lora"
"""Folder beside `unet/` of a LoRA that is merged into the UNet, if there is one."""
LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, TypeError, SafetensorError)


def load_llama(folder: Path, config: PigeonConfig, placement: Placement) -> LlamaForCausalLM:
    """A Hugging Face folder: config.json and model.safetensors or pytorch_model.bin, whole or in shards.

    Raises:
        ModelError: weights are missing, misshapen or damaged, or of another size than `config` asks for.
    """
    options: dict[str, Any] = {}
    if placement.eight_bit:
        options["quantization_config"] = _eight_bit()
    device = placement.device("language")
    with _named(folder):
        found = LlamaConfig.from_pretrained(folder, local_files_only=True)
    language = config.language
    wanted = {
        "vocab_size": config.ids.vocab_size,
        "hidden_size": language.width,
        "intermediate_size": language.mlp_width,
        "num_hidden_layers": language.depth,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.heads,
    }
    for field, value in wanted.items():
        if getattr(found, field) != value:
            raise ModelError(
                f"{folder}/config.json: {field} is {getattr(found, field)}, preset {config.name} asks for {value}"
            )
    with torch.device("meta"):
        _check_shapes(folder, LlamaForCausalLM(found))
    with _named(folder), _without_progress_bar():
        loaded: Any = LlamaForCausalLM.from_pretrained(
            folder,
            dtype=placement.dtype,
            device_map={"": device},
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    _refuse_missing(folder, loaded[1])
    llama: LlamaForCausalLM = loaded[0]
    return llama


def load_diffusion(folder: Path, config: PigeonConfig, placement: Placement) -> Diffusion:
    """A diffusers folder with unet/, vae/ and scheduler/, and optionally unet_lora/.

    Raises:
        ModelError: weights are missing, misshapen or damaged, or do not fit the token decoder's conditions.
    """
    device = placement.device("diffusion")
    unet_kind: Any = UNet2DConditionModel
    vae_kind: Any = AutoencoderKL
    unet_fields = _load_config(unet_kind, folder / "unet")
    decoder = config.decoder
    time_width = unet_fields.get("addition_time_embed_dim") or 0
    if unet_fields.get("time_cond_proj_dim"):
        raise ModelError(
            f"{folder}/unet/config.json: time_cond_proj_dim is {unet_fields['time_cond_proj_dim']}: this UNet takes the guidance as "
            f"an input, which is not supported; give the undistilled UNet and a LoRA in {UNET_LORA}/"
        )
    for field, value, why in (
        ("cross_attention_dim", decoder.prompt_width, "the token decoder's prompt_embeds"),
        ("projection_class_embeddings_input_dim", decoder.pooled_width + 6 * time_width, "pooled and six time ids"),
    ):
        if unet_fields.get(field) != value:
            raise ModelError(
                f"{folder}/unet/config.json: {field} is {unet_fields.get(field)}, preset {config.name} asks for {value} ({why})"
            )
    loaded: dict[str, Any] = {}
    for name, kind, dtype in (("unet", unet_kind, placement.dtype), ("vae", vae_kind, torch.float32)):
        with torch.device("meta"):
            path = _check_shapes(folder / name, kind.from_config(_load_config(kind, folder / name)))
        with _named(folder / name):
            loaded[name], info = kind.from_pretrained(
                folder / name,
                torch_dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                low_cpu_mem_usage=False,
                use_safetensors=".safetensors" in path.name,  # shards of the other kind are not found by themselves
            )
        _refuse_missing(folder / name, info)
    if (folder / UNET_LORA).is_dir():
        merge_lora(loaded["unet"], folder / UNET_LORA)
    if loaded["unet"].config["out_channels"] != loaded["vae"].config["latent_channels"]:
        raise ModelError(
            f"{folder}: the UNet draws {loaded['unet'].config['out_channels']} latent channels, "
            f"the VAE reads {loaded['vae'].config['latent_channels']}; both must be of one model"
        )
    schedule = load_scheduler(folder / "scheduler", config.diffusion.steps)
    return Diffusion(config.diffusion, loaded["unet"].to(device), loaded["vae"].to(device), schedule)


def load_scheduler(folder: Path, steps: int) -> dict[str, Any]:
    """A scheduler's configuration as diffusers reads it: LCMScheduler's, or DDIMScheduler's for any other.

    Raises:
        ModelError: no configuration there, or one that our samplers do not know (also: so many steps).
    """
    kinds: dict[str, Any] = {"LCMScheduler": LCMScheduler}
    ddim: Any = DDIMScheduler
    kind = kinds.get(str(_load_config(ddim, folder).get("_class_name")), ddim)
    with _named(folder):
        # Through the class, so that a field that the file leaves out gets diffusers' own default.
        schedule = dict(kind.from_pretrained(folder, local_files_only=True).config)
        # In the order of a set, which is another one in each process: a picture's key would be, too.
        schedule.pop("_use_default_values", None)
        schedule_from_config(schedule, steps)
    return schedule


def load_text_tokenizer(folder: Path, config: PigeonConfig) -> Tokenizer:
    """tokenizer.json, else the SentencePiece file tokenizer.model.

    Raises:
        ModelError: neither is there, or it is damaged, or holds more ids than `config`.
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            path = folder / "tokenizer.model"
            tokenizer = _from_sentencepiece(path.read_bytes())
    except Exception as error:
        raise ModelError(f"{path}: not a tokenizer ({error})") from error
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > config.ids.text_size:
        raise ModelError(f"{path}: {size} text ids, preset {config.name} has {config.ids.text_size}")
    return tokenizer


def _from_sentencepiece(model: bytes) -> Tokenizer:
    """LLaMA's BPE from its file.

    The reader of transformers needs a package that breaks beside Triton's protobuf.
    """
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    proto: Any = sentencepiece
    pieces = proto.ModelProto.FromString(model).pieces
    if not pieces:
        raise ValueError("it holds no pieces")
    vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
    whole = {piece.piece for piece in pieces if piece.type != proto.ModelProto.SentencePiece.NORMAL}
    merges = generate_merges(vocabulary, skip_tokens=whole)
    built: Any = LlamaTokenizer(vocab=vocabulary, merges=merges)
    tokenizer: Tokenizer = built.backend_tokenizer
    return tokenizer


def _eight_bit() -> Any:
    if find_spec("torchao") is None:
        raise ModelError("eight_bit: torchao is not installed; pip install 'pigeon-posters[lavit]', or load without it")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _load_config(kind: Any, folder: Path) -> dict[str, Any]:
    with _named(folder):
        fields: dict[str, Any] = kind.load_config(folder, local_files_only=True)
    return fields


def _check_shapes(folder: Path, wanted: nn.Module) -> Path:
    """Find the folder's weights (or their index) and check every shape against config.json."""
    path = find_weights(folder)
    if path is None:
        raise ModelError(f"{folder}: no weights there; expected .safetensors or .bin, whole or shards with their index")
    found = read_shapes(path)
    for name, value in wanted.state_dict().items():
        if name in found and found[name] != tuple(value.shape):
            raise ModelError(
                f"{path}: {name} has shape {found[name]}, {folder.name}/config.json asks for {tuple(value.shape)}; "
                "make config.json and weights agree"
            )
    return path


def _refuse_missing(folder: Path, info: Mapping[str, Any]) -> None:
    """Both libraries fill missing weights with random numbers and only warn."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}; copy the folder again"
        )


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """A library's error as one line that begins with the folder."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{folder}: {reason}") from error


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
