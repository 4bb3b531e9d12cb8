"""What a checkpoint's config.json says: which format it is, and what LLaVA-1.5 and 1.6 need of it.

Everything else works with values in the original format's terms; `from_hf` translates llava-hf's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..anyres import MERGE_TYPES, fixed_canvas, read_pinpoints
from ..common import json_files
from .weights import vision_config

#: Keys that llava-hf's format of LLaVA-1.5 has no place for, with the values its checkpoints stand
#: for. Its processor crops by default; LLaVA-1.5 was trained and scored on padded squares.
OWN_KEYS = {"image_aspect_ratio": "pad", "mm_use_im_start_end": False}

#: The same of LLaVA-1.6, whose llava-hf format says nothing of the merge type.
_NEXT_KEYS = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_use_im_start_end": False,
}

#: Canvases of all published LLaVA-1.6 checkpoints, which llava-hf's configs may leave out.
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

#: transformers' defaults of the language models, the 7B ones, which configs may leave out. A
#: Mistral layer without a sliding window is a Llama layer with fewer key heads.
_LLAMA_7B = {
    "max_position_embeddings": 2048,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_TEXT_DEFAULTS = {
    "llama": _LLAMA_7B,
    "mistral": {
        **_LLAMA_7B,
        **{"intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096},
        "max_position_embeddings": 131072,
    },
}


def detect_format(config: Mapping[str, Any], where: str) -> str:
    """ "original" or "llava-hf", from the contents of config.json.

    Raises ValueError for anything that is neither LLaVA-1.5 nor LLaVA-1.6, naming what was found.
    """
    kind = config.get("model_type")
    if "text_config" in config and "vision_config" in config and kind in ("llava", "llava_next"):
        return "llava-hf"
    marks = ("mm_vision_tower" in config, "mm_projector_type" in config)
    classes = set(config.get("architectures") or [])
    named = classes & {"LlavaLlamaForCausalLM", "LlavaMistralForCausalLM"}
    if kind in ("llava", "llava_llama", "llava_mistral") and (any(marks) or named):
        return "original"
    raise ValueError(
        f"{where} is not a LLaVA-1.5 or 1.6 checkpoint: model_type {kind!r}, architectures "
        f"{config.get('architectures')!r}; expected model_type llava, llava_llama or llava_mistral "
        "with mm_vision_tower (LLaVA's own format), or llava or llava_next with text_config and "
        "vision_config (llava-hf)"
    )


def check_images(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for an aspect ratio, merge type or list of canvases that is not LLaVA's.

    config: original-format values, with `mm_vision_config`.
    """
    aspect = config.get("image_aspect_ratio")
    if aspect not in (None, "square", "pad", "anyres"):
        raise ValueError(
            f"{where}: image_aspect_ratio must be pad, anyres or square, got {aspect!r}"
        )
    merge = config.get("mm_patch_merge_type") or "flat"
    if merge not in MERGE_TYPES:
        raise ValueError(
            f"{where}: mm_patch_merge_type must be one of {', '.join(MERGE_TYPES)}, got {merge!r}"
        )
    if aspect == "anyres":
        tile = config["mm_vision_config"]["image_size"]
        read_pinpoints(config.get("image_grid_pinpoints"), tile, where)
    window, context = config.get("sliding_window"), config["max_position_embeddings"]
    if window is not None and window < context:
        raise ValueError(
            f"{where}: attention over a sliding window of {window} tokens is not supported, and "
            f"max_position_embeddings allows {context}. Where prompts and answers stay within "
            f"{window} tokens the window changes nothing: set max_position_embeddings to {window}, "
            "or sliding_window to null where the checkpoint was trained without, as LLaVA's are"
        )


def choose_merge_type(config: dict[str, Any], merge_type: str | None, where: str) -> None:
    """Put `merge_type` into original-format config values; None leaves the checkpoint's own.

    Raises ValueError for one that this checkpoint cannot have.
    """
    trained = config.get("mm_patch_merge_type") or "flat"
    if merge_type is None or merge_type == trained:
        return
    if merge_type not in MERGE_TYPES:
        raise ValueError(f"merge_type must be one of {', '.join(MERGE_TYPES)}, got {merge_type!r}")
    if config.get("image_aspect_ratio") != "anyres":
        raise ValueError(
            f"merge_type {merge_type!r} is for models that tile pictures (image_aspect_ratio "
            f"anyres); {where} does not: leave it out"
        )
    if "unpad" in merge_type:
        raise ValueError(
            f"merge_type {merge_type!r} needs an image_newline, which {where} does not have (its "
            f"mm_patch_merge_type is {trained!r})"
        )
    config["mm_patch_merge_type"] = merge_type


def choose_reading(
    config: dict[str, Any], processing: str, where: str, *, pads: bool = False
) -> None:
    """Put into original-format config values how pictures are prepared, see `llava.anyres`.

    llava-hf's processor of LLaVA-1.5 crops the centre, unless it says that it `pads`.

    Raises ValueError, naming `where`, for a choice of canvas without tiles, or one of other tiles.
    """
    if config.get("image_aspect_ratio") == "anyres":
        fixed_canvas(processing, config["mm_vision_config"]["image_size"])
        config["anyres_reading"] = processing
    elif processing == "llava-hf":
        config["image_aspect_ratio"] = "pad" if pads else "square"
    elif processing != "llava":
        raise ValueError(
            f"processing {processing!r} chooses the canvas of models that tile pictures "
            f"(image_aspect_ratio anyres), and {where} does not: leave it out"
        )


def from_original(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The original-format config values of `folder`, with what its decoder's class adds to them.

    Raises ValueError for a list of several layers.
    """
    classes = (values.get("model_type"), *(values.get("architectures") or []))
    language = "mistral" if any("mistral" in str(name).lower() for name in classes) else "llama"
    field, vision = "mm_vision_select_layer", values.get("mm_vision_config")
    return {
        **_TEXT_DEFAULTS[language],
        **values,
        field: feature_layer(values, field, folder),
        "mm_vision_config": None if vision is None else vision_config(vision),
    }


def feature_layer(values: Mapping[str, Any], field: str, folder: Path) -> int:
    """The tower's layer that LLaVA looks at: an integer in `field`, or a list of one.

    Raises ValueError for several layers.
    """
    layer = values.get(field)
    layers = layer if isinstance(layer, list) else [-2 if layer is None else layer]
    if len(layers) != 1 or not json_files.is_one_of(layers[0], int):
        raise ValueError(
            f"{folder}/config.json: {field} must be one layer of the vision tower, got "
            f"{json_files.shorten(layer)}. A projector that was trained on several at once is not "
            "supported; where it was trained on one, put its number here (LLaVA-1.5 and 1.6: -2)"
        )
    return layers[0]


def end_tokens(config: Mapping[str, Any], folder: Path, rows: float) -> tuple[int, ...]:
    """Ids that end an answer, by generation_config.json of `folder` and by config.json; maybe none.

    As in transformers, generation_config.json decides where it names any. What is obeyed beside it
    is a list in config.json: a single id there is often left over from another tool.

    config: original-format values.
    rows: of the vocabulary.

    Raises ValueError for what is no id of the vocabulary, naming the file.
    """
    file = folder / "generation_config.json"
    named = json_files.read(file).get("eos_token_id") if file.is_file() else None
    ends = _ids(named, f"{file}: eos_token_id", rows)
    named = config.get("eos_token_id")
    if not ends or isinstance(named, list):
        ends += _ids(named, f"eos_token_id in config.json of {folder}", rows)
    return tuple(dict.fromkeys(ends))


def _either_end(outer: Any, inner: Any) -> dict[str, Any]:
    """`eos_token_id` of llava-hf's config.json and of the text_config in it: lists are joined."""
    named = [each for each in (outer, inner) if each is not None]
    if any(isinstance(each, list) for each in named):
        lists = [each if isinstance(each, list) else [each] for each in named]
        return {"eos_token_id": [end for ends in lists for end in ends]}
    return {"eos_token_id": named[0]} if named else {}


def _ids(value: Any, where: str, rows: float) -> list[int]:
    """The ids in a field that may hold one, several or none."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for each in ids:
        if not json_files.is_one_of(each, int) or not 0 <= each < rows:
            raise ValueError(
                f"{where} must be the id of a token, from 0 to {rows - 1}, or a list of ids, got "
                f"{json_files.shorten(value)}: correct it, or take it out"
            )
    return ids


def from_hf(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Original-format config values for the llava-hf config of `folder`.

    Raises ValueError for what LLaVA does not have: another language model, tower, projector.
    """
    text, vision = values["text_config"], values["vision_config"]
    tiled, language = values["model_type"] == "llava_next", text.get("model_type", "llama")
    only = {
        "text_config.model_type": (language, language if language in _TEXT_DEFAULTS else "llama"),
        "vision_config.model_type": (
            vision.get("model_type", "clip_vision_model" if vision else None),
            "clip_vision_model",
        ),
        "projector_hidden_act": (values.get("projector_hidden_act", "gelu"), "gelu"),
        "vision_feature_select_strategy": (
            values.get("vision_feature_select_strategy", "default"),
            "default",
        ),
    }
    for key, (value, expected) in only.items():
        if value != expected:
            raise ValueError(f"{folder}/config.json: {key} must be {expected!r}, got {value!r}")
    vision, keys = vision_config(vision), _NEXT_KEYS if tiled else OWN_KEYS
    pinpoints = values.get("image_grid_pinpoints") or _PINPOINTS
    image_tokens = (values.get("image_token_index"), values.get("image_token_id"), 32000)
    return {
        **_TEXT_DEFAULTS[language],
        **{k: v for k, v in values.items() if k == "vocab_size"},
        **text,
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "dtype": values.get("dtype") or values.get("torch_dtype") or text.get("dtype"),
        **_either_end(values.get("eos_token_id"), text.get("eos_token_id")),
        # Old configs have it in text_config only, beside a false that transformers wrote.
        "tie_word_embeddings": any(c.get("tie_word_embeddings") for c in (values, text)),
        "image_token_index": next(i for i in image_tokens if i is not None),
        "mm_vision_config": vision,
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": feature_layer(values, "vision_feature_layer", folder),
        "mm_vision_select_feature": "patch",
        **{key: values.get(key, default) for key, default in keys.items()},
        **({"image_grid_pinpoints": pinpoints} if tiled else {}),
    }
