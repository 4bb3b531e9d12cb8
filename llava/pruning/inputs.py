"""What a layer is called with beside the states of its tokens: their mask and rotary tables.

`LayerInputs` is what a prefill asks for; `OwnInputs` makes it from counts, for a decoder whose loop
is this package's. Rotary tables are slices of those of the unpruned sequence; a batch without
padding has no mask.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .attention import Rope, as_mask, causal_mask, moved, seen_by, visible
from .layout import TokenLayout
from .selection import take


class LayerInputs(Protocol):
    """Of the layer under way: rotary tables `rope`, (batch or 1, n, head_dim) each, and `mask` of
    the tokens that enter it, as its attention wants it. `windowed`: whether masks show the windows
    of layers that have one."""

    windowed: bool
    rope: Rope
    mask: Tensor | None

    def enter(self, layout: TokenLayout, hidden: Tensor) -> None:
        """Make ready for a layer that `hidden` (batch, n, d), the tokens of `layout`, enters."""
        ...

    def rows_seen(self, layout: TokenLayout, count: int) -> Tensor | None:
        """What the last `count` tokens see, (batch, 1, count, n) booleans; None: all before."""
        ...

    def of_part(
        self, layout: TokenLayout, index: Tensor, hidden: Tensor
    ) -> tuple[Tensor | None, Rope]:
        """Mask over all keys and rotary tables of the tokens in the columns `index` (batch, m)."""
        ...

    def of_last(self, layout: TokenLayout, hidden: Tensor) -> tuple[Tensor | None, Rope]:
        """The same of the last token."""
        ...


class RopeTables:
    """Rotary tables of what is left, from those of the unpruned sequence.

    rope: cosines and sines (batch or 1, n, head_dim) at the original positions of `first`
    """

    def __init__(self, rope: Rope, first: TokenLayout, policy: str) -> None:
        self._rope, self._first, self._policy = rope, first, policy
        # Of the sample that fills the batch's columns: positions 0, 1, 2, ...
        several = rope[0].shape[0] > 1 and policy != "original"
        self._longest = first.lengths.index(first.n) if several else 0
        self._joined: Tensor | None = None

    def of(self, layout: TokenLayout) -> Rope:
        """(batch or 1, n, head_dim) each, on the device of `layout`."""
        cos, sin = self._rope
        self._rope = cos, sin = moved(cos, layout.device), moved(sin, layout.device)
        if layout.index is None:
            return cos, sin
        if self._policy != "original" and not layout.padded:
            return cos[self._longest, None, : layout.n], sin[self._longest, None, : layout.n]
        if self._joined is None:
            self._joined = self._prepared()
        self._joined = joined = moved(self._joined, layout.device)
        if self._policy == "original":
            assert layout.columns is not None, "some are left"
            return parted(take(joined, layout.columns))
        most, n = self._first.n, layout.n
        parts = [joined[most - n + count : most + count] for count in layout.lengths]
        return parted(torch.stack(parts))

    def _prepared(self) -> Tensor:
        """Cosines beside sines: of each sample, or for slices those of positions 0, 1, 2, ...
        behind as many filling rows."""
        joined = torch.cat(self._rope, -1)
        if self._policy == "original":
            return joined.expand(self._first.batch, -1, -1).contiguous()
        row = joined[self._longest]
        return torch.cat([row[:1].expand(self._first.n, -1), row])


def rows_of(rope: Rope, index: Tensor) -> Rope:
    """The rows `index` (batch, m) of tables (batch or 1, n, head_dim)."""
    return parted(take(torch.cat(rope, -1).expand(len(index), -1, -1), index))


def parted(joined: Tensor) -> Rope:
    """Cosines and sines of tables that stand side by side (..., 2 head_dim)."""
    half = joined.shape[-1] // 2
    return joined[..., :half], joined[..., half:]


class OwnInputs:
    """Masks by what is padding, rotary tables by the method's position policy.

    rope: cosines and sines (batch or 1, n, head_dim) of `first`, at its original positions
    backend: of the attention, see `attention.causal_mask`
    """

    windowed = False

    def __init__(self, rope: Rope, first: TokenLayout, policy: str, backend: str) -> None:
        self.rope = rope
        self.mask: Tensor | None = None
        self._tables = RopeTables(rope, first, policy)
        self._backend = backend
        self._layout: TokenLayout | None = None

    def enter(self, layout: TokenLayout, hidden: Tensor) -> None:
        if self._layout is not layout:
            self._layout, self.rope = layout, self._tables.of(layout)
            self.mask = self._causal(layout, layout.n, hidden)

    def rows_seen(self, layout: TokenLayout, count: int) -> Tensor | None:
        if not layout.padded:
            return None
        if self.mask is not None and self.mask.dtype == torch.bool:
            return self.mask[:, :, -count:]
        return visible(layout.valid, count, layout.n, layout.device)

    def of_part(
        self, layout: TokenLayout, index: Tensor, hidden: Tensor
    ) -> tuple[Tensor | None, Rope]:
        return as_mask(self._backend, seen_by(index, layout), hidden), rows_of(self.rope, index)

    def of_last(self, layout: TokenLayout, hidden: Tensor) -> tuple[Tensor | None, Rope]:
        cos, sin = self.rope
        return self._causal(layout, 1, hidden), (cos[:, -1:], sin[:, -1:])

    def _causal(self, layout: TokenLayout, queries: int, hidden: Tensor) -> Tensor | None:
        valid = layout.valid if layout.padded else None
        return causal_mask(self._backend, valid, queries, layout.n, hidden)
