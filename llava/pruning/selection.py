"""A choice of tokens, and how it is carried out on a tensor; nothing else gathers tokens.

`Selection` is a decision: which tokens go on, in sequence order, and which of the dropped ones are
averaged into merged tokens (`Merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Merge:
    """Dropped tokens that go on as fewer.

    source:  (batch, p) columns of the pooled tokens in the old sequence, a sample's own first
    pools:   how many of them are a sample's own, on the host
    cluster: (batch, p) merged token that each joins, `clusters` on those that join none; None: all
             of a sample join one
    clusters: merged tokens of the sample that has most
    place:   column of the first of them in the new sequence, where that is one for all samples
    index:   elsewhere: (batch, m) like `Selection.index`, but n + j where a sample's merged token j
             stands, n being the length of the old sequence

    Without `place` and `index` every pool is a single token, the mean of itself, and only moves.
    """

    source: Tensor
    pools: tuple[int, ...]
    cluster: Tensor | None = None
    clusters: int = 1
    place: int | None = None
    index: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """Which tokens go on: `index` (batch, m) into the old sequence, in order.

    Samples are left-padded: of row i the last `lengths[i]` entries count, the others are any
    column. A merged token stands there as its cluster's centre. `lengths` and `n_visual` are the
    new counts per sample, on the host.

    then: what follows once a layer has run for these tokens alone: (their layout, what the layer
        returned) -> the selection among them. None: nothing.
    """

    index: Tensor
    lengths: tuple[int, ...]
    n_visual: tuple[int, ...]
    merge: Merge | None = None
    then: Callable[[Any, Tensor], Selection] | None = None


def take(hidden: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (batch, m) of `hidden` (batch, n, d): (batch, m, d).

    Whole rows by one flat index: much faster than `gather` with the index repeated d times.
    """
    batch, n, width = hidden.shape
    if batch > 1:
        index = index + torch.arange(0, batch * n, n, device=index.device)[:, None]
    rows = hidden.reshape(-1, width).index_select(0, index.flatten())
    return rows.view(batch, -1, width)


def precise(values: Tensor) -> Tensor:
    """`values` in the precision that this package measures and averages in: at least float32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def apply(selection: Selection, hidden: Tensor) -> Tensor:
    """Carry out `selection` on `hidden` (batch, n, d): kept rows as they are, merged rows averaged.

    Averages are taken in at least float32. The result is (batch, m, d) in the dtype of `hidden`.
    """
    merge = selection.merge
    if merge is None or (merge.place is None and merge.index is None):
        return take(hidden, selection.index)
    means = _means(merge, precise(take(hidden, merge.source)))
    if merge.index is not None:
        return take(torch.cat([hidden, means.to(hidden.dtype)], 1), merge.index)
    assert merge.place is not None, "of merged tokens in one place"
    out = take(hidden, selection.index)
    out[:, merge.place : merge.place + merge.clusters] = means
    return out


def _means(merge: Merge, pooled: Tensor) -> Tensor:
    """The merged tokens (batch, c, d) of the `pooled` ones (batch, p, d).

    A product with a matrix of weights: sums by index would be in no fixed order on a GPU.
    """
    pool = pooled.shape[1]
    if merge.cluster is not None:
        number = torch.arange(merge.clusters, device=pooled.device)[:, None]
        joins = merge.cluster[:, None, :] == number
    elif min(merge.pools) == pool:
        return pooled.mean(1, keepdim=True)
    else:
        joins = left_aligned(merge.pools, pool, pooled.device)[:, None, :]
    weights = joins.to(pooled.dtype)
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1)) @ pooled


@lru_cache(maxsize=16)
def _edge(size: int, device: torch.device) -> Tensor:
    """`size` times False, then `size` times True."""
    with torch.inference_mode(False):
        return torch.arange(-size, size, device=device) >= 0


def right_aligned(counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    """(batch, width): True on the last `counts[i]` entries of row i. Made of slices."""
    edge, size = _edge(rounded(width), device), rounded(width)
    return torch.stack([edge[size - width + count : size + count] for count in counts])


def left_aligned(counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    """(batch, width): True on the first `counts[i]` entries of row i. Made of slices."""
    return ~right_aligned([width - count for count in counts], width, device)


@lru_cache(maxsize=16)
def _columns(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(size, device=device)


def columns(width: int, device: torch.device) -> Tensor:
    """0, 1, 2, ... (width,), a slice of what is kept."""
    return _columns(rounded(width), device)[:width]


def rounded(width: int) -> int:
    """A size that many widths share, so that what is made of it can be kept."""
    return max(256, 1 << (width - 1).bit_length()) if width <= 4096 else -(-width // 1024) * 1024
