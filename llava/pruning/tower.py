"""What methods share that reduce the visual tokens in or right after the vision tower.

The target T is the total of a sample; several images divide it evenly, a rest goes to the first
ones. The decoder then never sees more: T tokens enter and leave every layer, both ways of counting
a budget are the same, and rotary positions are contiguous. A sample with no more than T patches
keeps all of them as they are.

FLOPs and KV bytes compare with the unreduced model, whose number of tokens the layout remembers.
The vision tower and the projector are not counted, see `cost`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import PrunerRun
from .cost import DecoderShape, TowerShape
from .entry import divide
from .layout import TokenLayout
from .target import WholeTarget
from .vision import Reduced, VisionFeatures


def image_counts(target: int, patches: int, groups: Sequence[int]) -> list[int]:
    """How many tokens each image keeps: `target` a sample, or all `patches` where that is less.

    groups: images of each sample.
    """
    return [count for group in groups for count in divide(target, [patches] * group)]


@dataclass(frozen=True, kw_only=True)
class TowerPruner(WholeTarget):
    """Settings of every method that picks or makes tokens of the tower's features.

    Raises ValueError on values that make no sense.
    """

    def tower_layers(self, ran: int) -> tuple[int, ...]:
        """By default the last layer that ran, whose CLS attention most methods rank by."""
        return (ran - 1,)

    def reduce(self, features: VisionFeatures, groups: Sequence[int]) -> list[Reduced] | None:
        """All patches of an image that may keep them, none of one that may keep none (a sample may
        have more images than tokens), and what `choose` gives of the others."""
        patches = features.patches.shape[1]
        counts = image_counts(int(self.target_token_num), patches, groups)
        if min(counts, default=patches) == patches:
            return None
        every = torch.arange(patches, device=features.patches.device)
        return [
            self.choose(features, image, count)
            if 0 < count < patches
            else keep_patches(features, image, every[:count])
            for image, count in enumerate(counts)
        ]

    @abc.abstractmethod
    def choose(self, features: VisionFeatures, image: int, count: int) -> Reduced:
        """The `count` tokens of one image, 1 <= count < its patches."""

    def scoring(self, count: int, tower: TowerShape) -> int:
        """Multiply-accumulates of the similarities that leave `count` tokens of one image."""
        return 0

    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        """Nothing is left to do in the decoder."""
        return TowerPruned(int(self.target_token_num), self.scoring, layout, shape)


class TowerPruned(PrunerRun):
    """One prefill of what the tower already reduced: says what choosing there cost.

    scoring(count, tower): multiply-accumulates for one image that keeps `count` < its patches.
    """

    def __init__(
        self,
        target: int,
        scoring: Callable[[int, TowerShape], int],
        layout: TokenLayout,
        shape: DecoderShape,
    ) -> None:
        tower, self._flops = shape.tower, []
        if tower is None:
            return
        for whole in layout.whole:
            counts = image_counts(target, tower.patches, [whole // tower.patches])
            reduced = [count for count in counts if count < tower.patches]
            self._flops.append(2 * sum(scoring(count, tower) for count in reduced))

    def scoring_flops(self) -> list[int]:
        return self._flops


def cls_attention(features: VisionFeatures, image: int) -> Tensor:
    """Attention of the CLS token of an image in the last layer that ran: (heads, patches)."""
    return features.probes[features.ran - 1].one(image).cls_attention()[0]


def keep_patches(features: VisionFeatures, image: int, indices: Tensor) -> Reduced:
    """The patches `indices` (m,) of an image, as they are, in spatial order."""
    kept = indices.sort().values
    return Reduced(features.patches[image, kept], kept)


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of `scores` (n,), best first; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count]
