"""HiRED: the T patches that the vision tower's CLS token attends to most, a budget for each tile.

Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution
Vision-Language Models", arXiv 2408.10945, AAAI 2025; reference: github.com/hasanar1f/HiRED at
502d6dd (2024-08-22).

    score_j = sum over heads h of A^h[CLS, j]      A: softmaxed over CLS and the p patches of a view
    keep the patches of highest score of each view, in spatial order

A is the attention of the layer whose output LLaVA uses (layer 22 of 24).

A plain picture (LLaVA-1.5) is one view and keeps T. There HiRED ranks as FasterVLM does: a sum over
heads is their mean times their number, so only rounding could tell the two apart.

A tiled picture (LLaVA-1.6) divides T: the overview gets min(floor(alpha T), p). Of its patches the
floor(p (1 - alpha)) best by the CLS attention of layer 0, again summed over heads, are counted by
the tile that they fall in; the tiles share the rest of T in proportion to these counts.

The reference gives a rate, T = int(views * p * rate): at the 0.2 of its benchmarks 115 of 576, and
576 of 2880. What is left is in every layer, so the two ways of counting T, `published` and
`strict`, mean the same. Of a tiled picture that is T only where three things are not as in the
reference, whose behaviour is the default of each:
- `regions` "bands" cuts the patches of the overview, in their order, into runs of equal length, so
  that of four tiles each gets six full rows. "tiles" counts a patch for the tile that shows it.
- `shares` "truncated" rounds each tile's share down, to p at most, and loses the rest of T. "whole"
  shares by largest remainder, and what a tile cannot take goes to the others.
- `border` "transposed": what was chosen on the black border of the canvas is lost, since the border
  is cut off after the choice; and where there are not as many rows of tiles as columns, the two are
  taken for each other, in what is cut off and in the order of what is left: of 672 x 336 three of
  four tokens of tiles are lost. "cut" loses the border alone, "kept" nothing. The merge type has to
  keep the border to choose on it, so `spatial` or `flat`, as for every method of the tower; there
  are no newlines in the reference either.
With "tiles", "whole" and "kept" exactly T tokens are left.

Deviations from the reference:
- Only the CLS row of two layers is computed, in float32, beside any attention backend.
- Equal scores keep the lower patch index; the reference leaves that open.
- The choice is made before the projector, the reference's after it. Each token is projected on its
  own: the kept ones come out the same.
- Where all of a picture's T would be lost, the overview keeps its best patch.
- Several pictures of a sample divide T in proportion to their views. The reference applies its rate
  to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..checks import demand
from ..images import divide, share_out
from ..registry import register
from ..tower import TowerPruner, cls_attention, keep_patches, top
from ..vision import Groups, Reduced, VisionFeatures, canvas_places


@register
@dataclass(frozen=True, kw_only=True)
class HiRED(TowerPruner):
    """Settings of `TowerPruner`, and of tiled pictures:

    alpha: share of T that the overview gets, from 0 to 1.
    regions, shares, border: where on the overview a tile is, what its share is, and what of it is
        lost, see the module.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "hired"

    alpha: float = 0.5
    regions: Literal["tiles", "bands"] = "bands"
    shares: Literal["truncated", "whole"] = "truncated"
    border: Literal["transposed", "cut", "kept"] = "transposed"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, "alpha", 0 <= self.alpha <= 1, "from 0 to 1")

    def tower_layers(self, ran: int) -> tuple[int, ...]:
        """The first layer and the last that ran."""
        return tuple(dict.fromkeys((0, ran - 1)))

    def reduce(self, features: VisionFeatures, groups: Groups) -> list[Reduced] | None:
        """Waits for the device where pictures are tiled, to see what the overview looks at."""
        if features.grids is None:
            return super().reduce(features, groups)
        patches = features.patches.shape[1]
        grids = iter(features.grids)
        counts: list[int] = []
        for group in groups:
            for views, budget in zip(group, self._of_pictures([v * patches for v in group])):
                counts += self._of_views(features, len(counts), next(grids), views, budget)
        if min(counts, default=patches) == patches:
            return None
        reduced: list[Reduced] = []
        for picture, (rows, columns) in enumerate(features.grids):
            first, views = len(reduced), 1 + rows * columns
            of_views = counts[first : first + views]
            left = [self.choose(features, first + i, count) for i, count in enumerate(of_views)]
            if self.border != "kept" and min(of_views) < patches:
                left[1:] = [self._cut(features, picture, i, left[i]) for i in range(1, views)]
            if sum(of_views) and not any(len(view.patch) for view in left):
                left[0] = self.choose(features, first, 1)
            reduced += left
        return reduced

    def _cut(self, features: VisionFeatures, picture: int, view: int, chosen: Reduced) -> Reduced:
        """What was chosen in a tile, the view of that number of a picture, without the border."""
        assert features.grids is not None, "only tiles have a border"
        patch, transposed = chosen.patch, self.border == "transposed"
        patches = features.patches.shape[1]
        left = torch.arange(len(patch), device=patch.device)
        if features.borders is not None:
            border = features.borders[picture][transposed].view(-1, patches)[view]
            left = (~border.to(patch.device)[patch]).nonzero()[:, 0]
        grid = features.grids[picture][::-1] if transposed else features.grids[picture]
        order = canvas_places(grid, view - 1, isqrt(patches)).to(patch.device)[patch[left]]
        return Reduced(chosen.features[left], patch[left], order=order)

    def choose(self, features: VisionFeatures, image: int, count: int) -> Reduced:
        scores = cls_attention(features, image).sum(0)
        return keep_patches(features, image, top(scores, count))

    def _of_pictures(self, sizes: Sequence[int]) -> list[int]:
        """T of each picture of a sample, of that many patches in all its views."""
        if self.budget_per == "image":
            return [int(target) for target in self.image_targets(sizes)]
        return divide(int(self.resolved(sizes).target_token_num), sizes)

    def _of_views(
        self, features: VisionFeatures, first: int, grid: tuple[int, int], views: int, budget: int
    ) -> list[int]:
        """What each view of a picture keeps; `first` is its overview among all views."""
        patches = features.patches.shape[1]
        if budget >= views * patches:
            return [patches] * views
        overview = min(int(self.alpha * budget), patches)
        if self.shares == "whole":
            # The tiles cannot hold more than their patches, whatever alpha leaves them.
            overview = max(overview, budget - (views - 1) * patches)
        looked_at = top(
            features.probes[0].of_image(first).cls_attention()[0].sum(0),
            int(patches * (1 - self.alpha)),
        )
        tile_of = tiles_of_patches(patches, grid, self.regions).to(looked_at.device)
        counts = tile_of[looked_at].bincount(minlength=views - 1).tolist()
        rest = budget - overview
        if self.shares == "whole":
            return [overview, *share_out(rest, counts, [patches] * (views - 1))]
        weights = counts if any(counts) else [1] * (views - 1)
        parts = [min(rest * weight // sum(weights), patches) for weight in weights]
        return [overview, *parts] if overview or any(parts) else [min(budget, 1), *parts]


def tiles_of_patches(patches: int, grid: tuple[int, int], regions: str) -> Tensor:
    """Which tile each patch of the overview belongs to: (patches,).

    grid: rows and columns of tiles. regions: see the module.
    """
    rows, columns = grid
    if regions == "bands":
        return torch.arange(patches) * (rows * columns) // patches
    side = isqrt(patches)
    line = torch.arange(side)
    return ((line * rows // side)[:, None] * columns + line * columns // side).flatten()
