"""Rotary tables of the tokens that are left, as slices of those of the unpruned sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Rope, moved
from .layout import TokenLayout
from .selection import take


class RopeTables:
    """Rotary tables of what is left, from those of the unpruned sequence.

    rope: cosines and sines (batch or 1, n, head_dim) at the original positions of `layout`
    """

    def __init__(self, rope: Rope, layout: TokenLayout, policy: str) -> None:
        self._first, self._policy = layout, policy
        self._whole = torch.cat(rope, -1)
        self._joined: Tensor | None = None

    def of(self, layout: TokenLayout) -> Rope:
        """(batch or 1, n, head_dim) each, on the device of `layout`."""
        if layout.columns is None:
            return parted(moved(self._whole, layout.device))
        if self._joined is None:
            self._joined = self._prepared()
        self._joined = joined = moved(self._joined, layout.device)
        if self._policy == "original":
            joined = take(joined, layout.columns)
        else:
            # A slice that begins in the filling rows is left-padded.
            most, n = self._first.n, layout.n
            counts = layout.lengths if layout.padded else [n]
            parts = [joined[most - n + count : most + count] for count in counts]
            joined = parts[0][None] if len(parts) == 1 else torch.stack(parts)
        return parted(joined)

    def _prepared(self) -> Tensor:
        """Cosines beside sines: of each sample, or for slices those of positions 0, 1, 2, ...
        behind as many filling rows."""
        joined = self._whole
        if self._policy == "original":
            return joined.expand(self._first.batch, -1, -1).contiguous()
        longest = self._first.lengths.index(self._first.n) if joined.shape[0] > 1 else 0
        row = joined[longest]
        return torch.cat([row[:1].expand(self._first.n, -1), row])


def parted(joined: Tensor) -> Rope:
    """Cosines and sines of tables that stand side by side (batch, n, 2 head_dim)."""
    half = joined.shape[-1] // 2
    return joined[..., :half], joined[..., half:]
