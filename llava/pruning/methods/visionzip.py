"""VisionZip: the patches that CLS attends to, and the rest merged by the similarity of their keys.

Paper: VisionZip, CVPR 2025. Reference implementation: dvlab-research/VisionZip at 3151f6d.

With the last layer that ran (22 of 24 in LLaVA-1.5), p patches of an image and T tokens to keep:
    C = floor(5 T / 32) contextual and D = T - C dominant tokens, the CLS token itself included
    dominant:   the CLS token, and the D - 1 patches with the highest sum over heads of the CLS
                token's attention in that layer
    metric:     the layer's keys, averaged over heads, L2-normalised
    targets:    of the M = p - (D - 1) other patches, in spatial order, those with the indices
                0, s, 2 s, ..., (C - 1) s, where s = floor(M / C)
    contextual: target + mean of the other patches whose metric is most similar (cosine) to it
Order: CLS, dominant patches in spatial order, then contextual tokens. All go through the projector,
which was never trained on a CLS token. A contextual token is a sum of two vectors, not an average:
its norm is about twice that of a patch. A target that attracts nothing stays as it is.

The split is the published one, which is printed for a few T only: 192 = 162 + 30, 128 = 108 + 20,
64 = 54 + 10, and 32 = 27 + 5 (a tile of LLaVA-NeXT). The rule above gives all of them and serves
any T; `contextual_ratio` is its 5/32. T = 1 leaves the CLS token alone, T below 7 no contextual
token.

Deviations from the reference, all without effect on the choice but for near ties: attention and
similarities are computed in float32, ties go to the lower index, and nothing is patched into
transformers' CLIP.

Of a tiled picture (LLaVA-1.6) each view is reduced so, to T over the number of views. First come
the tokens of the overview, in the order above. `tile_order` says how the tiles' follow: "kinds", as
in the reference, the dominant patches of all tiles in the order of the canvas, the CLS tokens of
the tiles, and their contextual tokens; "canvas" puts a contextual token at its target's place on
the canvas, and CLS tokens last. With merge type `flat` there is no canvas, and tile follows tile.
The reference drops newlines, with `spatial_unpad` too, and so wants `spatial` here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import demand
from ..cost import TowerShape
from ..registry import register
from ..selection import precise
from ..tower import TowerPruner, cls_attention, top
from ..vision import Groups, Reduced, VisionFeatures, canvas_places


@register
@dataclass(frozen=True, kw_only=True)
class VisionZip(TowerPruner):
    """Settings of `TowerPruner`, and:

    contextual_ratio: share of T that is merged tokens.
    tile_order: of the tokens of tiles, see the module.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "visionzip"

    contextual_ratio: float = 5 / 32
    tile_order: Literal["kinds", "canvas"] = "kinds"

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "from 0 to below 1 (the CLS token always stays)"
        demand(self, "contextual_ratio", 0 <= self.contextual_ratio < 1, expected)

    def split(self, count: int) -> tuple[int, int]:
        """(D, C): dominant tokens with the CLS token, and contextual ones, of `count` tokens."""
        contextual = int(count * self.contextual_ratio)
        return count - contextual, contextual

    def reduce(self, features: VisionFeatures, groups: Groups) -> list[Reduced] | None:
        reduced = super().reduce(features, groups)
        if reduced is None or features.grids is None or self.tile_order == "canvas":
            return reduced
        each = features.patches.shape[1]
        ordered: list[Reduced] = []
        for grid in features.grids:
            overview, *tiles = reduced[len(ordered) : len(ordered) + 1 + grid[0] * grid[1]]
            ordered.append(overview)
            ordered += [self._in_kinds(view, grid, i, each) for i, view in enumerate(tiles)]
        return ordered

    def _in_kinds(self, view: Reduced, grid: tuple[int, int], tile: int, patches: int) -> Reduced:
        """A reduced tile with its place on a canvas of `grid` tiles of that many patches."""
        contextual = self.split(len(view.patch))[1] if len(view.patch) < patches else 0
        places = canvas_places(grid, tile, isqrt(patches)).to(view.patch.device)
        end = grid[0] * grid[1] * patches
        order = torch.cat([places, places.new_tensor([end])])[view.patch]
        order[len(order) - contextual :] = end + 1
        return replace(view, order=order)

    def choose(self, features: VisionFeatures, image: int, count: int) -> Reduced:
        patches, token = features.patches[image], features.token[image]
        dominant, contextual = self.split(count)
        ranked = top(cls_attention(features, image).sum(0), len(patches))
        kept = ranked[: dominant - 1].sort().values
        rest = ranked[dominant - 1 :].sort().values
        cls_patch = kept.new_tensor([len(patches)])
        merged, centres = patches[:0], kept[:0]
        if contextual:
            keys = precise(features.probes[features.ran - 1].keys[image]).mean(0)[1:]
            metric = F.normalize(keys[rest], dim=-1)
            merged, targets = contextual_tokens(patches[rest], metric, contextual)
            centres = rest[targets]
        return Reduced(
            torch.cat([token[None], patches[kept], merged]),
            torch.cat([cls_patch, kept, centres]),
        )

    def scoring(self, count: int, tower: TowerShape) -> int:
        """Each patch that joins a target, against all targets; and the means."""
        _, contextual = self.split(count)
        joining = tower.patches + 1 - count if contextual else 0
        return joining * (contextual * tower.hidden // tower.heads + tower.hidden)


def contextual_tokens(patches: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge `patches` (m, d) into `count` tokens, 1 <= count <= m, by their `metric` (m, e).

    Returns the tokens (count, d) and the indices (count,) of their targets, ascending. Means are
    taken in float32.
    """
    m, device = len(patches), patches.device
    targets = torch.arange(count, device=device) * (m // count)
    is_other = torch.ones(m, dtype=torch.bool, device=device)
    is_other[targets] = False
    # A stable sort instead of a mask: the number of others is known and the device need not wait.
    others = (~is_other).to(torch.uint8).argsort(stable=True)[: m - count]
    nearest = (metric[others] @ metric[targets].T).argmax(-1)
    points = precise(patches)
    # A product with the memberships, not a scatter: its sums have one order on every device.
    joins = (nearest == torch.arange(count, device=device)[:, None]).to(points)
    means = joins @ points[others] / joins.sum(1, keepdim=True).clamp(min=1)
    return (points[targets] + means).to(patches.dtype), targets
