"""What methods share that reduce the visual tokens in or right after the vision tower.

The target T is the total of a sample; its views divide it evenly, a rest goes to the first ones. A
view is an image, or of a tiled picture (LLaVA-1.6) the overview or a tile: T of five views is T / 5
a view, which is how these methods' authors count. With `budget_per` "image" each picture has a T
that its own views divide. The decoder then never sees more: T tokens enter and leave every layer,
both ways of counting a budget are the same, and rotary positions are contiguous. A sample with no
more than T patches keeps all of them as they are.

FLOPs and KV bytes compare with the unreduced model, whose number of tokens the layout remembers.
The vision tower and the projector are not counted, see `cost`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import PrunerRun
from .budget import Budgeted
from .cost import DecoderShape, TowerShape
from .entry import ImageTokens, select_in_images
from .images import divide
from .layout import TokenLayout
from .selection import Selection
from .vision import Groups, Reduced, VisionFeatures, ranking_layer


def view_counts(config: Budgeted, patches: int, groups: Groups) -> list[int]:
    """How many tokens each view keeps: its share of T, or all `patches` where that is less.

    groups: views of each picture of each sample.
    """
    counts: list[int] = []
    for group in groups:
        sizes = [views * patches for views in group]
        budgets: Iterable[tuple[float, int]]
        if config.budget_per == "image":
            budgets = zip(config.image_targets(sizes), group)
        else:
            budgets = [(config.resolved(sizes).target_token_num, sum(group))]
        for target, views in budgets:
            counts += divide(int(target), [patches] * views)
    return counts


@dataclass(frozen=True, kw_only=True)
class TowerPruner(Budgeted):
    """Settings of every method that picks or makes tokens of the tower's features.

    Raises ValueError on values that make no sense.
    """

    def tower_layers(self, ran: int) -> tuple[int, ...]:
        """By default the last layer that ran, whose CLS attention most methods rank by."""
        return (ranking_layer(self, ran),)

    def reduce(self, features: VisionFeatures, groups: Groups) -> list[Reduced] | None:
        """All patches of an image that may keep them, none of one that may keep none (a sample may
        have more images than tokens), and what `choose` gives of the others."""
        patches = features.patches.shape[1]
        counts = view_counts(self, patches, groups)
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

    def chosen(self, scores: Tensor, features: Tensor, count: int) -> Tensor:
        """The `count` tokens of one image, by `scores` (n,) of the tower and `features` (n, d):
        indices. For methods with `tower_scores`."""
        raise NotImplementedError

    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        """Nothing is left to do in the decoder, unless the tower gave scores alone."""
        if layout.mixed and layout.cls is not None:
            return ScoredRun(self)
        return TowerPruned(self, self.scoring, layout, shape)


class TowerPruned(PrunerRun):
    """One prefill of what the tower already reduced: says what choosing there cost.

    scoring(count, tower): multiply-accumulates for one image that keeps `count` < its patches.
    """

    def __init__(
        self,
        config: Budgeted,
        scoring: Callable[[int, TowerShape], int],
        layout: TokenLayout,
        shape: DecoderShape,
    ) -> None:
        tower, self._flops = shape.tower, []
        if tower is None:
            return
        for sizes in layout.sizes:
            group = [size // tower.patches for size in sizes]
            counts = view_counts(config, tower.patches, [group])
            reduced = [count for count in counts if count < tower.patches]
            self._flops.append(2 * sum(scoring(count, tower) for count in reduced))

    def scoring_flops(self) -> list[int]:
        return self._flops


class ScoredRun(PrunerRun):
    """One prefill of a stock model (`llava.hf`), whose tower gives all tokens and their scores: the
    choice is made before layer 0, by the embeddings where a method compares features."""

    def __init__(self, config: TowerPruner) -> None:
        self.config = config

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        targets = [int(self.config.resolved(s).target_token_num) for s in layout.sizes]
        keep = [min(target, n) for target, n in zip(targets, layout.n_visual)]
        scores = layout.cls
        if scores is None or keep == list(layout.n_visual):
            return None

        def choose(sample: int, image: ImageTokens, count: int) -> list[int]:
            span = image.span
            chosen = self.config.chosen(scores[sample, span], embeds[sample, span], count)
            indices: list[int] = chosen.tolist()
            return indices

        return select_in_images(layout, keep, choose, self.config.targets_in_images(layout.sizes))


def cls_attention(features: VisionFeatures, image: int) -> Tensor:
    """Attention of the CLS token of an image in the last layer that ran, or what patches receive
    there (`tower_scores`): (heads, patches)."""
    return features.ranking.of_image(image).cls_attention()[0]


def keep_patches(features: VisionFeatures, image: int, indices: Tensor) -> Reduced:
    """The patches `indices` (m,) of an image, as they are, in spatial order."""
    kept = indices.sort().values
    return Reduced(features.patches[image, kept], kept)


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of `scores` (n,), best first; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count]
