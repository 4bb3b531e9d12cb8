"""Load a LLaVA-1.5 checkpoint of either format, checking every tensor."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from ..mm_utils import load_image_processor
from . import checkpoint
from .language_model.attention import check_backend
from .language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from .tokenizer import LlavaTokenizer, load_tokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: str | dict[str, Any] | None = None,
    device: str | torch.device | None = None,
    use_flash_attn: bool = False,
    *,
    vision_tower: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str = "sdpa",
) -> tuple[LlavaLlamaForCausalLM, LlavaTokenizer, Any, int]:
    """Load a model for inference: (tokenizer, model, image_processor, context_len).

    model_path: a folder, or a name on the Hugging Face hub.
    model_base: the language model's folder, when `model_path` holds only `mm_projector.bin`.
    model_name: accepted for compatibility; what a checkpoint is, its config.json says.
    load_8bit, load_4bit: quantise through bitsandbytes, which must be installed.
    device_map: "auto" or a map spreads the model over devices through accelerate.
    device: cuda when there is one, else mps, else cpu. Not together with `device_map`.
    vision_tower: folder of the CLIP checkpoint, in place of the one that config.json names.
    dtype: "auto" (the checkpoint's), "float32", "float16", "bfloat16".
    attn_implementation: "sdpa", "eager" or "flash_attention_2" (also by `use_flash_attn`).

    Raises ValueError or FileNotFoundError for a checkpoint that is not LLaVA's, that lacks tensors
    or has tensors of other shapes: nothing is ever initialised at random.
    """
    attn_implementation = "flash_attention_2" if use_flash_attn else attn_implementation
    check_backend(attn_implementation)
    if device is not None and device_map is not None:
        raise ValueError("give device or device_map, not both")
    folder = resolve(model_path)
    config_values, state = read_checkpoint(folder, vision_tower, model_base)
    config = make_config(config_values)
    config._attn_implementation = attn_implementation
    wanted = _dtype(dtype, config_values)

    with torch.device("meta"):
        expected = {
            k: tuple(v.shape) for k, v in LlavaLlamaForCausalLM(config).state_dict().items()
        }
    state = {checkpoint.rename(k, "original", "module"): v for k, v in state.items()}
    verify(state, expected, str(folder))

    options: dict[str, Any] = {}
    if load_8bit or load_4bit:
        options["quantization_config"] = _quantisation(load_4bit, wanted)
        device_map = device_map or "auto"
    if device_map is not None:
        options["device_map"] = device_map
    model, info = LlavaLlamaForCausalLM.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=wanted,
        attn_implementation=attn_implementation,
        output_loading_info=True,
        **options,
    )
    lost = set(info["missing_keys"]) | set(info["unexpected_keys"])
    if lost:
        raise RuntimeError(f"transformers did not load {sorted(lost)[:5]}; please report this")
    if device_map is None:
        model.to(device or default_device())
    model.eval()

    tokenizer = load_tokenizer(model_base if model_base is not None else folder)
    _set_generation(model, tokenizer, config_values)
    processor_folder = vision_tower or config_values.get("mm_vision_folder") or folder
    context_len = config_values.get("max_sequence_length") or 2048
    return tokenizer, model, load_image_processor(processor_folder), context_len


def default_device() -> str:
    """The best device this machine has: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve(name: str | Path, beside: Path | None = None) -> Path:
    """The folder a name means: a path, a folder beside the checkpoint, or a hub repository.

    Raises FileNotFoundError when it is none of them.
    """
    for candidate in (Path(name), *([beside / name] if beside is not None else [])):
        if candidate.is_dir():
            return candidate
    text = str(name)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        try:
            return Path(snapshot_download(text))
        except Exception as error:
            raise FileNotFoundError(
                f"{text} is neither a folder nor to be had from the Hugging Face hub "
                f"({type(error).__name__}); download it and give its folder"
            ) from error
    raise FileNotFoundError(f"no folder {text}")


def read_checkpoint(
    folder: Path, vision_tower: str | Path | None = None, model_base: str | Path | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config values and all tensors of a checkpoint, both in the original format's names.

    The vision tower is the one inside the checkpoint, else that of `vision_tower`, else that of
    the config's `mm_vision_tower`; its config comes as `mm_vision_config`, and the folder it was
    read from as `mm_vision_folder`.
    """
    values = checkpoint.read_json(folder / "config.json")
    kind = checkpoint.detect_format(values, str(folder))
    if kind == "llava-hf":
        state = {
            checkpoint.rename(k, "llava-hf", "original"): v
            for k, v in checkpoint.read_tensors(folder).items()
        }
        return _from_hf(values), state

    if model_base is not None:
        projector = checkpoint.read_projector(folder)
        if not projector:
            raise FileNotFoundError(f"with a model base, {folder} must hold mm_projector.bin")
        state = {**checkpoint.read_tensors(resolve(model_base)), **projector}
    else:
        state = {**checkpoint.read_projector(folder), **checkpoint.read_tensors(folder)}
    inside = any(name.startswith(checkpoint.NAMES[0][0]) for name in state)
    if vision_tower is None and values.get("mm_vision_tower") is None:
        raise ValueError(f"{folder}/config.json names no mm_vision_tower, and none was given")
    tower = _resolve_tower(vision_tower, values["mm_vision_tower"], folder)
    vision_config, vision_state = checkpoint.read_vision_tower(tower)
    values["mm_vision_config"], values["mm_vision_folder"] = vision_config, str(tower)
    if not inside or vision_tower is not None:
        state = {**state, **vision_state}
    return values, state


def _resolve_tower(given: str | Path | None, named: str, folder: Path) -> Path:
    try:
        return resolve(given if given is not None else named, beside=folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the vision tower cannot be found: {error}. The checkpoint names {named!r}; give the "
            "folder of that CLIP checkpoint with --vision-tower DIR"
        ) from None


def _from_hf(values: Mapping[str, Any]) -> dict[str, Any]:
    """Original-format config values for a llava-hf config. Sizes it leaves out are Llama-7B's."""
    act = values.get("projector_hidden_act", "gelu")
    if act != "gelu":
        raise ValueError(f"projector_hidden_act must be gelu, got {act!r}")
    layer = values.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer must be one layer, got {layer!r}")
    strategy = values.get("vision_feature_select_strategy", "default")
    if strategy != "default":
        raise ValueError(f"vision_feature_select_strategy must be default, got {strategy!r}")
    text = {k: v for k, v in values["text_config"].items() if k != "model_type"}
    vision = checkpoint.CLIPVisionConfig(**values["vision_config"]).to_dict()
    return {
        **text,
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "dtype": values.get("dtype") or values.get("torch_dtype") or text.get("dtype"),
        "image_token_index": values.get("image_token_index", 32000),
        "mm_vision_tower": "vision_tower",
        "mm_vision_config": vision,
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": layer,
        "mm_vision_select_feature": "patch",
        # llava-hf's processor crops by default; LLaVA-1.5 was trained and scored on padded squares.
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False,
    }


def make_config(values: Mapping[str, Any]) -> LlavaConfig:
    """A LlavaConfig from original-format values. Raises ValueError for LLaVA-1.6 settings."""
    values = {k: v for k, v in values.items() if k not in ("model_type", "mm_vision_folder")}
    pinpoints = values.get("image_grid_pinpoints")
    if isinstance(pinpoints, str):
        values["image_grid_pinpoints"] = ast.literal_eval(pinpoints)
    merge = values.get("mm_patch_merge_type") or "flat"
    if merge != "flat" or values.get("image_aspect_ratio") == "anyres":
        raise ValueError(
            f"this is a LLaVA-1.6 checkpoint (image_aspect_ratio "
            f"{values.get('image_aspect_ratio')!r}, mm_patch_merge_type {merge!r}); "
            "only LLaVA-1.5 is supported"
        )
    values.pop("torch_dtype", None)
    values.pop("dtype", None)
    return LlavaConfig(**values)


def verify(
    state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raise ValueError unless `state` has exactly the expected tensors in the expected shapes."""

    def some(names: list[str]) -> str:
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    missing = sorted(set(expected) - set(state))
    if missing:
        shapes = [f"{name} {list(expected[name])}" for name in missing]
        raise ValueError(f"{where} lacks {len(missing)} tensors: {some(shapes)}")
    unexpected = sorted(set(state) - set(expected))
    if unexpected:
        raise ValueError(f"{where} has {len(unexpected)} unknown tensors: {some(unexpected)}")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(
                f"{where}: {name} has shape {list(state[name].shape)}, expected {list(shape)} "
                "by config.json"
            )


def _dtype(wanted: str | torch.dtype, values: Mapping[str, Any]) -> torch.dtype:
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted == "auto":
        wanted = str(values.get("dtype") or values.get("torch_dtype") or "float32")
        wanted = wanted.removeprefix("torch.")
    if wanted not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, got {wanted!r}")
    return DTYPES[wanted]


def _quantisation(four_bit: bool, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ImportError("4-bit and 8-bit loading need bitsandbytes: pip install bitsandbytes")
    # The vision tower and the projector stay as they are, as in LLaVA.
    skip = ["vision_tower", "mm_projector", "lm_head"]
    if four_bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=skip,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)


def _set_generation(
    model: LlavaLlamaForCausalLM, tokenizer: LlavaTokenizer, values: Mapping[str, Any]
) -> None:
    """Greedy decoding that stops at </s>; rows that llava-hf appended can never be chosen."""
    generation = model.generation_config
    generation.bos_token_id = tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    image_token = values.get("image_token_index")
    if image_token is not None and image_token < model.config.vocab_size:
        generation.suppress_tokens = list(range(image_token, model.config.vocab_size))
