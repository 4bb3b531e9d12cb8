"""Tiny random LLaVA-1.6 checkpoints, written as the published ones are (see `checkpoints`).

The vision tower and the newline are in the weights. Beside them lies no CLIP that has tensors, only
the config and the processor of one, because the tiny sizes are no published ones.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.model import LlavaLlamaForCausalLM

from . import checkpoints, tiny_next
from .checkpoints import EXTRA_ROWS, LAYERS, VISION, edit_json, write_json, write_weights

NEWLINE = "model.image_newline"


@lru_cache(maxsize=2)
def reference(tile: int = tiny_next.TILE) -> LlavaLlamaForCausalLM:
    """The model that all of them hold; its numbers are float16's. Not to be changed in place."""
    made = tiny_next.model(seed=5, layers=LAYERS, image_size=tile)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(parameter.half())
    return made


@lru_cache(maxsize=2)
def weights(tile: int = tiny_next.TILE) -> dict[str, Tensor]:
    """Its tensors in float16, under LLaVA's names. Not to be changed in place."""
    nested = VISION.removesuffix("vision_model.")
    state = reference(tile).state_dict()
    return {
        k if k.startswith(VISION) else k.replace(nested, VISION): v.half() for k, v in state.items()
    }


def write_original(
    folder: Path, files: str = "safetensors-shards", tile: int = tiny_next.TILE, **config: Any
) -> Path:
    """liuhaotian/llava-v1.6-vicuna-7b: everything in safetensors shards; Ellipsis takes out.

    tile: pixels along a tile, a multiple of 56.
    """
    checkpoints.write_original(folder, files)
    for file in [*folder.glob("*model*.safetensors"), folder / "mm_projector.bin"]:
        file.unlink()
    write_weights(folder, weights(tile), files)
    clip = folder / checkpoints.CLIP
    (clip / "pytorch_model.bin").unlink()
    vision = {**json.loads((clip / "config.json").read_text())["vision_config"], "image_size": tile}
    edit_json(clip / "config.json", vision_config=vision)
    edit_json(clip / "preprocessor_config.json", size=tile, crop_size=tile)
    times = tile // tiny_next.TILE
    values = {
        **checkpoints.published_config("llava-v1.6-vicuna-7b"),
        **{k: v for k, v in checkpoints.original_config().items() if k in _SIZES},
        "image_grid_pinpoints": [[times * a, times * b] for a, b in tiny_next.PINPOINTS],
        "mm_vision_tower": checkpoints.CLIP,
        "torch_dtype": "float16",
        **config,
    }
    write_json(folder / "config.json", {k: v for k, v in values.items() if v is not ...})
    return folder


_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "mm_hidden_size"),
)


def write_hf(folder: Path, tokenizer: str = "model", **config: Any) -> Path:
    """llava-hf/llava-v1.6-vicuna-7b-hf: 64 random rows more in the vocabulary."""
    checkpoints.write_hf(folder, "safetensors", tokenizer)
    (folder / "model.safetensors").unlink()
    generator = torch.Generator().manual_seed(9)
    state = dict(weights())
    newline = state.pop(NEWLINE)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.randn(EXTRA_ROWS, state[name].shape[1], generator=generator) * 0.02
        state[name] = torch.cat([state[name], rows.half()])
    named = {**checkpoints.hf_names(state), "image_newline": newline}
    write_weights(folder, named, "safetensors-shards")
    published = checkpoints.published_config("llava-v1.6-vicuna-7b-hf")
    edit_json(
        folder / "config.json",
        architectures=published["architectures"],
        model_type=published["model_type"],
        image_grid_pinpoints=tiny_next.PINPOINTS,
        use_image_newline_parameter=True,
        **config,
    )
    edit_json(
        folder / "preprocessor_config.json",
        image_processor_type="LlavaNextImageProcessor",
        image_grid_pinpoints=tiny_next.PINPOINTS,
        do_pad=True,
    )
    return folder
