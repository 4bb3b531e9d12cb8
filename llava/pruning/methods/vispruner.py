"""VisPruner: the patches that CLS attends to most, and of the others those least alike.

Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in
VLMs", arXiv 2412.01818 (later versions), ICCV 2025; reference: github.com/Theia-4869/VisPruner at
aefa01a (2025-07-01).

    1. score_j = mean over heads of A[CLS, j], or with tower_scores "received" of what patches
       receive, as in FasterVLM. The int(T * important_ratio) patches of highest score are kept;
       the others stand in a list, highest score first.
    2. Until T_div = T - int(T * important_ratio) are left, a round: of the R in the list, those at
       even places are A, at odd places B. Each of A has its highest cosine to any of B. The
       min(8, R - T_div) of A with the highest go. The list of the next round is what is left of A,
       highest cosine first, and then B.
    3. Both together, in spatial order.

Cosines are between the tower's features, before the projector. Exactly T tokens are in every
layer, so the two ways of counting T, `published` and `strict`, mean the same.

Deviations from the reference:
- It crashes where R is odd, because it takes A to be as long as B. T = 54 does that: 27 patches
  are kept in step 1 and 549 are left. Here A is one longer.
- It also crashes where a round asks for at least two more than A has (an even R of 12 or less, far
  above T_div). Here a round that asks for more than A has drops all of A.
- With important_ratio 1 it compares with an empty B and crashes. Here step 2 drops everything.
- Scores are float32 and cosines float64 (float32 on Apple's GPUs, which have no other): patches so
  alike that float32 rounds the order of two cosines another way on another machine are common, and
  each round builds on the last. All cosines are computed once, and a round looks them up. The
  reference multiplies A and B anew in each round, in the model's dtype.
- Equal scores go to the lower patch index. Of equal cosines the one that stands first in the list
  counts as the higher. The reference's sort is not stable.
- Only the CLS row of the one layer is computed, dropped patches are never projected, a T above the
  number of patches keeps all, and several images of a sample, or views of a tiled picture, divide
  T: as `fastervlm` says. On LLaVA-1.6 the reference drops newlines, so the merge type is `spatial`,
  and always takes the canvas 672 x 672, which is a setting of the loader (see `llava.anyres`).

About (N - T) / 8 rounds of small operations: on a GPU their launches take the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..checks import demand
from ..cost import TowerShape
from ..registry import register
from ..selection import precise
from ..tower import TowerPruner, cls_attention, keep_patches, top
from ..vision import Reduced, VisionFeatures
from .dpp import cosines

_A_ROUND = 8


@register
@dataclass(frozen=True, kw_only=True)
class VisPruner(TowerPruner):
    """Settings of `TowerPruner`, and `important_ratio`, 0 to 1: the share of T that attention picks
    (0.5 is the reference's default, 0.75 stands in an example of its README), and `tower_scores`.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "vispruner"

    important_ratio: float = 0.5
    tower_scores: Literal["cls", "received"] = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, "important_ratio", 0 <= self.important_ratio <= 1, "from 0 to 1")

    def choose(self, features: VisionFeatures, image: int, count: int) -> Reduced:
        scores = cls_attention(features, image).mean(0)
        chosen = self.chosen(scores, features.patches[image], count)
        return keep_patches(features, image, chosen)

    def chosen(self, scores: Tensor, features: Tensor, count: int) -> Tensor:
        order, important = top(scores, len(scores)), self._important(count)
        rest = order[important:]
        diverse = rest[least_alike(features[rest], count - important)]
        return torch.cat([order[:important], diverse])

    def scoring(self, count: int, tower: TowerShape) -> int:
        important = self._important(count)
        return (tower.patches - important) ** 2 * tower.hidden if count > important else 0

    def _important(self, count: int) -> int:
        return int(count * self.important_ratio)


def least_alike(features: Tensor, count: int) -> Tensor:
    """Which `count` of `features` (n, d) step 2 leaves, 0 <= count <= n: indices (count,), in the
    order of the list after the last round."""
    left = torch.arange(len(features), device=features.device)
    if count == 0:
        return left[:0]
    values = precise(features) if features.device.type == "mps" else features.double()
    cosine = cosines(values)
    while drop := min(_A_ROUND, len(left) - count, (len(left) + 1) // 2):
        a, b = left[::2], left[1::2]
        nearest = cosine[a[:, None], b].amax(1)
        left = torch.cat([a[top(nearest, len(a))[drop:]], b])
    return left
