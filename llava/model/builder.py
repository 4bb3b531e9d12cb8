"""Load a LLaVA-1.5 or 1.6 checkpoint of either format, or Senna's, checking every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from ..anyres import fixed_canvas
from ..common.image_processor import check_image_size, describe_processor, load_image_processor
from ..constants import DEFAULT_IMAGE_TOKEN
from .config_json import choose_merge_type, choose_reading
from .context import context_length
from .hf_tokenizer import HfTokenizer
from .image_tokens import add_image_tokens
from .language_model.backends import check_backend
from .language_model.llava_llama import LlavaLlamaForCausalLM
from .mapped import cast
from .reading import Checkpoint, read_checkpoint, resolve
from .shapes import make_config
from .tensor_names import rename
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
    merge_type: str | None = None,
    processing: str = "llava",
    offline: bool = False,
    torch_dtype: str | torch.dtype | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    use_flash_attention_2: bool = False,
    low_cpu_mem_usage: bool = True,
) -> tuple[LlavaTokenizer, LlavaLlamaForCausalLM, Any, int]:
    """Load a model for inference: (tokenizer, model, image_processor, context_len).

    model_path: a folder, or OWNER/NAME on the Hugging Face hub where no folder OWNER is here.
    model_base: the language model's folder, when `model_path` holds only `mm_projector.bin`.
    model_name: accepted for compatibility; what a checkpoint is, its config.json says.
    load_8bit, load_4bit: quantise through bitsandbytes, which must be installed.
    device_map: "auto" or a map spreads the model over devices through accelerate.
    device: cuda when there is one, else mps, else cpu. Not together with `device_map`.
    vision_tower: folder of the CLIP checkpoint, in place of the one that config.json names. To a
        tower inside the checkpoint it lends its config and image processor, see `read_checkpoint`.
    dtype: "auto" (the checkpoint's), "float32", "float16", "bfloat16".
    attn_implementation: "sdpa", "eager" or "flash_attention_2" (also by `use_flash_attn`).
    merge_type: of a model that tiles pictures, how their views become one sequence, "flat",
        "spatial" or "spatial_unpad" (see `llava.anyres`), in place of the checkpoint's own. Another
        one makes another model: the official AutoPrune, FasterVLM and others run LLaVA-1.6 with
        "spatial".
    processing: "llava" prepares pictures and prompts as LLaVA does, whatever the format;
        "llava-hf" as llava-hf's processors and this release of transformers do. For models that
        tile pictures also "fill" or a canvas such as "672x672": as LLaVA does, but the canvas is
        chosen as the official AutoPrune or VisPruner does, see `llava.anyres`.
    offline: whether names are only looked up in the hub's cache and nothing is downloaded.
    torch_dtype, load_in_8bit, load_in_4bit, use_flash_attention_2: other spellings of dtype,
        load_8bit, load_4bit and use_flash_attn, for programs written for LLaVA.
    low_cpu_mem_usage: accepted for compatibility; loading works that way.

    Raises ValueError or FileNotFoundError for a checkpoint that is not LLaVA's, that lacks tensors
    or has tensors of other shapes: nothing is ever initialised at random. ImportError for an
    option whose package is not installed.
    """
    if torch_dtype is not None:
        if dtype not in ("auto", torch_dtype):
            raise ValueError(f"give dtype or torch_dtype, not both: {dtype!r} and {torch_dtype!r}")
        dtype = torch_dtype
    load_8bit, load_4bit = load_8bit or load_in_8bit, load_4bit or load_in_4bit
    if use_flash_attn or use_flash_attention_2:
        attn_implementation = "flash_attention_2"
    check_backend(attn_implementation)
    if device is not None and str(device_map) == str(device):
        device_map = None  # the same place said twice, as VLMEvalKit does
    if device is not None and device_map is not None:
        raise ValueError("give device or device_map, not both")
    if dtype not in ("auto", *DTYPES, *DTYPES.values()):
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    fixed_canvas(processing)
    if (load_8bit or load_4bit) and not is_bitsandbytes_available():
        raise ImportError("4-bit and 8-bit loading need bitsandbytes: pip install bitsandbytes")

    folder = resolve(model_path, offline=offline)
    checkpoint = read_checkpoint(folder, vision_tower, model_base, offline=offline)
    choose_merge_type(checkpoint.config, merge_type, str(folder))
    if "unpad" not in (checkpoint.config.get("mm_patch_merge_type") or ""):
        checkpoint.state.pop("model.image_newline", None)
    pads = processing == "llava-hf" and _pads(checkpoint.processor_folder)
    choose_reading(checkpoint.config, processing, str(folder), pads=pads)
    if processing == "llava-hf":
        tokenizer = HfTokenizer(checkpoint.tokenizer_folder)
    else:
        tokenizer = load_tokenizer(checkpoint.tokenizer_folder)
    rows = len(checkpoint.state["model.embed_tokens.weight"])
    add_image_tokens(tokenizer, checkpoint.config, rows, f"{folder}/config.json")
    image_processor = load_image_processor(checkpoint.processor_folder)
    side = checkpoint.config["mm_vision_config"]["image_size"]
    aspect_ratio = checkpoint.config.get("image_aspect_ratio")
    check_image_size(image_processor, checkpoint.processor_folder, side, aspect_ratio)
    wanted = _dtype(dtype, checkpoint.config, checkpoint.state)

    state = {
        rename(name, "original", "module"): checkpoint.state.pop(name)
        for name in list(checkpoint.state)
    }
    options: dict[str, Any] = {}
    if load_8bit or load_4bit:
        options["quantization_config"] = _quantisation(load_4bit, wanted)
        # Weights are quantised on the device they are loaded to.
        device_map = device_map or ("auto" if device is None else {"": device})
    if device_map is not None:
        options["device_map"] = device_map
    else:
        cast(state, wanted)
    model, info = LlavaLlamaForCausalLM.from_pretrained(
        None,
        config=make_config(checkpoint.config),
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
    _set_generation(model, tokenizer, checkpoint)
    return tokenizer, model, image_processor, context_length(model.config)


def _pads(processor_folder: Path) -> bool:
    """Whether it is a LlavaImageProcessor, and says that it pads pictures to a square."""
    _, processor = describe_processor(processor_folder) or (None, {})
    kind = str(processor.get("image_processor_type"))
    return kind.startswith("LlavaImageProcessor") and bool(processor.get("do_pad"))


def default_device() -> str:
    """The best device this machine has: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(
    wanted: str | torch.dtype, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> torch.dtype:
    """The dtype to load in; "auto" is config.json's, else that of the weights."""
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted == "auto":
        named = config.get("dtype") or config.get("torch_dtype")
        if named is None:
            return state["model.embed_tokens.weight"].dtype
        wanted = str(named).removeprefix("torch.")
        if wanted not in DTYPES:
            raise ValueError(
                f"config.json's torch_dtype must be {', '.join(DTYPES)}, got {named!r}; "
                "choose one with dtype"
            )
    return DTYPES[wanted]


def _quantisation(four_bit: bool, dtype: torch.dtype) -> BitsAndBytesConfig:
    # The vision tower, the projector and Senna's adapter stay as they are, as in LLaVA.
    skip = ["vision_tower", "mm_projector", "img_adapter", "lm_head"]
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
    model: LlavaLlamaForCausalLM, tokenizer: LlavaTokenizer | HfTokenizer, checkpoint: Checkpoint
) -> None:
    """Greedy decoding that stops at </s> and the checkpoint's other ends.

    Rows that no token names, such as those that pad the vocabulary, are never chosen, nor are the
    tokens that stand for a picture and for padding in llava-hf's format.
    """
    generation, size = model.generation_config, model.config.vocab_size
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ends = list(dict.fromkeys([end, *checkpoint.end_tokens]))
    generation.bos_token_id = tokenizer.bos_token_id
    generation.eos_token_id = ends if len(ends) > 1 else end
    # Some folders add a <pad> that has no row in the embeddings, yet finished samples are fed it.
    generation.pad_token_id = pad if pad < size else end
    vocabulary = tokenizer.get_vocab()
    never = set(range(size)).difference(vocabulary.values())
    image_token = checkpoint.config.get("image_token_index")
    if image_token is not None:
        never |= {image_token, pad} - {tokenizer.bos_token_id, tokenizer.unk_token_id}
    never.add(vocabulary.get(DEFAULT_IMAGE_TOKEN))
    never = {i for i in never if i is not None and i < size}.difference(ends)
    generation.suppress_tokens = sorted(never) or None
