"""What every position of a (pruned) sequence is: text or which image, which patch, which position.

`TokenLayout` describes a left-padded batch. After a selection it is an index: the columns of the
unpruned sequence that are left. What a token is (`Tokens`) never moves; it is looked up through
that index when somebody asks, so that a layer which drops tokens pays for the choice alone.

Lengths are kept on the host as plain integers: what follows from them is a slice. No step of the
layer loop has to ask the device how long something is, and none has to tell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .selection import Selection, right_aligned

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
class Tokens:
    """What each token of the unpruned sequence is: tensors (batch, n), padding on the left.

    image:     TEXT (also on padding), or the index of the image in its sample
    position:  rotary position
    patch:     TEXT, or the id of the patch in its sample (images counted on)
    valid:     False on padding
    cls:       attention of the vision tower's CLS token to the patch, 0 on text; or None
    letterbox: True on visual tokens that show only padding around the picture; or None
    tile:      view of a tiled picture that the token is from, or NEWLINE; any value on text and
               on plain pictures; None where no picture of the batch is tiled
    """

    image: Tensor
    position: Tensor
    patch: Tensor
    valid: Tensor
    cls: Tensor | None = None
    letterbox: Tensor | None = None
    tile: Tensor | None = None

    @cached_property
    def rank_bias(self) -> Tensor:
        """See `TokenLayout.rank_bias`."""
        blank = torch.zeros(self.image.shape, device=self.image.device)
        bias = blank.masked_fill(self.image == TEXT, torch.inf)
        if self.tile is not None:
            newline = (self.image != TEXT) & (self.tile == NEWLINE)
            bias = bias.masked_fill(newline, torch.finfo(bias.dtype).min)
        return bias.masked_fill(~self.valid, -torch.inf)

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class TokenLayout:
    """Kind, position and origin of every token of a batch whose samples end at the right edge.

    tokens:    what the tokens of the unpruned sequence are
    n:         columns, padding included
    lengths, n_visual, tail: per sample on the host: tokens, visual tokens, and text tokens after
               the last visual one (0 for a sample without visual tokens)
    sizes:     per sample on the host: of each image the visual tokens of the unpruned model
    mixed:     whether visual tokens mix all patches of their image: no grid, no CLS attention
    before, index: the layout that this one was selected from, and its columns (batch, n) that are
               left; None for an unpruned sequence

    `image`, `position`, `patch`, `valid`, `cls`, `letterbox` and `tile` are those of `Tokens` at
    what is left, (batch, n), looked up when asked for; a merged token has its cluster centre's.
    """

    tokens: Tokens
    n: int
    lengths: tuple[int, ...]
    n_visual: tuple[int, ...]
    tail: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    mixed: bool = False
    before: TokenLayout | None = None
    index: Tensor | None = None

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
        tokens = Tokens(
            image=image.to(device),
            position=index.clamp(min=0).to(device),
            patch=patch,
            valid=(index >= 0).to(device),
            cls=scores,
            letterbox=box,
            tile=tile,
        )
        mixed = any(run.mixed for run in runs_of_images)
        visual_counts, tails = tuple(n_visual), tuple(tail)
        return cls(tokens, shape[1], lengths, visual_counts, tails, tuple(sizes), mixed)

    @classmethod
    def text_only(cls, attention_mask: Tensor) -> TokenLayout:
        """Layout of a batch without images; `attention_mask` is (batch, n) of 0/1."""
        valid = attention_mask.bool()
        blank = torch.full(valid.shape, TEXT, dtype=torch.long, device=valid.device)
        lengths = tuple(valid.sum(1).tolist())
        zero = (0,) * len(lengths)
        position = (valid.long().cumsum(1) - 1).clamp(min=0)
        nothing = ((),) * len(lengths)
        tokens = Tokens(blank, position, blank, valid)
        return cls(tokens, valid.shape[1], lengths, zero, zero, nothing)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return self.tokens.image.device

    @property
    def padded(self) -> bool:
        return min(self.lengths) < self.n

    @property
    def whole(self) -> tuple[int, ...]:
        """Per sample: visual tokens that the unpruned model would have."""
        return tuple(sum(images) for images in self.sizes)

    @cached_property
    def columns(self) -> Tensor | None:
        """Columns (batch, n) of the unpruned sequence that are left, None for all of them."""
        older = None if self.before is None else self.before.columns
        return self.index if older is None or self.index is None else older.gather(1, self.index)

    def _look_up(self, values: Tensor | None, padding: float | None = None) -> Tensor | None:
        """`values` of the unpruned sequence at what is left, with `padding` in columns that only
        fill a shorter sample up, whatever token they came from."""
        if values is None or self.columns is None:
            return values
        values = values.gather(1, self.columns)
        return values if padding is None or not self.padded else values.where(self.valid, padding)

    @cached_property
    def valid(self) -> Tensor:
        if self.columns is None:
            return self.tokens.valid
        return right_aligned(self.lengths, self.n, self.device)

    @cached_property
    def image(self) -> Tensor:
        return _there(self._look_up(self.tokens.image, TEXT))

    @cached_property
    def patch(self) -> Tensor:
        return _there(self._look_up(self.tokens.patch, TEXT))

    @cached_property
    def position(self) -> Tensor:
        return _there(self._look_up(self.tokens.position))

    @cached_property
    def cls(self) -> Tensor | None:
        return self._look_up(self.tokens.cls)

    @cached_property
    def letterbox(self) -> Tensor | None:
        return self._look_up(self.tokens.letterbox)

    @cached_property
    def tile(self) -> Tensor | None:
        return self._look_up(self.tokens.tile)

    @cached_property
    def rank_bias(self) -> Tensor:
        """What to add to scores (batch, n) so that they rank: text first, whatever it scores, then
        patches by score, then newlines, and padding last."""
        # Asked for after every selection, so through the layout before: it knows its own.
        if self.before is None or self.index is None:
            return _there(self._look_up(self.tokens.rank_bias, -torch.inf))
        bias = self.before.rank_bias.gather(1, self.index)
        return bias.where(self.valid, -torch.inf) if self.padded else bias

    @property
    def is_visual(self) -> Tensor:
        return self.image != TEXT

    @property
    def is_newline(self) -> Tensor | None:
        """Visual tokens that end a row of a tiled picture; None where there are none."""
        return None if self.tile is None else self.is_visual & (self.tile == NEWLINE)

    @cached_property
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

    def to(self, device: torch.device) -> TokenLayout:
        """The same layout on `device` (itself when it is there already)."""
        if self.device == device:
            return self
        moved = {name: value.to(device) for name, value in self.tokens.tensors().items()}
        index = None if self.columns is None else self.columns.to(device)
        return replace(self, tokens=Tokens(**moved), before=None, index=index)

    def repeat(self, times: int) -> TokenLayout:
        """An unpruned layout with every sample `times` times in a row, as beam search and multiple
        returns need."""
        if times == 1:
            return self
        tensors = self.tokens.tensors()
        grown = Tokens(**{k: v.repeat_interleave(times, 0) for k, v in tensors.items()})
        host = {name: getattr(self, name) for name in ("lengths", "n_visual", "tail", "sizes")}
        repeated: Any = {k: tuple(x for x in v for _ in range(times)) for k, v in host.items()}
        return replace(self, tokens=grown, **repeated)

    def select(self, selection: Selection) -> TokenLayout:
        """The layout after `selection`."""
        return replace(
            self,
            n=selection.index.shape[1],
            lengths=selection.lengths,
            n_visual=selection.n_visual,
            tail=tuple(t if visual else 0 for t, visual in zip(self.tail, selection.n_visual)),
            before=self,
            index=selection.index,
        )


def _there(value: Tensor | None) -> Tensor:
    assert value is not None, "every sequence has it"
    return value
