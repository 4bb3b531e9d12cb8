"""Checkpoints on disk: formats, tensor names, and conversion between formats.

Two formats hold the same model: LLaVA's own ("original": liuhaotian/llava-v1.5-7b and others, the
vision tower in a CLIP checkpoint of its own) and the converted one ("llava-hf":
llava-hf/llava-1.5-7b-hf, one set of files). `NAMES` is the only place that knows how their tensors
are called. Which format a folder holds is read from its config.json, never from its name.

    python -m llava.model.checkpoint convert SRC DST --to llava-hf
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

#: One row per group of tensors: prefix in the original format, in llava-hf files, in the module
#: tree of transformers' own LLaVA, and in a CLIP checkpoint. The first row that fits is used.
NAMES: tuple[tuple[str, str, str, str | None], ...] = (
    (
        "model.vision_tower.vision_tower.vision_model.",
        "vision_tower.vision_model.",
        "model.vision_tower.",
        "vision_model.",
    ),
    (
        "model.mm_projector.0.",
        "multi_modal_projector.linear_1.",
        "model.multi_modal_projector.linear_1.",
        None,
    ),
    (
        "model.mm_projector.2.",
        "multi_modal_projector.linear_2.",
        "model.multi_modal_projector.linear_2.",
        None,
    ),
    ("lm_head.", "language_model.lm_head.", "lm_head.", None),
    (
        "model.embed_tokens.",
        "language_model.model.embed_tokens.",
        "model.language_model.embed_tokens.",
        None,
    ),
    ("model.layers.", "language_model.model.layers.", "model.language_model.layers.", None),
    ("model.norm.", "language_model.model.norm.", "model.language_model.norm.", None),
)
FORMATS = ("original", "llava-hf", "stock", "clip")
_VISION = "model.vision_tower.vision_tower."

#: Buffers that old checkpoints carry and that are computed, not loaded.
LEGACY_BUFFERS = (".rotary_emb.inv_freq", ".position_ids")

#: Rows that llava-hf appends to the vocabulary: <image>, <pad>, and padding to a multiple of 64.
EXTRA_ROWS = 64


@lru_cache(maxsize=1)
def _nested_tower() -> bool:
    """Whether transformers keeps CLIP's vision modules one level deeper (early 5.x did)."""
    with torch.device("meta"):
        tiny = CLIPVisionConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
        return hasattr(CLIPVisionModel(tiny), "vision_model")


def rename(name: str, source: str, target: str) -> str:
    """Translate a tensor name between "original", "llava-hf", "stock", "clip" and "module".

    "module" is the module tree of this package: the original names, less a level in the vision
    tower that transformers dropped. Names that no row knows are returned as they are.
    """
    if source == "module":
        if name.startswith(_VISION) and not _nested_tower():
            name = name.replace(_VISION, _VISION + "vision_model.", 1)
        source = "original"
    final, target = target, "original" if target == "module" else target
    columns = FORMATS.index(source), FORMATS.index(target)
    for row in NAMES:
        old, new = row[columns[0]], row[columns[1]]
        if old is not None and new is not None and name.startswith(old):
            name = new + name[len(old) :]
            break
    if final == "stock" and _nested_tower() and name.startswith("model.vision_tower."):
        name = name.replace("model.vision_tower.", "model.vision_tower.vision_model.", 1)
    if final == "module" and name.startswith(_VISION) and not _nested_tower():
        name = name.replace(_VISION + "vision_model.", _VISION, 1)
    return name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError naming the file when it is missing or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path.name} in {path.parent}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, got {type(value).__name__}")
    return value


def detect_format(config: Mapping[str, Any], where: str) -> str:
    """ "original" or "llava-hf", from the contents of config.json.

    Raises ValueError for anything else, naming what was found.
    """
    kind = config.get("model_type")
    if "text_config" in config and "vision_config" in config and kind == "llava":
        return "llava-hf"
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


def _load_shard(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} is named in the index but missing")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files older than torch 1.6's zip format cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"cannot read weight file {path}: {error}") from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, under their names on disk, without legacy buffers.

    Reads safetensors or .bin, sharded or not. Raises FileNotFoundError when there are none.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        single, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            files = sorted(set(read_json(index).get("weight_map", {}).values()))
            shards = [folder / name for name in files]
        elif single.is_file():
            shards = [single]
        else:
            continue
        tensors = {k: v for shard in shards for k, v in _load_shard(shard).items()}
        return {k: v for k, v in tensors.items() if not k.endswith(LEGACY_BUFFERS)}
    raise FileNotFoundError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin, or their "
        ".index.json with shards"
    )


def read_projector(folder: Path) -> dict[str, Tensor]:
    """The projector in `mm_projector.bin`, under original names; empty without that file."""
    path = folder / "mm_projector.bin"
    if not path.is_file():
        return {}
    return {
        "model.mm_projector." + name.split("mm_projector.", 1)[-1]: tensor
        for name, tensor in _load_shard(path).items()
    }


def read_vision_tower(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors under original names) of a CLIP checkpoint folder.

    Full CLIP checkpoints are fine; their text half is left out. Raises ValueError for a model
    that is not CLIP.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind == "clip":
        config = config.get("vision_config", {})
    elif kind != "clip_vision_model":
        raise ValueError(
            f"vision tower {folder} has model_type {kind!r}, expected clip or clip_vision_model"
        )
    tensors = {
        rename(name, "clip", "original"): tensor
        for name, tensor in read_tensors(folder).items()
        if name.startswith("vision_model.")
    }
    if not tensors:
        raise ValueError(f"vision tower {folder} has no tensors named vision_model.*")
    return CLIPVisionConfig(**config).to_dict(), tensors


def write_vision_tower(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Write the tower's tensors in `state` (original names) as a CLIP checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = NAMES[0][0]
    tensors = {rename(k, "original", "clip"): v for k, v in state.items() if k.startswith(prefix)}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "clip_vision_model"}, indent=2)
    )
    save_torch_state_dict(tensors, folder)


def _to_hf(config: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict[str, Any], dict]:
    """llava-hf's config and tensors. Its vocabulary needs rows for <image> and <pad>: unless the
    config already names an image_token_index, EXTRA_ROWS rows with the mean are appended."""
    image_token = config.get("image_token_index")
    if image_token is None:
        image_token = state["model.embed_tokens.weight"].shape[0]
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = state[name]
            mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
            state[name] = torch.cat([rows, mean.expand(EXTRA_ROWS, -1)])
    text = {k: v for k, v in config.items() if not k.startswith("mm_")}
    for key in ("architectures", "image_aspect_ratio", "image_token_index", "transformers_version"):
        text.pop(key, None)
    text.update(model_type="llama", vocab_size=state["model.embed_tokens.weight"].shape[0])
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": image_token,
        "pad_token_id": image_token + 1,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "default",
        "vocab_size": text["vocab_size"],
        "text_config": text,
        "vision_config": {**config["mm_vision_config"], "model_type": "clip_vision_model"},
        "dtype": text.get("dtype") or text.get("torch_dtype"),
    }, {rename(k, "original", "llava-hf"): v for k, v in state.items()}


def convert(source: Path, target: Path, to: str, vision_tower: str | None = None) -> None:
    """Write the checkpoint in `source` to `target` in the format `to`, as safetensors.

    Every tensor keeps its values and dtype. "original" puts a vision tower, when there is one,
    into `target`/vision_tower, in CLIP's format. Tokenizer and processor files are copied.
    Raises FileExistsError when `target` holds a checkpoint already.
    """
    from .builder import read_checkpoint

    if (target / "config.json").exists():
        raise FileExistsError(f"{target} already holds a checkpoint; choose an empty folder")
    config, state = read_checkpoint(source, vision_tower)
    target.mkdir(parents=True, exist_ok=True)
    if to == "llava-hf":
        values, state = _to_hf(config, state)
    else:
        write_vision_tower(target / "vision_tower", config["mm_vision_config"], state)
        state = {k: v for k, v in state.items() if not k.startswith(NAMES[0][0])}
        values = {
            k: v for k, v in config.items() if k not in ("mm_vision_config", "mm_vision_folder")
        }
        values.update(
            model_type="llava",
            architectures=["LlavaLlamaForCausalLM"],
            mm_vision_tower="vision_tower",
        )
    (target / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    save_torch_state_dict(state, target)
    for name in (
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "preprocessor_config.json",
    ):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llava.model.checkpoint", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("convert", help="write a checkpoint in another format")
    command.add_argument("source", type=Path)
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
    sys.exit(main())
