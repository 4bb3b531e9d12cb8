"""Mapped weight files: their tensors are copied one by one, and what was copied leaves memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava.model.mapped import cast
from llava.model.weights import load_shard

MEGABYTES = 8  # of each of eight tensors


def write(folder: Path, files: str) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = {f"{i}.weight": torch.randn(MEGABYTES << 19).half() for i in range(8)}
    tensors["bias"] = torch.randn(3).half()  # smaller than a page
    path = folder / f"weights.{files}"
    if files == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=files == "bin")
    return path, tensors


def mapped_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssFile:")).split()[1]) / 1024


@pytest.mark.parametrize("files", ["bin", "safetensors", "old.bin"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_copies_are_right_and_the_originals_stay_readable(tmp_path, files, dtype):
    path, written = write(tmp_path, files.replace("old.bin", "oldbin"))
    path = path.rename(tmp_path / f"weights.{files}")
    tensors = load_shard(path)
    originals, tensors["count"] = dict(tensors), torch.arange(3)
    tensors["same"] = same = torch.ones(3, dtype=dtype)
    cast(tensors, dtype)
    assert tensors.pop("same") is same
    assert tensors.pop("count").dtype == torch.int64
    for name, tensor in written.items():
        assert tensors[name].dtype == dtype
        assert torch.equal(tensors[name], tensor.to(dtype))
        assert torch.equal(originals[name], tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep what they have mapped")
@pytest.mark.parametrize("files", ["bin", "safetensors"])
def test_a_file_is_never_in_memory_beside_its_copy(tmp_path, files):
    path, _ = write(tmp_path, files)
    tensors, before = load_shard(path), mapped_megabytes()
    originals = list(tensors.values())
    cast(tensors, torch.bfloat16)
    assert mapped_megabytes() - before < 2 * MEGABYTES
    for tensor in originals:
        tensor.sum()
    assert mapped_megabytes() - before > 7 * MEGABYTES
