"""How much memory does loading a checkpoint take, and how long?

    python -m llava.analysis.loading --model-path models/llava-v1.5-7b --dtype bfloat16
    python -m llava.analysis.loading --model-path .work/random-7b --random bin --dtype bfloat16

Says the most memory that this process has held until all weights had been read, as a multiple of
the weights that are left in it. With --random a random checkpoint of LLaVA-1.5-7B's size and files
is first written to that folder (14 GB; 3 GB with --layers 4), and removed in the end, unless --keep
leaves it for other programs.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.serialization import set_default_mmap_options, skip_data

from llava.common import flags, program
from llava.eval.run.arguments import add_checkpoint_arguments
from llava.eval.run.environment import devices_of, peak_memory_bytes
from llava.eval.run.models import load_model
from llava.model.shapes import expected_shapes
from llava.model.tensor_names import VISION, rename
from llava.model.vision_tower import CLIP_CONFIG
from llava.model.weights import write_json

FORMATS = ("bin", "safetensors")
#: Lends its tokenizer and its image processor.
DEMO = Path(__file__).resolve().parents[2] / "playground" / "demo" / "llava-demo"
#: config.json of liuhaotian/llava-v1.5-7b, what says its sizes.
CONFIG = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_vision_tower": "vision_tower",
}
_LAST_SHARD = 24 / 32  # the share of the layers that lie in the first of two files
_RANDOM = 1 << 22  # numbers that are drawn; each tensor repeats them

_Shapes = dict[str, tuple[int, ...]]


def write_random(folder: Path, files: str, layers: int, config: Mapping[str, Any] = CONFIG) -> None:
    """Write a random checkpoint in LLaVA's own format: two shards in float16, and beside them a
    vision tower in float32.

    files: "bin" or "safetensors". config: original-format values, with `mm_vision_config` where the
    tower is not the 7B's.
    """
    values = {**config, "num_hidden_layers": layers}
    vision = values.pop("mm_vision_config", CLIP_CONFIG)
    shapes = expected_shapes({**values, "mm_vision_config": vision})
    tower = folder / "vision_tower"
    tower.mkdir(parents=True)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(DEMO / name, folder / name)
    shutil.copyfile(
        DEMO / "vision_tower" / "preprocessor_config.json", tower / "preprocessor_config.json"
    )
    write_json(folder / "config.json", values)
    write_json(tower / "config.json", {**vision, "model_type": "clip_vision_model"})
    early = tuple(f"model.layers.{i}." for i in range(int(layers * _LAST_SHARD)))
    shards: list[_Shapes] = [{}, {}]
    for name, shape in shapes.items():
        if not name.startswith(VISION):
            first = name.startswith((*early, "model.embed_tokens."))
            shards[0 if first else 1][name] = shape
    stem, suffix = ("pytorch_model", "bin") if files == "bin" else ("model", "safetensors")
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        name = f"{stem}-{i:05d}-of-00002.{suffix}"
        _write_file(folder / name, shard, torch.float16)
        weight_map.update(dict.fromkeys(shard, name))
    write_json(folder / f"{stem}.{suffix}.index.json", {"weight_map": weight_map})
    clip = {rename(k, "original", "clip"): v for k, v in shapes.items() if k.startswith(VISION)}
    _write_file(tower / f"{stem}.{suffix}", clip, torch.float32)


def _write_file(path: Path, shapes: _Shapes, dtype: torch.dtype) -> None:
    drawn = torch.randn(_RANDOM, generator=torch.Generator().manual_seed(1)).mul_(0.02).to(dtype)

    def fill(tensor: torch.Tensor) -> None:
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), _RANDOM):
            part = flat[start : start + _RANDOM]
            part.copy_(drawn[: part.numel()])

    if path.suffix == ".safetensors":
        tensors = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
        for tensor in tensors.values():
            fill(tensor)
        save_file(tensors, path, metadata={"format": "pt"})
        return
    # Room in the file first, then the numbers, so that no shard has to fit in memory.
    with skip_data():
        torch.save({name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}, path)
    with set_default_mmap_options(mmap.MAP_SHARED):
        for tensor in torch.load(path, mmap=True, weights_only=True).values():
            fill(tensor)


def measure(args: argparse.Namespace) -> str:
    """Load, read every weight, and say what it took."""
    start = time.monotonic()
    model = load_model(args)[1]
    weights = {*model.parameters(), *model.buffers()}
    for tensor in weights:
        tensor.sum().item()  # what is mapped comes into memory when it is read
    seconds, size = time.monotonic() - start, sum(tensor.nbytes for tensor in weights)
    said = f"{args.model_path}: {size / 1e9:.2f} GB of weights in {model.dtype}, {seconds:.1f} s"
    if (host := peak_memory_bytes()) is not None:
        said += f"; peak of the process {host / 1e9:.2f} GB, {host / size:.2f} times the weights"
    if cuda := [device for device in devices_of(model) if device.type == "cuda"]:
        said += f"; peak on {len(cuda)} GPU {(peak_memory_bytes(*cuda) or 0) / 1e9:.2f} GB"
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where nothing could be loaded or written."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.loading"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--random", choices=FORMATS, help="write a random checkpoint first")
    parser.add_argument(
        "--layers", type=flags.whole(1), default=32, help="of the random one; default: %(default)d"
    )
    parser.add_argument("--keep", action="store_true", help="do not remove the random one")
    add_checkpoint_arguments(parser)
    args = parser.parse_args(argv)
    folder = Path(args.model_path)
    try:
        if args.random is None:
            print(measure(args))
            return 0
        if folder.exists():
            raise FileExistsError(f"{folder} is there already; name a new folder")
        try:
            # By another process, as this one's peak is measured.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(write_random, (folder, args.random, args.layers))
            print(measure(args))
        finally:
            if not args.keep:
                shutil.rmtree(folder, ignore_errors=True)
    except (OSError, ValueError, ImportError, torch.OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    program.run(main)
