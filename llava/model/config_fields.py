"""What the fields of a checkpoint's config.json may hold, checked before anything is built of them.

Fields that are left out have transformers' or LLaVA's defaults; a null counts as left out only
where transformers takes it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN

from ..common import json_files

_DECODER_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
_VISION_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "num_channels",
    "projection_dim",
)
#: Beyond any published model, and small enough that building the description of one ends.
_LARGEST = {"num_hidden_layers": 1000}
_LARGEST_SIZE = 2**24
#: Sizes, lengths and ids that may be null, and what they are at least.
_LEAST = {
    "image_token_id": 0,
    "image_token_index": 0,
    "max_sequence_length": 1,
    "num_key_value_heads": 1,
    "sliding_window": 1,
    "tokenizer_model_max_length": 1,
}
#: Numbers above 0, and what they are below.
_NUMBERS = {"rms_norm_eps": 1, "layer_norm_eps": 1, "rope_theta": 1e15}
#: Kinds of scaled rotary positions, and the fields that each needs besides.
_ROPE: dict[str, dict[str, json_files.Types]] = {
    "default": {},
    "linear": {"factor": float},
    "dynamic": {"factor": float},
    "yarn": {"factor": float},
    "llama3": {"factor": float, "low_freq_factor": float, "high_freq_factor": float},
    "longrope": {"short_factor": list, "long_factor": list},
}
_ROPE_OPTIONAL = (
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "original_max_position_embeddings",
    "rope_theta",
)

#: Fields that may be null, besides those of the tower.
_OPTIONAL: dict[str, json_files.Types] = {
    **dict.fromkeys(_LEAST, int),
    "architectures": list,
    "attention_bias": bool,
    "attention_dropout": float,
    "dtype": str,
    "image_aspect_ratio": str,
    "image_grid_pinpoints": (list, str),
    "mlp_bias": bool,
    "mm_patch_merge_type": str,
    "mm_use_im_start_end": bool,
    "mm_vision_config": dict,
    "mm_vision_select_feature": str,
    "mm_vision_select_layer": (int, list),
    "mm_vision_tower": str,
    "model_type": str,
    "projector_hidden_act": str,
    "rope_parameters": dict,
    "rope_scaling": dict,
    "tie_word_embeddings": bool,
    "tokenizer_model_max_length": float,
    "torch_dtype": str,
    "unfreeze_mm_vision_tower": bool,
    "use_cache": bool,
    "vision_feature_layer": (int, list),
    "vision_feature_select_strategy": str,
}


def check_config(config: Mapping[str, Any], where: str | Path) -> None:
    """Check a LLaVA's config.json of either format, and what it says of decoder and tower.

    Raises ValueError for a field of another type, a size below 1 and sizes that do not go together;
    begins with `where`, and names the field.
    """
    nested = {"text_config": dict, "vision_config": dict}
    json_files.check(config, where, {k: v for k, v in nested.items() if k in config})
    _check_decoder(config, where)
    if "text_config" in config:
        _check_decoder(config["text_config"], f"{where}: text_config")
    for name in ("vision_config", "mm_vision_config"):
        if config.get(name) is not None:
            check_vision_config(config[name], f"{where}: {name}")


def _check_decoder(config: Mapping[str, Any], where: str | Path) -> None:
    wide = config.get("head_dim") is not None
    sizes = (*_DECODER_SIZES, "head_dim") if wide else _DECODER_SIZES
    _check_fields(config, where, sizes, _OPTIONAL)
    for name, least in _LEAST.items():
        if (value := config.get(name)) is not None and not value >= least:
            shown = json_files.shorten(value)
            raise ValueError(f"{where}: {name} must be at least {least}, got {shown}")
    for name in config.get("architectures") or []:
        if not isinstance(name, str):
            raise ValueError(
                f"{where}: architectures must be names of classes, got {json_files.shorten(name)}"
            )
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    groups = config.get("num_key_value_heads")
    if not wide:
        _demand_multiple(hidden, heads, "hidden_size", "num_attention_heads", where)
    _demand_multiple(heads, groups, "num_attention_heads", "num_key_value_heads", where)
    for name in ("rope_scaling", "rope_parameters"):
        _check_rope(config.get(name) or {}, f"{where}: {name}")


def vision_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of a CLIP vision config that say what the tower computes."""
    names = (*_VISION_SIZES, "hidden_act", "layer_norm_eps")
    return {name: config[name] for name in names if name in config}


def check_vision_config(config: Mapping[str, Any], where: str | Path) -> None:
    """Check a CLIP vision config. Raises ValueError as `check_config` does."""
    _check_fields(config, where, _VISION_SIZES, {})
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    _demand_multiple(hidden, heads, "hidden_size", "num_attention_heads", where)
    image, patch = config.get("image_size"), config.get("patch_size")
    if image is not None and patch is not None and image < patch:
        raise ValueError(f"{where}: image_size {image} is below patch_size {patch}")


def _check_fields(
    config: Mapping[str, Any],
    where: str | Path,
    sizes: Iterable[str],
    optional: Mapping[str, json_files.Types],
) -> None:
    fields: dict[str, json_files.Types] = {
        **dict.fromkeys(sizes, int),
        **dict.fromkeys(_NUMBERS, float),
        "hidden_act": str,
        "mm_projector_type": str,
    }
    present = {name: types for name, types in fields.items() if name in config}
    json_files.check(config, where, present, optional)
    for name in sizes:
        value, largest = config.get(name, 1), _LARGEST.get(name, _LARGEST_SIZE)
        if not 1 <= value <= largest:
            raise ValueError(
                f"{where}: {name} must be from 1 to {largest}, got {json_files.shorten(value)}"
            )
    for name, bound in _NUMBERS.items():
        if (value := config.get(name)) is not None and not 0 < value < bound:
            shown = json_files.shorten(value)
            raise ValueError(f"{where}: {name} must be above 0 and below {bound:g}, got {shown}")
    if (act := config.get("hidden_act")) is not None and act not in ACT2FN:
        raise ValueError(
            f"{where}: hidden_act must be an activation that transformers has (LLaVA: silu, CLIP: "
            f"quick_gelu), got {json_files.shorten(act)}"
        )


def _demand_multiple(
    whole: int | None, part: int | None, whole_name: str, part_name: str, where: str | Path
) -> None:
    if whole is not None and part is not None and whole % part:
        raise ValueError(
            f"{where}: {whole_name} must be a multiple of {part_name}, got {whole} and {part}"
        )


def _check_rope(values: Mapping[str, Any], where: str) -> None:
    """Scaling of rotary positions: its kind is `rope_type`, or `type` in older files."""
    plain = not values.keys() - {"rope_theta", "partial_rotary_factor"}
    kind = values.get("rope_type", values.get("type", "default" if plain else None))
    if not isinstance(kind, str) or kind not in _ROPE:
        raise ValueError(
            f"{where}: rope_type must be one of {', '.join(_ROPE)}, got {json_files.shorten(kind)}"
        )
    optional = dict.fromkeys(_ROPE_OPTIONAL, float)
    json_files.check(values, where, _ROPE[kind], optional)
    for name in (*_ROPE[kind], *optional):
        numbers = values.get(name)
        for number in numbers if isinstance(numbers, list) else [numbers]:
            if number is not None and not (json_files.is_one_of(number, float) and number > 0):
                raise ValueError(
                    f"{where}: {name} must be above 0, got {json_files.shorten(number)}"
                )
