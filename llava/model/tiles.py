"""From the views of tiled pictures to the tokens the decoder gets (LLaVA-1.6, see `llava.anyres`).

A picture is a tensor of views, the overview first. The vision tower and the projector see all views
of a batch side by side; here their tokens become one sequence a picture, in the order of the merge
type. A token's id (`patch` in the layout) is its place in the unpruned sequence of its picture.

Where a method reduced the views in the tower, what it left of the overview comes first, in its own
order; with merge type `spatial` what it left of the tiles follows in the order of the canvas (a
merged token at its centre), with `flat` view after view. A view's CLS token, should the method keep
it, is on no canvas and comes last. A method may put the tokens of its tiles in another order. With
`spatial_unpad` such methods are refused: some of what they chose would be border and be cut off,
and the budget missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .. import anyres
from ..pruning.layout import NEWLINE, Segment
from ..pruning.vision import Reduced, VisionFeatures


@dataclass(frozen=True)
class EncodedImage:
    """One image as the decoder gets it: embeddings (p, d) and what is known of each token (p,).

    patch, cls, letterbox, whole, mixed, tile: see `Segment`.
    """

    embeds: Tensor
    patch: Tensor
    cls: Tensor | None
    letterbox: Tensor | None
    whole: int
    mixed: bool = False
    tile: Tensor | None = None

    def segment(self, image: int) -> Segment:
        length = len(self.embeds)
        known = (self.patch, self.cls, self.letterbox, self.whole, self.mixed, self.tile)
        return Segment(length, image, *known)


@dataclass(frozen=True)
class Tiling:
    """One tiled picture: its tokens in order, (tokens,) long as `anyres.token_order` gives them.

    border: (patches of all views,) bool, as `anyres.border` gives it; transposed: the same if as
    many tiles were down as are across. across, down: tiles. each: patches of a view.
    """

    order: Tensor
    border: Tensor
    transposed: Tensor
    across: int
    down: int
    each: int

    @property
    def views(self) -> int:
        return 1 + self.across * self.down

    @property
    def patches(self) -> int:
        """Tokens that are patches; the others are newlines."""
        return int((self.order != anyres.NEWLINE).sum())


def stack_views(images: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[int] | None]:
    """All views one after another (views, 3, h, w), and how many each image has; None: not tiled.

    images: (images, 3, h, w) or a list of (3, h, w); tiled (images, views, 3, h, w) or a list of
    (views, 3, h, w).

    Raises ValueError for other shapes.
    """
    each = [image for image in images]
    shapes = {image.dim() for image in each}
    if shapes == {3}:
        return images if isinstance(images, Tensor) else torch.stack(each), None
    if shapes == {4}:
        return torch.cat(each), [len(image) for image in each]
    raise ValueError(
        "images must be (3, h, w) each, or (views, 3, h, w) each of an anyres model, got "
        f"{sorted({tuple(image.shape) for image in each})}"
    )


def tilings(
    config: Any, side: int, tile: int, views: Sequence[int], sizes: Sequence[tuple[int, int]] | None
) -> list[Tiling]:
    """How each picture is tiled. side: patches along a view; tile: pixels along it.

    Raises ValueError when the sizes (width, height) are not given, or call for another number of
    views than came.
    """
    if sizes is None:
        raise ValueError(
            "tiled images need image_sizes, the (width, height) of each original picture"
        )
    pinpoints = anyres.read_pinpoints(config.image_grid_pinpoints, tile, "config.json")
    pictures = []
    for count, size in zip(views, sizes, strict=True):
        size = (int(size[0]), int(size[1]))
        shape = anyres.get_anyres_image_grid_shape(size, pinpoints, tile, config.anyres_reading)
        order = anyres.token_order(
            size, shape, side, config.mm_patch_merge_type, config.anyres_reading
        )
        border, transposed = (
            anyres.border(size, (across, down), side, config.anyres_reading)
            for across, down in (shape, shape[::-1])
        )
        tiling = Tiling(order, border, transposed, *shape, side * side)
        if tiling.views != count:
            raise ValueError(
                f"a picture of {size[0]} x {size[1]} has {tiling.views} views, {count} came: "
                "image_sizes and images must be of the same pictures, in (width, height)"
            )
        pictures.append(tiling)
    return pictures


def in_order(
    tiling: Tiling, views: Tensor, cls: Tensor | None, newline: Tensor | None, bound: int | None
) -> EncodedImage:
    """All tokens of a picture, or the `bound` patches with the highest CLS attention.

    views: (views, each, d), projected; cls: (views, each) or None. A bound at or above the number
    of patches changes nothing; below it newlines go first, all of them.
    """
    order = tiling.order.to(views.device)
    ids = torch.arange(len(order), device=views.device)
    whole = len(order)
    if bound is not None and bound < tiling.patches:
        ids = ids[order != anyres.NEWLINE]
        scores = cls.flatten().to(views.device)[order[ids]]
        ids = ids[scores.argsort(descending=True, stable=True)[:bound].sort().values]
        order, whole = order[ids], bound
    rows = views.flatten(0, 1)
    if newline is not None:
        # The newline is the last row, which is what -1 means.
        rows = torch.cat([rows, newline[None].to(rows.device, rows.dtype)])
    breaks = order == anyres.NEWLINE
    scores = None
    if cls is not None:
        scores = cls.flatten().to(rows.device)[order.clamp(min=0)].masked_fill(breaks, 0)
    tile = (order // tiling.each).masked_fill(breaks, NEWLINE)
    border = tiling.border.to(rows.device)[order.clamp(min=0)] & ~breaks
    return EncodedImage(rows[order], ids, scores, border, whole, tile=tile)


def of_reduced(
    tiling: Tiling, reduced: Sequence[Reduced], embeds: Sequence[Tensor]
) -> EncodedImage:
    """What a method left of a picture's views; `embeds` are its tokens, projected.

    The id of a view's CLS token is the number of tokens of the picture plus the view.
    """
    device, whole = embeds[0].device, len(tiling.order)
    place = torch.empty(whole, dtype=torch.long, device=device)
    place[tiling.order.to(device)] = torch.arange(whole, device=device)
    places = place.view(tiling.views, tiling.each)
    ids, tile, ranks = [], [], []
    for number, view in enumerate(reduced):
        patches_and_cls = torch.cat([places[number], place.new_tensor([whole + number])])
        ids.append(patches_and_cls[view.patch.to(device)])
        tile.append(torch.full_like(ids[-1], number))
        ranks.append(ids[-1] if view.order is None else view.order.to(device))
    all_ids, all_tiles, rows = torch.cat(ids), torch.cat(tile), torch.cat(list(embeds))
    scores = None
    if all(view.scores is not None for view in reduced):
        scores = torch.cat([view.scores.to(device) for view in reduced])
    # In flat order the canvas is one view after another, so only spatial ones need sorting.
    overview = len(ids[0])
    if not torch.equal(tiling.order, tiling.order.sort().values):
        rest = torch.cat(ranks[1:]).argsort(stable=True) + overview
        index = torch.cat([torch.arange(overview, device=device), rest])
        all_ids, all_tiles, rows = all_ids[index], all_tiles[index], rows[index]
        scores = None if scores is None else scores[index]
    return EncodedImage(rows, all_ids, scores, None, whole, tile=all_tiles)


def nested(groups: Sequence[int], views: Sequence[int]) -> list[list[int]]:
    """For each sample of `groups[i]` images, how many views each of its images has."""
    each = iter(views)
    return [[next(each) for _ in range(group)] for group in groups]


def spans(views: Sequence[int]) -> list[slice]:
    """Where each picture's views are among those of all."""
    ends = list(accumulate(views))
    return [slice(end - count, end) for end, count in zip(ends, views)]


def best(features: VisionFeatures, cls: Tensor | None, bound: int | None) -> list[Reduced]:
    """All patches of each image, or the `bound` with the highest CLS attention (images, patches).

    Features of images that keep all their patches are views of one tensor.
    """
    every = torch.arange(features.patches.shape[1], device=features.patches.device)
    if bound is None:
        scores = [None] * len(features.patches) if cls is None else cls
        return [Reduced(image, every, score) for image, score in zip(features.patches, scores)]
    order = cls.argsort(dim=1, descending=True, stable=True)[:, :bound].sort().values
    return [
        Reduced(image[keep], keep, score[keep])
        for image, keep, score in zip(features.patches, order, cls)
    ]
