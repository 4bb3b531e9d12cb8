"""DPP: the T visual tokens that span the largest volume, chosen before layer 0.

The text-free part of CDPruner (see `cdpruner`), and no method that its authors publish: the same
determinantal point process with every patch equally relevant to the question. It needs no text
tower, and what CDPruner gains over it is what the question adds.

    K_ij = cos(v_i, v_j)          embeddings as they enter the decoder
    keep the T tokens of largest det K_S, greedily

Greedy choice by Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process to Improve
Recommendation Diversity", NeurIPS 2018, arXiv 1709.05135: with d_i = K_ii at first, a step picks
the j of largest d_j, and

    e_i = (K_ji - sum of c_kj c_ki over earlier steps k) / sqrt(d_j),   d_i <- d_i - e_i^2

e is the step's row c. d_i is what of token i the chosen ones do not span yet. Where nothing is left
of any (more tokens asked for than dimensions, or all alike), the order is that of K_ii.

All is float32 or better, of equal ones the lower index is chosen, and what is kept stays in order.
Rows that are equal bit for bit are equal in every step: where products of a processor round one of
them another way, the first one's are taken for all.
Several images and the ways of counting T: `entry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..entry import EntryPruner, ImageTokens
from ..registry import register
from ..selection import precise

#: Share of K_ii below which what is left of a token is rounding.
_NOTHING = 1e-5


@register
@dataclass(frozen=True, kw_only=True)
class DPP(EntryPruner):
    """Settings of `EntryPruner`."""

    method: ClassVar[str] = "dpp"

    def choose(self, image: ImageTokens, count: int, embeds: Tensor) -> list[int]:
        chosen: list[int] = largest_volume(cosines(embeds), count).tolist()
        return chosen

    def pairs(self, tokens: int, count: int) -> int:
        """All of them, whatever the count."""
        return tokens * tokens


@torch.no_grad()
def cosines(embeds: Tensor) -> Tensor:
    """(n, n) of `embeds` (n, d), with exact ones on the diagonal.

    Equal rows have exactly the same cosines, and 1 among themselves. Does not wait for the device.
    """
    values = precise(embeds)
    unit, first = normalize(values, dim=-1), first_equal(values)
    return (unit @ unit.mT).fill_diagonal_(1)[first[:, None], first]


@torch.no_grad()
def first_equal(rows: Tensor) -> Tensor:
    """(n,) of each of `rows` (n, d), float32 or float64, the first that equals it bit for bit.

    Unlike `torch.unique`, it does not wait for the device. Weighted sums of integers, modulo 2^64,
    are exact in any order. Where two different rows have the same, each counts as like no other.
    """
    bits = rows.contiguous().view(torch.int32)
    place = torch.arange(max(bits.shape), device=rows.device)
    sums = (bits * (2 * place[: bits.shape[1]] + 1) ** 21).sum(1)  # 1, 3^21, 5^21, ...
    first = (sums[:, None] == sums).byte().argmax(1)
    same = (bits == bits.index_select(0, first)).all(1)
    return torch.where(same, first, place[: len(rows)])


@torch.no_grad()
def largest_volume(kernel: Tensor, count: int) -> Tensor:
    """Indices (count,) of the greedy choice by `kernel` (n, n), 0 <= count <= n, in its order."""
    quality, first = kernel.diagonal(), first_equal(kernel)
    left, rows = quality.clone(), kernel.new_zeros(count, len(kernel))
    chosen = torch.zeros(count, dtype=torch.long, device=kernel.device)
    for step in range(count):
        # What the chosen ones span already ranks behind all others, and then by its quality.
        spanned = left <= _NOTHING * quality
        rank = torch.where(spanned.all(), quality, left.masked_fill(spanned, -torch.inf))
        pick = rank.index_fill(0, chosen[:step], -torch.inf).argmax(0, keepdim=True)
        chosen[step : step + 1] = pick
        row = (
            kernel.index_select(0, pick)[0] - rows[:step].index_select(1, pick)[:, 0] @ rows[:step]
        )
        row = (row / left.index_select(0, pick).sqrt()).index_select(0, first)
        rows[step] = row.masked_fill(spanned.index_select(0, pick), 0)
        left = left - rows[step].square()
    return chosen
