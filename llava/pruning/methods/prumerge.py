"""PruMerge and PruMerge+: the patches that CLS attends to, each joined by those with similar keys.

Paper: LLaVA-PruMerge, ICCV 2025. Reference implementation: 42Shawn/LLaVA-PruMerge at 097c041.

Queries and keys are those of the tower's layer that never runs (23 of 24 in LLaVA-1.5), whose input
is the features that LLaVA uses, taken as a single head of the tower's full width d:
    a = softmax(q_CLS K^T / sqrt(d)) over CLS and the p patches
    x_i <- x_i + sum of a_j x_j over the `neighbours` = 32 patches j with the most similar keys
           (cosine), kept or not, i itself left out; for each kept patch i
    one more token: sum of a_j x_j over all patches that were not kept
The weights a are not normalised, so they are small. Order: kept patches by attention, then those
that were sampled, then the extra token.

Which patches are kept:
  adaptive   the published rule, without a budget. n = number of patches with a_j > Q3 + 1.5 (Q3 -
             Q1), the n highest; with `plus` also patches 0, s, 2 s, ... below p - 1 that are not
             among them, s = floor(floor(p / n) / 3). The count differs from image to image (the
             paper says 5.5 %, with `plus` 25 %); target_token_num is ignored, and the trace tells
             what came out. Several images (or views) of a sample: quartiles are of all their
             patches, n is the mean, rounded down; each has its own n highest.
  training   the rule the reference trains with, without a budget either: the p / 8 highest; with
             `plus` also patches 4, 12, 20, ..., those among the highest a second time. For each of
             these the first patch that is not kept is lost, to neighbours and the extra token.
  otherwise  (default) exactly T tokens, the extra one included: K = T - 1 patches. Tables that
             list PruMerge at 192, 128 or 64 use variants of a fixed ratio by others; this is one of
             that kind. Without `plus` the K highest. With it the ceil(K / 4) highest, as one
             quarter is what the adaptive rule takes by attention, and of the R others, in spatial
             order, those with the indices floor(i R / S), i = 0 .. S - 1, S = K - ceil(K / 4).
             T = 64: 16 + 47 + 1.

Deviations from the reference, in the adaptive rule: n = 0, where it divides by zero, counts as 1;
s is at least 1, where n > p / 3 makes it 0 and raises (a quarter at most can exceed Q3, so only a
handful of patches gets there); outliers are pooled over a sample, where it pools whatever goes
through the tower together; with `plus` it raises on several images. In all: float32 throughout,
ties go to the lower index. That the last patch is never sampled is the reference's and kept in the
adaptive rule.
The extra token carries the id of the dropped patch with the highest attention; where the adaptive
rule keeps every patch there is no extra token.
The reference does not run on tiled pictures; here each view of one is reduced by itself, with a
merge type that has no newlines.
FLOPs of scoring: projections of that one layer (it runs for this alone), similarities, merging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import PrunerRun
from ..checks import demand
from ..cost import DecoderShape, TowerShape
from ..images import divide
from ..layout import TokenLayout
from ..registry import register
from ..selection import precise
from ..tower import TowerPruner, top
from ..vision import Groups, Reduced, VisionFeatures


@register
@dataclass(frozen=True, kw_only=True)
class PruMerge(TowerPruner):
    """Settings of `TowerPruner`, and:

    plus: sample patches in space too (PruMerge+); without, PruMerge.
    adaptive: the published rule for how many, see the module; it has no budget, so it refuses
        budget_mode "strict".
    training: the rule of the reference's training; as `adaptive`.
    neighbours: how many patches each kept one takes in.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "prumerge+"

    plus: bool = True
    adaptive: bool = False
    training: bool = False
    neighbours: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, "neighbours", self.neighbours >= 0, "0 or more")
        if self.adaptive and self.training:
            raise ValueError("adaptive=true and training=true are two rules: set one")
        if self.adaptive and self.strict:
            raise ValueError(
                "adaptive=true lets each image decide how many tokens it keeps and meets no "
                "budget: leave budget_mode='strict' out, or set adaptive=false"
            )
        if self.training and self.strict:
            raise ValueError(
                "training=true keeps an eighth of the patches by attention whatever the budget "
                "is: leave budget_mode='strict' out, or set training=false"
            )

    def tower_layers(self, ran: int) -> tuple[int, ...]:
        """The layer behind the features."""
        return (ran,)

    def reduce(self, features: VisionFeatures, groups: Groups) -> list[Reduced] | None:
        """T tokens a sample; adaptive: waits for the device, to learn how many."""
        if not (self.adaptive or self.training):
            return super().reduce(features, groups)
        reduced: list[Reduced] = []
        for group in filter(sum, groups):
            images = range(len(reduced), len(reduced) + sum(group))
            attention = torch.stack([self._attention(features, image) for image in images])
            count = max(outliers(attention), 1) if self.adaptive else 0
            for image, row in zip(images, attention):
                kept = adaptive(row, count, self.plus) if self.adaptive else trained(row, self.plus)
                reduced.append(self._merged(features, image, row, kept))
        return reduced

    def choose(self, features: VisionFeatures, image: int, count: int) -> Reduced:
        attention = self._attention(features, image)
        kept = fixed(attention, count - 1, self.plus)
        return self._merged(features, image, attention, kept)

    def _attention(self, features: VisionFeatures, image: int) -> Tensor:
        return features.probes[features.ran].of_image(image).joined().cls_attention()[0, 0]

    def _merged(
        self, features: VisionFeatures, image: int, attention: Tensor, kept: Tensor
    ) -> Reduced:
        keys = features.probes[features.ran].of_image(image).joined().keys[0, 0, 1:]
        patches = features.patches[image]
        others = dropped(kept, len(patches))
        weights = neighbour_weights(keys, attention, kept, others, self.neighbours)
        points = precise(patches)
        merged = points[kept] + weights @ points
        ids = kept
        if len(others):
            left = attention[others]
            merged = torch.cat([merged, (left @ points[others])[None]])
            ids = torch.cat([kept, others[left.argmax()][None]])
        return Reduced(merged.to(patches.dtype), ids)

    def scoring(self, count: int, tower: TowerShape) -> int:
        """One query and all keys of the layer, kept patches against all, what they take in."""
        if not count:
            return 0
        p, d, kept = tower.patches, tower.hidden, count - 1
        joined = kept * min(self.neighbours, p - 1) + p - kept
        return (p + 2) * d * d + (kept * p + joined) * d

    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        """Nothing is left to do in the decoder."""
        budgeted = not (self.adaptive or self.training)
        return super().start(layout, shape) if budgeted else UnbudgetedRun(self, layout, shape)


class UnbudgetedRun(PrunerRun):
    """A prefill of as many tokens as the images came to: says what choosing them cost."""

    def __init__(self, config: PruMerge, layout: TokenLayout, shape: DecoderShape) -> None:
        tower, self._flops = shape.tower, []
        if tower is None:
            return
        for whole, kept in zip(layout.whole, layout.n_visual):
            # The cost is linear in the count, so any way of dividing it gives the same sum.
            counts = divide(kept, [tower.patches] * (whole // tower.patches))
            self._flops.append(2 * sum(config.scoring(count, tower) for count in counts))

    def scoring_flops(self) -> list[int]:
        return self._flops


def outliers(attention: Tensor) -> int:
    """How many of an image's patches exceed Q3 + 1.5 (Q3 - Q1), quartiles interpolated linearly.

    attention: (images, p); of several the mean, rounded down.
    """
    low, high = attention.flatten().quantile(attention.new_tensor([0.25, 0.75]))
    return int((attention > high + 1.5 * (high - low)).sum()) // len(attention)


def adaptive(attention: Tensor, count: int, plus: bool) -> Tensor:
    """Patches that the published rule keeps with `count` outliers: by attention (p,), then those
    sampled in space."""
    p = len(attention)
    best = top(attention, count)
    if not plus:
        return best
    sampled = torch.arange(0, p - 1, max(p // count // 3, 1), device=best.device)
    return torch.cat([best, sampled[~torch.isin(sampled, best)]])


def trained(attention: Tensor, plus: bool) -> Tensor:
    """Patches that the rule of training keeps: by attention (p,), then every eighth."""
    best = top(attention, max(len(attention) // 8, 1))
    every = torch.arange(4, len(attention), 8, device=best.device)
    return torch.cat([best, every]) if plus else best


def fixed(attention: Tensor, count: int, plus: bool) -> Tensor:
    """`count` patches, by attention, with `plus` a quarter of them (rounded up) and the others at
    even steps of those left: (count,)."""
    by_attention = -(-count // 4) if plus else count
    ranked = top(attention, len(attention))
    rest, spread = ranked[by_attention:].sort().values, count - by_attention
    steps = torch.arange(spread, device=rest.device) * len(rest) // max(spread, 1)
    return torch.cat([ranked[:by_attention], rest[steps]])


def dropped(kept: Tensor, patches: int) -> Tensor:
    """Patches that are not kept, ascending: (patches - K,), so that for each that is kept twice the
    first of them is lost, as in the reference."""
    every = torch.arange(patches, device=kept.device)
    return every.index_fill(0, kept, -1).sort().values[len(kept) :]


def neighbour_weights(
    keys: Tensor, attention: Tensor, kept: Tensor, others: Tensor, neighbours: int
) -> Tensor:
    """What each kept patch takes of every patch: (K, p), the attention of its nearest, 0 else.

    keys: (p, d); attention: (p,); kept: (K,); others: (p - K,). The nearest are by cosine. A patch
    is not its own; one that is kept twice is near itself, and two neighbours to others.
    """
    unit = F.normalize(precise(keys), dim=-1)
    pool = torch.cat([kept, others]).sort().values
    itself = torch.searchsorted(pool, kept)
    similar = (unit[kept] @ unit[pool].T).scatter_(1, itself[:, None], -torch.inf)
    nearest = similar.argsort(dim=1, descending=True, stable=True)
    nearest = pool[nearest[:, : min(neighbours, len(pool) - 1)]]
    weights = unit.new_zeros(len(kept), len(keys))
    return weights.scatter_add_(1, nearest, attention[nearest])
