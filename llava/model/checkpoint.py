"""Conversion of checkpoints between the two formats that hold the same model.

LLaVA's own ("original": liuhaotian/llava-v1.5-7b and others, the vision tower in a CLIP checkpoint
of its own, or inside where it was trained along, as in LLaVA-1.6) and the converted one
("llava-hf": llava-hf/llava-1.5-7b-hf and llava-v1.6-vicuna-7b-hf, one set of files).

    python -m llava.model.checkpoint convert SRC DST --to llava-hf
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava import program

from ..anyres import read_pinpoints
from .config_json import OWN_KEYS
from .language_model.llava_llama import LlavaConfig
from .reading import PROCESSOR_FILE, read_checkpoint, resolve
from .weights import VISION, rename, write_json, write_tensors, write_vision_tower

#: Rows that llava-hf appends to the vocabulary: <image>, <pad>, and padding to a multiple of 64.
EXTRA_ROWS = 64
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)


def convert(
    source: str | Path, target: Path, to: str, vision_tower: str | Path | None = None
) -> None:
    """Write the checkpoint in `source` to `target` in the format `to`, as safetensors.

    Every tensor keeps its values and dtype. "original" puts the vision tower into
    `target`/vision_tower, in CLIP's format; of LLaVA-1.6 only its config, the tensors stay inside.
    Files of tokenizer and processor are copied.

    Raises FileExistsError when `target` holds anything, ValueError or FileNotFoundError for a
    damaged source or one that `to` cannot express.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; choose a new or an empty folder")
    checkpoint = read_checkpoint(resolve(source), vision_tower)
    write = _to_hf if to == "llava-hf" else _to_original
    values, state = write(checkpoint.config, dict(checkpoint.state))
    target.mkdir(parents=True, exist_ok=True)
    tower = target
    if to == "original":
        tower = target / "vision_tower"
        inside = any(name.startswith(VISION) for name in state)
        tensors = {} if inside else checkpoint.state
        write_vision_tower(tower, checkpoint.config["mm_vision_config"], tensors)
    for name, folder, place in (
        *((name, checkpoint.tokenizer_folder, target) for name in _TOKENIZER_FILES),
        (PROCESSOR_FILE, checkpoint.processor_folder, tower),
    ):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, place / name)
    write_tensors(target, state)
    # Last, so that a conversion that was cut short is not taken for a checkpoint.
    write_json(target / "config.json", values)


def _added_rows(rows: Tensor) -> Tensor:
    """What is appended to a vocabulary table (n, d): its mean row, so that none can win."""
    mean = rows.double().mean(0, keepdim=True).to(rows.dtype)
    return mean.expand(EXTRA_ROWS, -1)


def _to_original(config: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict, dict]:
    """The original format's config and tensors. Rows that `_to_hf` would append are left out."""
    values = {k: v for k, v in config.items() if k not in ("mm_vision_config", "_name_or_path")}
    size = config.get("image_token_index")
    tables = [state[name] for name in _VOCABULARY]
    if size is not None and all(torch.equal(t[size:], _added_rows(t[:size])) for t in tables):
        state.update((name, state[name][:size]) for name in _VOCABULARY)
        values["vocab_size"] = size
        del values["image_token_index"]
    values.update(
        model_type="llava",
        architectures=["LlavaLlamaForCausalLM"],
        mm_vision_tower="vision_tower",
    )
    if _tiles(config):
        return {**values, "unfreeze_mm_vision_tower": True}, state
    return values, {k: v for k, v in state.items() if not k.startswith(VISION)}


def _tiles(config: dict[str, Any]) -> bool:
    """Whether it is LLaVA-1.6, which trained its vision tower along."""
    return config.get("image_aspect_ratio") == "anyres"


def _to_hf(config: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict, dict]:
    """llava-hf's config and tensors. Its vocabulary needs rows for <image> and <pad>: unless the
    config already names an image_token_index, EXTRA_ROWS rows are appended."""
    projector = config.get("mm_projector_type", LlavaConfig.mm_projector_type)
    if projector != "mlp2x_gelu":
        raise ValueError(f"llava-hf's projector is mlp2x_gelu, this checkpoint has {projector!r}")
    merge = config.get("mm_patch_merge_type")
    if _tiles(config) and merge != "spatial_unpad":
        raise ValueError(
            f"llava-hf's LLaVA-1.6 merges by spatial_unpad, this checkpoint by {merge!r}"
        )
    if config.get("mm_token_adapter") is not None:
        raise ValueError("llava-hf's format has no place for Senna's token adapter")
    image_token = config.get("image_token_index")
    if image_token is None:
        image_token = len(state["model.embed_tokens.weight"])
        for name in _VOCABULARY:
            state[name] = torch.cat([state[name], _added_rows(state[name])])
    text = {k: v for k, v in config.items() if not k.startswith("mm_")}
    left_out = ("architectures", "image_aspect_ratio", "image_token_index", "image_grid_pinpoints")
    for key in (*left_out, "_name_or_path"):
        text.pop(key, None)
    text.update(model_type="llama", vocab_size=len(state["model.embed_tokens.weight"]))
    # What a missing key means differs: the class's values in the original format.
    own = {key: config.get(key, getattr(LlavaConfig, key)) for key in OWN_KEYS}
    kind = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    if _tiles(config):
        tile = config["mm_vision_config"]["image_size"]
        pinpoints = read_pinpoints(config["image_grid_pinpoints"], tile, "config.json")
        kind = {
            "architectures": ["LlavaNextForConditionalGeneration"],
            "model_type": "llava_next",
            "image_grid_pinpoints": [list(pair) for pair in pinpoints],
        }
    return {
        **kind,
        "image_token_index": image_token,
        "pad_token_id": image_token + 1,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": config.get(
            "mm_vision_select_layer", LlavaConfig.mm_vision_select_layer
        ),
        "vision_feature_select_strategy": "default",
        "vocab_size": text["vocab_size"],
        "text_config": text,
        "vision_config": {**config["mm_vision_config"], "model_type": "clip_vision_model"},
        "dtype": text.get("dtype") or text.get("torch_dtype"),
        **own,
    }, {rename(k, "original", "llava-hf"): v for k, v in state.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llava.model.checkpoint", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("convert", help="write a checkpoint in another format")
    command.add_argument("source")
    command.add_argument("target", type=Path)
    command.add_argument("--to", choices=("original", "llava-hf"), required=True)
    command.add_argument("--vision-tower", help="folder of the CLIP checkpoint")
    args = parser.parse_args(argv)
    try:
        convert(args.source, args.target, args.to, args.vision_tower)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.target} ({args.to} format)")
    return 0


if __name__ == "__main__":
    program.run(main)
