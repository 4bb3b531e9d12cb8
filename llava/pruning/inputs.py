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
        # Side by side, so that one copy serves both; and all tables are laid out alike, whatever
        # cut them, which a compiled layer would otherwise need graphs of its own for.
        self._whole, self._first, self._policy = torch.cat(rope, -1), first, policy
        # The row of the longest sample, and where in it positions 0, 1, 2, ... begin.
        most = max(first.lengths)
        self._longest = first.lengths.index(most) if rope[0].shape[0] > 1 else 0
        self._start = first.n - most
        self._filled: Tensor | None = None

    def of(self, layout: TokenLayout) -> Rope:
        """(batch or 1, n, head_dim) each, on the device of `layout`."""
        self._whole = whole = moved(self._whole, layout.device)
        if layout.index is None:
            return parted(whole)
        if self._policy == "original":
            assert layout.columns is not None, "some are left"
            return parted(take(whole.expand(layout.batch, -1, -1), layout.columns))
        row = whole[self._longest, self._start :]
        if not layout.padded:
            return parted(row[: layout.n][None])
        # A slice that begins in the filling rows is left-padded.
        filling = self._first.n
        if self._filled is None:
            self._filled = torch.cat([row[:1].expand(filling, -1), row])
        self._filled = filled = moved(self._filled, layout.device)
        parts = [filled[filling - layout.n + n : filling + n] for n in layout.lengths]
        return parted(torch.stack(parts))


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
