"""Conversion of checkpoints between the two formats of one model; merging of LoRA adapters.

LLaVA's own ("original": liuhaotian/llava-v1.5-7b and others, the vision tower in a CLIP checkpoint
of its own, or inside where it was trained along, as in LLaVA-1.6) and the converted one
("llava-hf": llava-hf/llava-1.5-7b-hf and llava-v1.6-vicuna-7b-hf, one set of files).

    python -m llava.model.checkpoint convert SRC DST --to llava-hf
    python -m llava.model.checkpoint merge LORA BASE DST
"""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..anyres import read_pinpoints
from ..common import json_files, program
from ..common.image_processor import PLAIN_FILE, describe_processor
from .config_json import OWN_KEYS
from .hf_processor import hf_tokenizer, write_processor
from .language_model.llava_llama import LlavaConfig
from .lora import TRAINABLES, add_pairs, demand_no_adapter, demand_tensors, put_whole, read_adapter
from .reading import Checkpoint, assemble, read_checkpoint, read_config, resolve
from .shapes import EMBEDDING, HEAD
from .tensor_names import VISION, original_names, rename
from .vision_tower import was_trained
from .weights import read_projector, read_tensors, write_json, write_tensors, write_vision_tower

#: Rows that llava-hf appends to the vocabulary: <image>, <pad>, and padding to a multiple of 64.
EXTRA_ROWS = 64
_VOCABULARY = (EMBEDDING, HEAD)
_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
#: Of these, what stays as it is beside a tokenizer that transformers writes.
_KEPT_FILES = ("tokenizer.model", "generation_config.json")


def convert(
    source: str | Path,
    target: Path,
    to: str,
    vision_tower: str | Path | None = None,
    *,
    offline: bool = False,
) -> None:
    """Write the checkpoint in `source` to `target` in the format `to`, as safetensors.

    Every tensor keeps its values and dtype. "original" puts the vision tower into
    `target`/vision_tower, in CLIP's format; where it was trained along (LLaVA-1.6) only its config,
    the tensors stay inside.
    Files of tokenizer and processor are copied; "llava-hf" has them as `AutoProcessor` wants them,
    see `hf_processor`. vision_tower, offline: see `read_checkpoint`.

    Raises FileExistsError when `target` holds anything, ValueError or FileNotFoundError for a
    damaged source or one that `to` cannot express.
    """
    _demand_free(target)
    folder = resolve(source, offline=offline)
    _write(read_checkpoint(folder, vision_tower, offline=offline), target, to)


def merge(
    lora: str | Path,
    base: str | Path,
    target: Path,
    vision_tower: str | Path | None = None,
    *,
    offline: bool = False,
) -> str:
    """Write `base` with the LoRA adapter in `lora` merged into it to `target`; returns its format.

    The format is the base's; every tensor that the adapter does not change keeps its values, and
    all keep their dtype. LLaVA's own adapters come with the config.json of the merged model, whose
    base may be a language model alone; to any other the base's config.json applies. The vision
    tower is chosen as by `read_checkpoint`, as are vision_tower and offline.

    Raises FileExistsError when `target` holds anything, ValueError or FileNotFoundError for an
    adapter that cannot be merged (see `lora`) or does not fit the base.
    """
    _demand_free(target)
    find = partial(resolve, offline=offline)
    folder, base_folder = find(lora), find(base)
    adapter = read_adapter(folder)
    demand_no_adapter(base_folder)
    config, config_folder, kind = _merged_config(folder, base_folder)
    where = f"{folder} on {base_folder}"
    state = original_names(read_tensors(base_folder), base_folder)
    state = {**read_projector(base_folder), **state}
    # A whole tower takes part in the check; a few tensors wait for the tower they belong to.
    towers = {k: v for k, v in adapter.whole.items() if k.startswith(VISION)}
    if f"{VISION}embeddings.class_embedding" in {**state, **towers}:
        towers = {}
    put_whole({k: v for k, v in adapter.whole.items() if k not in towers}, state, where)
    checkpoint = assemble(
        config_folder, config, kind, state, where, base_folder, vision_tower, find
    )
    demand_tensors([*towers, *adapter.pairs], checkpoint.state, where)
    put_whole(towers, checkpoint.state, where)
    add_pairs(adapter.pairs, checkpoint.state, where)
    if checkpoint.config.get("tie_word_embeddings"):
        # An adapter of one of two tied tables makes them two.
        tables = (checkpoint.state[HEAD], checkpoint.state[EMBEDDING])
        checkpoint.config["tie_word_embeddings"] = torch.equal(*tables)
    _write(checkpoint, target, kind)
    return kind


def _merged_config(folder: Path, base: Path) -> tuple[dict[str, Any], Path, str]:
    """Original-format config values of a merged model, the folder they are from, its format."""
    try:
        config, kind = read_config(base)
    except ValueError as error:
        # Not a LLaVA: the language model that a LLaVA was made of while the adapter was trained.
        lacks = [n for n in ("config.json", TRAINABLES) if not (folder / n).is_file()]
        if lacks:
            raise ValueError(
                f"{error}; or a language model, for an adapter with LLaVA's config.json and "
                f"{TRAINABLES} (written at the end of its training), but {folder} lacks "
                f"{' and '.join(lacks)}"
            ) from None
        config, kind = json_files.read(base / "config.json"), "original"
    if kind == "llava-hf" or not (folder / "config.json").is_file():
        return config, base, kind
    # The adapter's own, but the tensors are of the base's dtype.
    dtypes = {key: config.get(key) for key in ("dtype", "torch_dtype")}
    config, written = read_config(folder)
    if written != kind:
        raise ValueError(
            f"{folder}/config.json is llava-hf's, the base is in the original format: convert the "
            "base to llava-hf first"
        )
    return {**config, **dtypes}, folder, kind


def _demand_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; choose a new or an empty folder")


def _write(checkpoint: Checkpoint, target: Path, to: str) -> None:
    write = _to_hf if to == "llava-hf" else _to_original
    values, state = write(checkpoint.config, dict(checkpoint.state))
    if checkpoint.config.get("tie_word_embeddings"):
        del state[rename(HEAD, "original", to)]
    tokenizer = None
    if to == "llava-hf":
        tokenizer = hf_tokenizer(checkpoint.tokenizer_folder, values["image_token_index"])
    target.mkdir(parents=True, exist_ok=True)
    tower = target
    if to == "original":
        tower = target / "vision_tower"
        inside = any(name.startswith(VISION) for name in state)
        tensors = {} if inside else checkpoint.state
        write_vision_tower(tower, checkpoint.config["mm_vision_config"], tensors)
    for name in _TOKENIZER_FILES if tokenizer is None else _KEPT_FILES:
        if (checkpoint.tokenizer_folder / name).is_file():
            shutil.copyfile(checkpoint.tokenizer_folder / name, target / name)
    if tokenizer is not None:
        write_processor(target, tokenizer, checkpoint.processor_folder, values)
    elif description := describe_processor(checkpoint.processor_folder):
        # Where it was nested it comes out alone, which all releases of transformers read.
        path, processor = description
        if path.name == PLAIN_FILE:
            shutil.copyfile(path, tower / PLAIN_FILE)
        else:
            write_json(tower / PLAIN_FILE, processor)
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
    if _tiles(config) or was_trained(config):
        return {**values, "unfreeze_mm_vision_tower": True}, state
    return values, {k: v for k, v in state.items() if not k.startswith(VISION)}


def _tiles(config: dict[str, Any]) -> bool:
    """Whether it is LLaVA-1.6, whose vision tower was trained along, also where nothing says so."""
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
    llava_keys = {key: config.get(key, getattr(LlavaConfig, key)) for key in OWN_KEYS}
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
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "vision_feature_layer": config.get(
            "mm_vision_select_layer", LlavaConfig.mm_vision_select_layer
        ),
        "vision_feature_select_strategy": "default",
        "vocab_size": text["vocab_size"],
        "text_config": text,
        "vision_config": {**config["mm_vision_config"], "model_type": "clip_vision_model"},
        "dtype": text.get("dtype") or text.get("torch_dtype"),
        **llava_keys,
    }, {rename(k, "original", "llava-hf"): v for k, v in state.items()}


def _add_offline(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--offline", action="store_true", help="download nothing; the hub's cache is read"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=program.name("llava.model.checkpoint"), description=__doc__
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("convert", help="write a checkpoint in another format")
    command.add_argument("source")
    command.add_argument("target", type=Path)
    command.add_argument("--to", choices=("original", "llava-hf"), required=True)
    command.add_argument("--vision-tower", help="folder of the CLIP checkpoint")
    _add_offline(command)
    command = commands.add_parser("merge", help="merge a LoRA adapter into its base")
    command.add_argument("lora", help="folder of the adapter, PEFT's or LLaVA's")
    command.add_argument("base", help="what it was trained on: a folder, or a name on the hub")
    command.add_argument("target", type=Path)
    command.add_argument("--vision-tower", help="folder of the CLIP checkpoint")
    _add_offline(command)
    args = parser.parse_args(argv)
    try:
        if "lora" in args:
            base, tower = args.base, args.vision_tower
            to = merge(args.lora, base, args.target, tower, offline=args.offline)
        else:
            to = args.to
            convert(args.source, args.target, to, args.vision_tower, offline=args.offline)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.target} ({to} format)")
    return 0


if __name__ == "__main__":
    program.run(main)
