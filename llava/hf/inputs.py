"""Masks and rotary tables of what is left, from those that stock code made of the whole sequence.

`StockInputs` is the `LayerInputs` of a prefill, `StockDecoding` is for the steps after it. A mask
is gathered at the rows and columns that are left; where stock code gives none, none is given unless
samples were cut to different lengths. While nothing is pruned a layer gets what stock code gave.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..pruning.attention import Rope, as_mask, causal_mask, moved, seen_by, themselves, visible
from ..pruning.inputs import RopeTables, rows_of
from ..pruning.layout import TokenLayout
from ..pruning.selection import columns, take
from .logical import LogicalCache


class StockInputs:
    """See `pruning.inputs.LayerInputs`, and the module.

    first: layout of the unpruned sequence; backend: of the attention; causal: whether a layer
    without a mask is causal
    """

    windowed = True

    def __init__(self, first: TokenLayout, backend: str, causal: bool) -> None:
        self.rope: Rope = ()  # type: ignore[assignment]
        self.mask: Tensor | None = None
        self._first, self._backend, self._causal = first, backend, causal
        self._tables: dict[int, RopeTables] = {}
        self._masks: dict[int, Tensor | None] = {}
        self._ropes: dict[int, Rope] = {}
        self._layout = first
        self._samples: Tensor | None = None

    def offer(self, mask: Tensor | None, rope: Rope) -> None:
        """What stock code would call the coming layer with."""
        self._whole, self._whole_rope = mask, rope

    def enter(self, layout: TokenLayout, hidden: Tensor) -> None:
        if self._layout is not layout:
            self._layout, self._masks, self._ropes = layout, {}, {}
        key, rope_key = id(self._whole), id(self._whole_rope[0])
        if key not in self._masks:
            self._masks[key] = self._left(layout, hidden)
        if rope_key not in self._ropes:
            if rope_key not in self._tables:
                self._tables[rope_key] = RopeTables(self._whole_rope, self._first, "original")
            self._ropes[rope_key] = self._tables[rope_key].of(layout)
        self.mask, self.rope = self._masks[key], self._ropes[rope_key]

    def rows_seen(self, layout: TokenLayout, count: int) -> Tensor | None:
        mask = self.mask
        if mask is None and not self._causal:
            return layout.valid[:, None, None, :].expand(-1, 1, count, -1)
        if mask is None or mask.dim() == 2:
            return visible(layout.valid, count, layout.n, layout.device) if layout.padded else None
        rows = mask[:, :, -count:]
        seen = rows if rows.dtype == torch.bool else rows == 0
        if not layout.padded or layout.columns is not None:
            return seen
        return seen | themselves(count, layout.n, layout.device)

    def of_part(
        self, layout: TokenLayout, index: Tensor, hidden: Tensor
    ) -> tuple[Tensor | None, Rope]:
        rope = rows_of(self.rope, index)
        if self.mask is not None and self.mask.dim() == 4:
            rows = take(self.mask.expand(layout.batch, -1, -1, -1)[:, 0], index)[:, None]
            if layout.padded and rows.dtype == torch.bool:
                column = columns(layout.n, index.device)
                rows = rows | (column == index[:, None, :, None])
            return rows, rope
        seen = seen_by(index, layout) if self._causal else layout.valid[:, None, None, :]
        return as_mask(self._backend, seen, hidden), rope

    def of_last(self, layout: TokenLayout, hidden: Tensor) -> tuple[Tensor | None, Rope]:
        cos, sin = self.rope
        mask = self.mask
        if mask is not None and mask.dim() == 4:
            mask = mask[:, :, -1:]
        return mask, (cos[:, -1:], sin[:, -1:])

    def _left(self, layout: TokenLayout, hidden: Tensor) -> Tensor | None:
        """The mask of the tokens that are left."""
        whole, left = self._whole, layout.columns
        if whole is not None:
            whole = moved(whole, hidden.device)
        if left is None:
            return whole
        if whole is None:
            if self._causal or not layout.padded:
                valid = layout.valid if layout.padded else None
                causal = causal_mask(self._backend, valid, layout.n, layout.n, hidden)
                return causal if self._causal else None
            seen = layout.valid[:, None, None, :] | themselves(layout.n, layout.n, layout.device)
            return as_mask(self._backend, seen, hidden)
        if whole.dim() == 2:
            return whole.gather(1, left) * layout.valid
        if self._samples is None or self._samples.device != left.device:
            self._samples = torch.arange(layout.batch, device=left.device)[:, None, None]
        whole = whole.expand(layout.batch, -1, -1, -1)[:, 0]
        rows = whole[self._samples, left[:, :, None], left[:, None, :]][:, None]
        return _without_filling(rows, layout)


def _without_filling(rows: Tensor, layout: TokenLayout) -> Tensor:
    """A mask (batch, 1, n, n) without the columns that only fill a shorter sample up, which nobody
    sees but themselves, so that no row is empty."""
    if not layout.padded:
        return rows
    valid = layout.valid[:, None, None, :]
    if rows.dtype == torch.bool:
        return (rows & valid) | themselves(layout.n, layout.n, layout.device)
    return rows.where(valid, torch.finfo(rows.dtype).min)


class StockDecoding:
    """A step after the prefill: `enter` is as `prefill`'s, over stock masks of all columns."""

    def __init__(self, cache: LogicalCache, tokens: int, backend: str) -> None:
        self.cache, self.tokens, self.backend = cache, tokens, backend

    def enter(self, index: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict]:
        held = self.cache.columns(index, self.tokens)
        if held is None:
            return hidden, {}
        mask, valid = given["attention_mask"], self.cache.valid_keys(index, self.tokens)
        if mask is None:
            keys = held.shape[1]
            mask = causal_mask(self.backend, valid, self.tokens, keys, hidden)
            return hidden, {"attention_mask": mask, "position_ids": None}
        held = moved(held, mask.device)
        shape = (len(held), *mask.shape[1:])
        index_of = held.view(len(held), *(1,) * (mask.dim() - 2), -1)
        mask = mask.expand(shape).gather(-1, index_of.expand(*shape[:-1], -1))
        if valid is not None:
            valid = moved(valid, mask.device).view_as(index_of)
            floating = mask.is_floating_point()
            mask = mask.where(valid, torch.finfo(mask.dtype).min) if floating else mask * valid
        return hidden, {"attention_mask": moved(mask, hidden.device), "position_ids": None}
