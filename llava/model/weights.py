"""The files that hold a checkpoint's tensors, read without running anything in them.

Safetensors, or `.bin` through torch's restricted unpickler, mapped into memory where possible.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig

from ..common import json_files
from .config_fields import check_vision_config, vision_fields
from .tensor_names import VISION, rename

#: Buffers that old checkpoints carry and that are computed, not loaded.
LEGACY_BUFFERS = (".rotary_emb.inv_freq", ".position_ids")

#: Largest file that is written.
SHARD_SIZE = "5GB"

logger = logging.getLogger(__name__)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises FileNotFoundError or ValueError, naming it."""
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} is named in the index but missing")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files older than torch 1.6's zip format cannot be mapped.
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        size = path.stat().st_size
        raise ValueError(
            f"cannot read weight file {path} ({size} bytes): {_reason(path, error)}"
        ) from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise ValueError(f"weight file {path} must hold tensors by name")
    return tensors


def _reason(path: Path, error: Exception) -> str:
    """Why a weight file was not read, in words, and what to do."""
    if isinstance(error, pickle.UnpicklingError):
        with path.open("rb") as file:
            start = file.read(2)
        # torch.save writes protocol 2; of a later one the restricted unpickler knows little.
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted or (start[:1] == b"\x80" and start[1:] > b"\x02"):
            content = f"asks for {wanted[1]}" if wanted else "was not written by torch.save"
            return (
                f"refused, because it is a pickle that {content}, and reading that could run any "
                "code. Get the weights as safetensors, or, where you trust the file, write its "
                "tensors alone into a new one"
            )
    # Only the first sentence: torch goes on to advise switching its safeguard off.
    reason = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
    return f"{reason}. It is damaged or was not downloaded completely; get it again"


def weight_files(folder: Path) -> list[Path]:
    """Files and indices of a folder that hold or name a language model's weights, sorted."""
    patterns = ("model*.safetensors*", "pytorch_model*.bin*")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, under their names on disk, without legacy buffers.

    Reads safetensors or .bin, sharded or not. Of several the first counts, as in transformers:
    model.safetensors, its index, pytorch_model.bin, its index. Raises FileNotFoundError when there
    are none or a shard is missing, ValueError for a file that cannot be read.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            if index.is_file():
                logger.warning(
                    "%s is read, as by transformers, and the shards that %s names are not.",
                    single,
                    index.name,
                )
            tensors = load_shard(single)
        elif index.is_file():
            tensors = _read_shards(index)
        else:
            continue
        return {k: v for k, v in tensors.items() if not k.endswith(LEGACY_BUFFERS)}
    there = ", ".join(path.name for path in weight_files(folder)[:3])
    raise FileNotFoundError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin, or their "
        f".index.json with shards{f'; there are {there}, but no index' if there else ''}"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of an index's shards; of one that lies in several, the copy that it names."""
    weight_map = json_files.read(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} must map tensors to files in weight_map")
    for tensor, name in weight_map.items():
        # Links are followed: the hub's cache is made of them.
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"{index}: weight_map must name files of the folder it is in, got "
                f"{json_files.shorten(name)} for {json_files.shorten(tensor)}"
            )
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        for tensor, value in load_shard(index.parent / name).items():
            if tensor not in tensors or weight_map.get(tensor) == name:
                tensors[tensor] = value
    return tensors


def read_projector(folder: Path) -> dict[str, Tensor]:
    """The projector in `mm_projector.bin`, under original names; empty without that file."""
    path = folder / "mm_projector.bin"
    if not path.is_file():
        return {}
    marker = "mm_projector."
    return {
        f"model.{marker}{name.split(marker, 1)[1]}" if marker in name else name: tensor
        for name, tensor in load_shard(path).items()
    }


def read_vision_config(folder: Path) -> dict[str, Any]:
    """All values of the vision config of a CLIP checkpoint folder.

    Full CLIP checkpoints are fine. Raises ValueError for a model that is not CLIP.
    """
    config = json_files.read(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"vision tower {folder}: config.json has model_type {kind!r}, expected clip or "
            "clip_vision_model"
        )
    values, where = config, str(folder / "config.json")
    if kind == "clip":
        if "vision_config" in config:
            json_files.check(config, where, {"vision_config": dict})
        values, where = config.get("vision_config", {}), f"{where}: vision_config"
    check_vision_config(values, where)
    return vision_config(values)


def read_vision_tower(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors under original names) of a CLIP checkpoint folder.

    The text half of a full CLIP checkpoint is left out. Raises ValueError for a model that is not
    CLIP.
    """
    config, tensors = read_vision_config(folder), read_tensors(folder)
    if not any(name.startswith("vision_model.") for name in tensors):
        # As transformers 5 saves a tower of its own.
        tensors = {"vision_model." + name: tensor for name, tensor in tensors.items()}
    tensors = {
        rename(name, "clip", "original"): tensor
        for name, tensor in tensors.items()
        if name.startswith("vision_model.")
    }
    return config, tensors


def vision_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """All values of a CLIP vision config, defaults included, without a trace of its origin.

    values: checked, see `check_vision_config`. Fields of training and generation are left out.
    """
    config = CLIPVisionConfig(**vision_fields(values)).to_dict()
    return {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")}


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write all tensors as safetensors, in shards with an index where they are large."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        # Of tensors that share memory only one would be written, and a part of one refused.
        shared = storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes
        seen.add(storage.data_ptr())
        separate[name] = tensor.clone() if shared else tensor
    save_torch_state_dict(separate, folder, max_shard_size=SHARD_SIZE)


def write_vision_tower(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Write the tower's tensors in `state` (original names) as a CLIP checkpoint folder.

    Without any there, only its config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {rename(k, "original", "clip"): v for k, v in state.items() if k.startswith(VISION)}
    write_json(folder / "config.json", {**config, "model_type": "clip_vision_model"})
    if tensors:
        write_tensors(folder, tensors)
