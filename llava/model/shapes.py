"""Which tensors a config calls for, and whether a checkpoint has them: exactly these, and no other.

Tensors go by the original format's names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..common import json_files
from .language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from .tensor_names import rename

#: The two tables that `tie_word_embeddings` makes one.
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_KEYS = "model.layers.0.self_attn.k_proj.weight"

logger = logging.getLogger(__name__)


def tie_head(config: dict[str, Any], state: dict[str, Tensor], where: str) -> None:
    """With `tie_word_embeddings`, the head is the embedding; of the two, one may be left out.

    Where both are there and differ, they stay two, as in transformers: the flag is then wrong, and
    becomes false.
    """
    if not config.get("tie_word_embeddings"):
        return
    head, table = state.get(HEAD), state.get(EMBEDDING)
    if head is not None and table is not None and not torch.equal(head, table):
        logger.warning(
            "%s: tie_word_embeddings is true, but lm_head.weight differs from the embeddings: both "
            "are used as they are, as in transformers. Set it to false.",
            where,
        )
        config["tie_word_embeddings"] = False
    elif head is None and table is not None:
        state[HEAD] = table
    elif table is None and head is not None:
        state[EMBEDDING] = head


def check_key_heads(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> None:
    """Say which num_key_value_heads the weights have, where config.json leaves it out."""
    keys, heads = state.get(_KEYS), config["num_attention_heads"]
    if config.get("num_key_value_heads") is not None or keys is None:
        return
    groups, rest = divmod(keys.shape[0], config.get("head_dim") or config["hidden_size"] // heads)
    if rest == 0 and 0 < groups < heads:
        raise ValueError(
            f"{where} leaves num_key_value_heads out, which then is num_attention_heads, {heads}; "
            f'but the weights have {groups} key heads: put "num_key_value_heads": {groups} there'
        )


def describe_tensors(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """The expected shapes; whatever is wrong with the config is said of the file `where`."""
    # Errors of transformers' many checks have many types, and some do not name the field.
    if reason := _refusal(config):
        wrong = [name for name, value in config.items() if _refusal({name: value})]
        shown = ", ".join(f"{name} {json_files.shorten(config[name])}" for name in wrong)
        raise ValueError(f"{where}: transformers does not take {shown or 'it'} ({reason})")
    try:
        return expected_shapes(config)
    except Exception as error:
        raise ValueError(f"{where}: {error}") from error


def _refusal(values: Mapping[str, Any]) -> str:
    """Why no LlavaConfig can be made of values; empty when one can."""
    try:
        make_config(values)
    except Exception as error:
        return json_files.shorten(str(error)) or type(error).__name__
    return ""


def make_config(values: Mapping[str, Any]) -> LlavaConfig:
    """A LlavaConfig from original-format values; the dtype is the loader's business."""
    # Tensors are checked to be whole, so that what says how training held them is left over.
    left_out = ("model_type", "torch_dtype", "dtype", "quantization_config")
    kept = {k: v for k, v in values.items() if k not in left_out and v is not None}
    config = LlavaConfig(**kept)
    if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
        # A token that was added without a row; what pads, the tokenizer says.
        config.pad_token_id = None
    return config


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

    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = {k: v for k, v in expected.items() if k not in shapes}
    if missing:
        raise ValueError(
            f"{where} lacks {len(missing)} of {len(expected)} tensors: expected {some(missing)}"
        )
    unknown = {k: v for k, v in shapes.items() if k not in expected}
    if unknown:
        raise ValueError(
            f"{where} has tensors that its config.json does not call for: {some(unknown)}"
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(
                f"{where}: {rename(name, 'original', names)} has shape {list(shapes[name])}, "
                f"expected {list(shape)} by config.json"
            )
