"""What a method may see of the vision tower, and what it may hand on in place of all its patches.

Two kinds of methods act before the decoder:
  Pruner.reduce(features, groups)      after the tower ran: fewer or other features per image
  Pruner.tower_runs(groups, ...)       inside the tower: each `TowerRun` merges after each attention
A picture is one view, or several where the model tiles it (LLaVA-1.6). The tower treats views
alike, and `images` below counts them. `groups` has, for each sample of the batch, how many views
each of its pictures has, so that a budget of a sample can be divided over them: ((1, 1), (1,)) are
samples of two plain pictures and of one, ((5,),) is one of an overview and four tiles.
What a method looks at inside the tower it names in `Pruner.tower_layers`; only these layers are
probed, and of their attention only the row of the CLS token is ever computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .selection import precise

#: For each sample, how many views each of its pictures has.
Groups = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Probe:
    """Queries and keys of one layer of the tower, before scaling.

    query: (images, heads, head_dim), of the CLS token; or (images, heads, 1 + patches, head_dim),
           of all, of a layer that was asked for as ~index
    keys:  (images, heads, 1 + patches, head_dim), CLS first
    """

    query: Tensor
    keys: Tensor

    def cls_attention(self) -> Tensor:
        """Attention of the CLS token to each patch, (images, heads, patches) float32.

        Softmaxed over CLS and patches, so a row sums to 1 less what CLS gives itself. With the
        queries of all tokens: what each patch receives, mean over the patches.
        """
        query, keys = precise(self.query), precise(self.keys)
        if query.dim() == 4:
            return received(query[:, :, 1:], keys)[..., 1:]
        scores: Tensor = torch.einsum("ihd,ihnd->ihn", query, keys) * query.shape[-1] ** -0.5
        return scores.softmax(-1)[..., 1:]

    def of_image(self, image: int) -> Probe:
        """The same of a single image."""
        return Probe(self.query[image : image + 1], self.keys[image : image + 1])

    def joined(self) -> Probe:
        """The same with all heads joined into one of the tower's full width."""
        return Probe(self.query.flatten(1)[:, None], self.keys.transpose(1, 2).flatten(2)[:, None])


def received(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention that each key receives, mean over the queries: (images, heads, keys) float32.

    queries: (images, heads, q, head_dim), keys: (images, heads, n, head_dim), before scaling.
    """
    scores = precise(queries) @ precise(keys).mT * queries.shape[-1] ** -0.5
    mean: Tensor = scores.softmax(-1).mean(2)
    return mean


def ranking_layer(pruner: Any, ran: int) -> int:
    """The probe by whose attention a method ranks patches: of the last of the `ran` layers the CLS
    token's row, or with `tower_scores` "received" the rows of all tokens."""
    return -ran if getattr(pruner, "tower_scores", "cls") == "received" else ran - 1


@dataclass(frozen=True)
class VisionFeatures:
    """What the tower gives of a batch of images.

    patches: (images, p, d), of the layer that LLaVA uses
    token:   (images, d), the CLS token of that layer
    probes:  by index of the layer, counted from 0, those that were asked for. ~index: with the
             queries of all tokens. The index `ran`, the number of layers that ran, is the layer
             whose input `patches` and `token` are
    ran:     number of layers that ran
    patch:   (images, p), which patch each entry shows; None: all of them, in order
    grids:   of each tiled picture its rows and columns of tiles; its views are the overview and
             then the tiles, row by row. None: no picture is tiled
    borders: of each tiled picture which patches of all its views (views * p,) show nothing but the
             black border of the canvas; and which would if rows of tiles were taken for columns and
             columns for rows. None: no border
    """

    patches: Tensor
    token: Tensor
    ran: int
    probes: Mapping[int, Probe] = field(default_factory=dict)
    patch: Tensor | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    borders: tuple[tuple[Tensor, Tensor], ...] | None = None

    @property
    def ranking(self) -> Probe:
        """Of the last layer that ran, which must have been probed, see `ranking_layer`."""
        return self.probes[-self.ran if -self.ran in self.probes else self.ran - 1]

    @property
    def cls(self) -> Tensor:
        """Attention of the CLS token in the last layer that ran, or what patches receive there if
        that was asked for, mean over heads: (images, p)."""
        return self.ranking.cls_attention().mean(1)


@dataclass(frozen=True)
class Reduced:
    """One image after a reduction: its features in the order that the decoder gets them.

    features: (m, d), for the projector
    patch:    (m,) long, which patch each shows; a merged one its centre; the CLS token itself the
              number of patches, one past the last
    scores:   (m,) or None; put into the layout as `cls`, for the method's own later use
    order:    (m,) long or None: of a tile, which of all tokens of the canvas come first, where they
              are put in the canvas's order. None: by the places of `patch` there, then CLS tokens
    """

    features: Tensor
    patch: Tensor
    scores: Tensor | None = None
    order: Tensor | None = None


def canvas_places(grid: tuple[int, int], tile: int, side: int) -> Tensor:
    """Where the patches of a tile are on the canvas, counted row by row: (side * side,) long.

    grid: rows and columns of tiles of `side` x `side` patches each; tile: from 0, row by row.
    """
    row, column = divmod(tile, grid[1])
    line = torch.arange(side)
    rows, columns = row * side + line, column * side + line
    return (rows[:, None] * (grid[1] * side) + columns).flatten()


class TowerRun:
    """Merging inside the tower, for images that all keep the same number of tokens."""

    def bias(self) -> Tensor | None:
        """Added to the attention scores of the coming layer: (images, 1, 1, tokens), or None."""
        return None

    def after_attention(self, layer: int, hidden: Tensor, keys: Tensor) -> Tensor:
        """Merge between attention and MLP of a layer.

        hidden: (images, t, d), CLS first; keys: (images, heads, t, head_dim), the layer's own.
        Returns (images, t', d), CLS first.
        """
        return hidden

    def patch(self) -> Tensor:
        """(images, t - 1), which patch each token behind CLS shows; a merged one its centre."""
        raise NotImplementedError
