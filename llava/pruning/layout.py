"""What every position of a (pruned) sequence is, and how a choice of tokens is applied to it.

`TokenLayout` says, for each token of a left-padded batch, whether it is text or which image it
belongs to, which rotary position it has and which patch it shows. `Selection` is a decision: which
tokens go on, in sequence order, and which of the dropped ones are averaged into merged tokens.
`apply` carries a decision out on any tensor; nothing else in the package gathers tokens.

Lengths are kept on the host as plain integers, so that no step of the layer loop has to ask the
device how long something is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

TEXT = -1

#: In place of a tile: the token ends a row of a tiled picture and shows nothing itself.
NEWLINE = -2


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one kind in one sample.

    `image` is TEXT or the index of the image in its sample. For an image, `patch` (n,) holds the
    patch each token shows, `cls` (n,) the attention of the vision tower's CLS token to it (None
    when the tower was not asked) and `letterbox` (n,) is True on padding around the picture
    (of a tiled one, on the black border of its canvas).
    `whole` is how many tokens the unpruned model would have here, None for `length`. `mixed` says
    that each token mixes all patches of its image (Senna's adapter makes such): they form no grid,
    and `patch` only numbers them. `tile` (n,) is the view that each token of a tiled picture is
    from, 0 being the overview, or NEWLINE.
    """

    length: int
    image: int = TEXT
    patch: Tensor | None = None
    cls: Tensor | None = None
    letterbox: Tensor | None = None
    whole: int | None = None
    mixed: bool = False
    tile: Tensor | None = None


@dataclass(frozen=True)
class TokenLayout:
    """Kind, position and origin of every token of a batch.

    Tensors are (batch, n), samples end at the right edge, padding is on the left.

    image:     TEXT (also on padding), or the index of the image in its sample
    position:  rotary position in the unpruned sequence
    patch:     TEXT, or the id of the patch in its sample (images counted on); a merged token
               carries the id of its cluster's centre
    tile:      view of a tiled picture that the token is from, or NEWLINE; any value on text and
               on plain pictures; None where no picture of the batch is tiled
    valid:     False on padding
    cls:       attention of the vision tower's CLS token to the patch, 0 on text; or None
    letterbox: True on visual tokens that show only padding around the picture; or None
    lengths, n_visual, tail: per sample on the host: tokens, visual tokens, and text tokens after
               the last visual one (0 for a sample without visual tokens)
    sizes:     per sample on the host: of each image the visual tokens of the unpruned model
    mixed:     whether visual tokens mix all patches of their image: no grid, no CLS attention
    """

    image: Tensor
    position: Tensor
    patch: Tensor
    valid: Tensor
    lengths: tuple[int, ...]
    n_visual: tuple[int, ...]
    tail: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    cls: Tensor | None = None
    letterbox: Tensor | None = None
    mixed: bool = False
    tile: Tensor | None = None

    @classmethod
    def from_segments(
        cls, samples: Sequence[Sequence[Segment]], device: torch.device | str = "cpu"
    ) -> TokenLayout:
        """Lay out samples given as runs of text and image tokens, left-padded to the longest."""
        lengths = tuple(sum(run.length for run in runs) for runs in samples)
        shape = (len(samples), max(lengths))
        image = torch.full(shape, TEXT, dtype=torch.long)
        patch = torch.full(shape, TEXT, dtype=torch.long, device=device)
        runs_of_images = [run for runs in samples for run in runs if run.image != TEXT]
        with_cls = bool(runs_of_images) and all(run.cls is not None for run in runs_of_images)
        with_box = any(run.letterbox is not None for run in runs_of_images)
        with_tile = any(run.tile is not None for run in runs_of_images)
        scores = torch.zeros(shape, dtype=torch.float32, device=device) if with_cls else None
        box = torch.zeros(shape, dtype=torch.bool, device=device) if with_box else None
        tile = torch.zeros(shape, dtype=torch.long, device=device) if with_tile else None

        n_visual, tail, sizes = [], [], []
        for row, runs in enumerate(samples):
            column = shape[1] - lengths[row]
            visual = after = first_patch = 0
            image_sizes: list[int] = []
            for run in runs:
                span = slice(column, column + run.length)
                column += run.length
                if run.image == TEXT:
                    after += run.length
                    continue
                visual, after = visual + run.length, 0
                image_sizes.append(run.length if run.whole is None else run.whole)
                assert run.patch is not None, "a run of an image says which patches it shows"
                image[row, span] = run.image
                patch[row, span] = run.patch.to(device) + first_patch
                shown = int(run.patch.max()) + 1 if run.length else 0
                first_patch += max(shown, run.whole or 0)
                if scores is not None and run.cls is not None:
                    scores[row, span] = run.cls.to(device, torch.float32)
                if box is not None and run.letterbox is not None:
                    box[row, span] = run.letterbox.to(device)
                if tile is not None and run.tile is not None:
                    tile[row, span] = run.tile.to(device)
            n_visual.append(visual)
            tail.append(after if visual else 0)
            sizes.append(tuple(image_sizes))

        offset = torch.tensor([[shape[1] - length] for length in lengths])
        index = torch.arange(shape[1])[None] - offset
        return cls(
            image=image.to(device),
            position=index.clamp(min=0).to(device),
            patch=patch,
            valid=(index >= 0).to(device),
            lengths=lengths,
            n_visual=tuple(n_visual),
            tail=tuple(tail),
            sizes=tuple(sizes),
            cls=scores,
            letterbox=box,
            mixed=any(run.mixed for run in runs_of_images),
            tile=tile,
        )

    @classmethod
    def text_only(cls, attention_mask: Tensor) -> TokenLayout:
        """Layout of a batch without images; `attention_mask` is (batch, n) of 0/1."""
        valid = attention_mask.bool()
        blank = torch.full(valid.shape, TEXT, dtype=torch.long, device=valid.device)
        lengths = tuple(valid.sum(1).tolist())
        zero = (0,) * len(lengths)
        position = (valid.long().cumsum(1) - 1).clamp(min=0)
        nothing = ((),) * len(lengths)
        return cls(blank, position, blank, valid, lengths, zero, zero, nothing)

    @property
    def batch(self) -> int:
        return self.image.shape[0]

    @property
    def n(self) -> int:
        """Columns, padding included."""
        return self.image.shape[1]

    @property
    def padded(self) -> bool:
        return min(self.lengths) < self.n

    @property
    def whole(self) -> tuple[int, ...]:
        """Per sample: visual tokens that the unpruned model would have."""
        return tuple(sum(images) for images in self.sizes)

    @property
    def is_visual(self) -> Tensor:
        return self.image != TEXT

    @property
    def is_newline(self) -> Tensor | None:
        """Visual tokens that end a row of a tiled picture; None where there are none."""
        return None if self.tile is None else self.is_visual & (self.tile == NEWLINE)

    @property
    def is_patch(self) -> Tensor:
        """Visual tokens that show something: all but newlines."""
        newline = self.is_newline
        return self.is_visual if newline is None else self.is_visual & ~newline

    def positions(self, policy: str) -> Tensor:
        """Rotary positions (batch, n).

        "original": those of the unpruned sequence; "compact": 0, 1, 2, ... over what is there.
        """
        if policy == "original":
            return self.position
        return (self.valid.long().cumsum(1) - 1).clamp(min=0)

    def _map(self, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)}

    def to(self, device: torch.device) -> TokenLayout:
        """The same layout on `device` (itself when it is there already)."""
        if self.image.device == device:
            return self
        return replace(self, **self._map(lambda x: x.to(device)))

    def repeat(self, times: int) -> TokenLayout:
        """Every sample `times` times in a row, as beam search and multiple returns need."""
        if times == 1:
            return self
        host: dict[str, Any] = {
            name: tuple(v for v in getattr(self, name) for _ in range(times))
            for name in ("lengths", "n_visual", "tail", "sizes")
        }
        return replace(self, **self._map(lambda x: x.repeat_interleave(times, 0)), **host)

    def select(self, selection: Selection) -> TokenLayout:
        """The layout after `selection`; a merged token takes its cluster centre's entries.

        Columns that only fill a shorter sample up become padding, whatever token they came from.
        """
        moved = self._map(lambda x: x.gather(1, selection.index))
        if selection.valid is not None:
            filling = ~selection.valid
            moved["image"] = moved["image"].masked_fill(filling, TEXT)
            moved["patch"] = moved["patch"].masked_fill(filling, TEXT)
            moved["valid"] = selection.valid
        tail = tuple(t if visual else 0 for t, visual in zip(self.tail, selection.n_visual))
        moved |= {"lengths": selection.lengths, "n_visual": selection.n_visual, "tail": tail}
        return replace(self, **moved)


@dataclass(frozen=True)
class Merge:
    """Dropped tokens that are averaged into merged tokens.

    source:  (batch, p) columns of the pooled tokens in the old sequence
    cluster: (batch, p) cluster that each joins; `c` for entries that are only padding
    column:  (batch, c) column of each merged token in the new sequence
    present: (batch, c) False where a sample has fewer clusters than the batch's largest number
    pools:   pooled tokens per sample, on the host
    """

    source: Tensor
    cluster: Tensor
    column: Tensor
    present: Tensor
    pools: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """Which tokens go on: `index` (batch, m) into the old sequence, in order, left-padded.

    `valid` (batch, m) is False on padding, None when there is none. `lengths` and `n_visual` are
    the new counts per sample, on the host.
    """

    index: Tensor
    valid: Tensor | None
    lengths: tuple[int, ...]
    n_visual: tuple[int, ...]
    merge: Merge | None = None


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
    return values.to(torch.promote_types(values.dtype, torch.float32))


def apply(selection: Selection, hidden: Tensor) -> Tensor:
    """Carry out `selection` on `hidden` (batch, n, d): kept rows as they are, merged rows averaged.

    Averages are taken in at least float32. The result is (batch, m, d) in the dtype of `hidden`.
    """
    out = take(hidden, selection.index)
    merge = selection.merge
    if merge is None:
        return out
    width = hidden.shape[-1]
    batch, clusters = merge.column.shape
    pooled = precise(take(hidden, merge.source))
    sums = pooled.new_zeros(batch, clusters + 1, width)
    sums.scatter_add_(1, merge.cluster[..., None].expand(-1, -1, width), pooled)
    sizes = pooled.new_zeros(batch, clusters + 1)
    sizes.scatter_add_(1, merge.cluster, torch.ones_like(merge.cluster, dtype=sizes.dtype))
    means = (sums[:, :-1] / sizes[:, :-1, None].clamp(min=1)).to(hidden.dtype)
    column = merge.column[..., None].expand(-1, -1, width)
    # A cluster that a sample lacks points at the sample's last token, which is text and never
    # a merged token: writing that token's own value there changes nothing.
    means = torch.where(merge.present[..., None], means, out.gather(1, column))
    return out.scatter_(1, column, means)
