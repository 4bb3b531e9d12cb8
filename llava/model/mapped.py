"""Tensors of weight files that are mapped into memory: copied into another dtype, and let go.

A page of a mapped file that was read counts as this process's memory until the whole file is
unmapped, so a copy of a shard in another dtype would stand beside the shard.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch
from torch import Tensor

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4  # madvise(2), of Linux


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Put every floating-point tensor into `dtype`, in place, one by one.

    The old one leaves memory before the next is copied, so that the weights are never held twice.
    What has the dtype already stays as it is, mapped to its file.
    """
    files = _mapped_files()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensors[name] = tensor.to(dtype)
            _let_go(tensor, files)


def _mapped_files() -> list[tuple[int, int]]:
    """The addresses, first and end, where files are mapped; none where the system does not say."""
    if not _MAPS.is_file():
        return []
    rows = (line.split(maxsplit=5) for line in _MAPS.read_text().splitlines())
    # Privately, as nobody else's changes come in; inode 0 is memory that no file stands behind.
    ranges = [row[0].split("-") for row in rows if row[1].endswith("p") and row[4] != "0"]
    return [(int(first, 16), int(end, 16)) for first, end in ranges]


def _let_go(tensor: Tensor, files: list[tuple[int, int]]) -> None:
    """Give back the pages that hold nothing but this tensor; they are read again when needed.

    Of tensors that lie in no mapped file nothing is given back, as that would lose them.
    """
    first = tensor.untyped_storage().data_ptr()
    end = first + tensor.untyped_storage().nbytes()
    if any(low <= first and end <= high for low, high in files):
        start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        size = end // mmap.PAGESIZE * mmap.PAGESIZE - start
        if size > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONTNEED)
