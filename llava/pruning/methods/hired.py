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
576 of 2880. Exactly T tokens are in every layer, so the two ways of counting T, `published` and
`strict`, mean the same.

Deviations from the reference:
- `regions` "tiles" counts a patch of the overview for the tile that shows it. "bands" is what the
  code does: it cuts the patches, in their order, into runs of equal length, so that of four tiles
  each gets six full rows.
- Shares are by largest remainder, and what a tile of p patches cannot take goes to the others. The
  reference truncates and caps, and so spends less than its budget.
- The reference cuts off the border of the canvas after the choice and loses what was chosen there.
  Here HiRED needs the merge types that keep the border (`spatial`, `flat`), as every method of the
  tower does; like the reference's they have no newlines.
- Only the CLS row of two layers is computed, in float32, beside any attention backend.
- Equal scores keep the lower patch index; the reference leaves that open.
- The choice is made before the projector, the reference's after it. Each token is projected on its
  own: the kept ones come out the same.
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
from ..vision import Groups, Reduced, VisionFeatures


@register
@dataclass(frozen=True, kw_only=True)
class HiRED(TowerPruner):
    """Settings of `TowerPruner`, and of tiled pictures:

    alpha: share of T that the overview gets, from 0 to 1.
    regions: where on the overview a tile is, see the module.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "hired"

    alpha: float = 0.5
    regions: Literal["tiles", "bands"] = "tiles"

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
        return [
            keep_patches(features, view, top(cls_attention(features, view).sum(0), count))
            for view, count in enumerate(counts)
        ]

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
        # The tiles cannot hold more than their patches, whatever alpha leaves them.
        overview = max(min(int(self.alpha * budget), patches), budget - (views - 1) * patches)
        looked_at = top(
            features.probes[0].of_image(first).cls_attention()[0].sum(0),
            int(patches * (1 - self.alpha)),
        )
        tile_of = tiles_of_patches(patches, grid, self.regions).to(looked_at.device)
        counts = tile_of[looked_at].bincount(minlength=views - 1).tolist()
        return [overview, *share_out(budget - overview, counts, [patches] * (views - 1))]


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
