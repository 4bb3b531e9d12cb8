"""Reading a checkpoint folder: which format it holds, where its parts are, whether all is there.

The format is read from config.json, never from the folder's name. Whatever the config calls for
must be there in the right shape, and nothing else may be: no tensor is ever made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from .language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from .senna import adapter_sizes
from .weights import (
    VISION,
    read_json,
    read_projector,
    read_tensors,
    read_vision_tower,
    rename,
    vision_config,
)

#: Keys that llava-hf's format has no place for, with the values its checkpoints stand for. Its
#: processor crops by default; LLaVA-1.5 was trained and scored on padded squares.
OWN_KEYS = {"image_aspect_ratio": "pad", "mm_use_im_start_end": False}

#: Llama-7B's sizes, which llava-hf's config of the 7B model leaves out.
_LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has every tensor its config calls for, and no other.

    config: values in the original format's terms, the tower's config as `mm_vision_config`.
    state: tensors under the original format's names, the vision tower's included.
    tokenizer_folder, processor_folder: where their files are, if anywhere.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer_folder: Path
    processor_folder: Path


def detect_format(config: Mapping[str, Any], where: str) -> str:
    """ "original" or "llava-hf", from the contents of config.json.

    Raises ValueError for anything else, LLaVA-1.6 included, naming what was found.
    """
    kind = config.get("model_type")
    if "text_config" in config and "vision_config" in config and kind == "llava":
        return "llava-hf"
    merge, aspect = config.get("mm_patch_merge_type") or "flat", config.get("image_aspect_ratio")
    if kind == "llava_next" or merge != "flat" or aspect == "anyres":
        raise ValueError(
            f"{where} is a LLaVA-1.6 checkpoint (model_type {kind!r}, image_aspect_ratio "
            f"{aspect!r}, mm_patch_merge_type {merge!r}); only LLaVA-1.5 is supported"
        )
    marks = ("mm_vision_tower" in config, "mm_projector_type" in config)
    named = "LlavaLlamaForCausalLM" in (config.get("architectures") or [])
    if kind in ("llava", "llava_llama") and (any(marks) or named):
        return "original"
    raise ValueError(
        f"{where} is not a LLaVA-1.5 checkpoint: model_type {kind!r}, architectures "
        f"{config.get('architectures')!r}; expected model_type llava or llava_llama with "
        "mm_vision_tower (LLaVA's own format), or llava with text_config and vision_config "
        "(llava-hf)"
    )


def resolve(name: str | Path, beside: Path | None = None) -> Path:
    """The folder a name means: one in `beside`, a path, or a hub repository.

    Raises FileNotFoundError when it is none of them.
    """
    for candidate in (*([beside / name] if beside is not None else []), Path(name)):
        if candidate.is_dir():
            return candidate
    text = str(name)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        try:
            # Not the same weights again for other frameworks.
            return Path(snapshot_download(text, ignore_patterns=["*.h5", "*.msgpack"]))
        except Exception as error:
            raise FileNotFoundError(
                f"{text} is neither a folder nor to be had from the Hugging Face hub "
                f"({type(error).__name__}); download it and give its folder"
            ) from error
    raise FileNotFoundError(f"no folder {text}")


def read_checkpoint(
    folder: Path, vision_tower: str | Path | None = None, model_base: str | Path | None = None
) -> Checkpoint:
    """Read a checkpoint of either format, and check it tensor by tensor.

    The vision tower is that of `vision_tower`, else the one inside the checkpoint, else that of
    the config's `mm_vision_tower`. With `model_base`, `folder` holds only `mm_projector.bin`.

    Raises ValueError or FileNotFoundError for whatever is not as config.json says.
    """
    config = read_json(folder / "config.json")
    kind = detect_format(config, str(folder))
    if kind == "llava-hf":
        if model_base is not None:
            raise ValueError(f"{folder} is complete (llava-hf's format): leave out the model base")
        config = from_hf(config, folder)
    state, where, base = _read_language_model(folder, kind, model_base)
    if sizes := adapter_sizes(state):
        config["mm_token_adapter"] = list(sizes)

    inside = any(name.startswith(VISION) for name in state)
    tower_at, tower_names, processor = folder, kind, folder
    described = kind == "llava-hf" or (inside and config.get("mm_vision_config") is not None)
    if vision_tower is not None or not described:
        processor = _find_tower(vision_tower, config.get("mm_vision_tower"), folder)
        config["mm_vision_config"], vision = read_vision_tower(processor)
        if vision_tower is not None or not inside:
            state = {**_part(state, vision=False), **vision}
            tower_at, tower_names = processor, "clip"

    expected = expected_shapes(config)
    verify(_part(state, vision=False), _part(expected, vision=False), where, kind)
    verify(_part(state, vision=True), _part(expected, vision=True), str(tower_at), tower_names)
    if not (processor / PROCESSOR_FILE).is_file():
        processor = folder
    return Checkpoint(config, state, base, processor)


def _part(tensors: Mapping[str, Any], vision: bool) -> dict[str, Any]:
    return {k: v for k, v in tensors.items() if k.startswith(VISION) == vision}


def _read_language_model(
    folder: Path, kind: str, model_base: str | Path | None
) -> tuple[dict[str, Tensor], str, Path]:
    """Tensors under original names, their place in words, and the folder of the tokenizer."""
    if model_base is None:
        source = "llava-hf" if kind == "llava-hf" else "module"
        state = {rename(k, source, "original"): v for k, v in read_tensors(folder).items()}
        return {**read_projector(folder), **state}, str(folder), folder
    base, projector = resolve(model_base), read_projector(folder)
    if not projector:
        raise FileNotFoundError(
            f"with a model base, {folder} must hold mm_projector.bin (LoRA weights have to be "
            "merged into a checkpoint of their own first)"
        )
    return {**read_tensors(base), **projector}, f"{folder} on {base}", base


def _find_tower(given: str | Path | None, named: str | None, folder: Path) -> Path:
    if given is None and named is None:
        raise ValueError(
            f"{folder}/config.json names no mm_vision_tower; give the folder of its CLIP "
            "checkpoint with --vision-tower DIR"
        )
    try:
        return resolve(given) if given is not None else resolve(named, beside=folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the vision tower cannot be found: {error}. The checkpoint names {named!r}; give the "
            "folder of that CLIP checkpoint (of LLaVA-1.5 and Senna, whose config may name a path "
            "of another machine: openai/clip-vit-large-patch14-336) with --vision-tower DIR"
        ) from None


def from_hf(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Original-format config values for the llava-hf config of `folder`.

    Raises ValueError for what LLaVA-1.5 does not have: another language model, tower, projector.
    """
    text, vision = values["text_config"], values["vision_config"]
    only = {
        "text_config.model_type": (text.get("model_type", "llama"), "llama"),
        "vision_config.model_type": (vision.get("model_type"), "clip_vision_model"),
        "projector_hidden_act": (values.get("projector_hidden_act", "gelu"), "gelu"),
        "vision_feature_select_strategy": (
            values.get("vision_feature_select_strategy", "default"),
            "default",
        ),
    }
    for key, (found, expected) in only.items():
        if found != expected:
            raise ValueError(f"{folder}/config.json: {key} must be {expected!r}, got {found!r}")
    layer = values.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ValueError(
            f"{folder}/config.json: vision_feature_layer must be one layer, got {layer!r}"
        )
    vision = vision_config(vision)
    return {
        **_LLAMA_7B,
        **text,
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "dtype": values.get("dtype") or values.get("torch_dtype") or text.get("dtype"),
        "image_token_index": values.get("image_token_index", 32000),
        "mm_vision_config": vision,
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": layer,
        "mm_vision_select_feature": "patch",
        **{key: values.get(key, default) for key, default in OWN_KEYS.items()},
    }


def make_config(values: Mapping[str, Any]) -> LlavaConfig:
    """A LlavaConfig from original-format values; the dtype is the loader's business."""
    left_out = ("model_type", "torch_dtype", "dtype")
    return LlavaConfig(**{k: v for k, v in values.items() if k not in left_out})


def expected_shapes(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that original-format config values call for, by original names."""
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(make_config(values))
    return {
        rename(name, "module", "original"): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
    }


def verify(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    names: str = "original",
) -> None:
    """Raise ValueError unless `state` has exactly the expected tensors in the expected shapes.

    Both are under original names; messages spell them as the format `names` does.
    """

    def some(tensors: Mapping[str, Any]) -> str:
        few = [f"{rename(k, 'original', names)} {list(v)}" for k, v in sorted(tensors.items())[:4]]
        return ", ".join(few) + (f" and {len(tensors) - 4} more" if len(tensors) > 4 else "")

    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = {k: v for k, v in expected.items() if k not in found}
    if missing:
        raise ValueError(
            f"{where} lacks {len(missing)} of {len(expected)} tensors: expected {some(missing)}"
        )
    unknown = {k: v for k, v in found.items() if k not in expected}
    if unknown:
        raise ValueError(
            f"{where} has tensors that its config.json does not call for: {some(unknown)}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{where}: {rename(name, 'original', names)} has shape {list(found[name])}, "
                f"expected {list(shape)} by config.json"
            )
