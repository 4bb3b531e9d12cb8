"""What methods share that choose a number of visual tokens once, before layer 0.

The target T is the total of a sample. Several images divide it in proportion to their tokens, by
largest remainder (of equal ones the first image's), and the method chooses in each of them. T
tokens enter and leave every layer, so both ways of counting a budget, `published` on tokens leaving
a layer and `strict` on tokens entering it, mean the same here. A sample with no more than T visual
tokens keeps all.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch
from torch import Tensor

from .base import PrunerRun
from .cost import DecoderShape
from .layout import TEXT, Selection, TokenLayout
from .selectors import keep_top
from .target import WholeTarget


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image: their columns in the layout, ascending.

    side: of the square of patches that they are, row by row; None if they are no whole square.
    """

    columns: Sequence[int]
    side: int | None

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True, kw_only=True)
class EntryPruner(WholeTarget):
    """Settings of every method that chooses among the embeddings before layer 0.

    positions: rotary positions "compact" (0, 1, 2, ... over what is left) or "original".

    Raises ValueError on values that make no sense.
    """

    positions: Literal["compact", "original"] = "compact"

    @abc.abstractmethod
    def choose(self, image: ImageTokens, count: int, embeds: Tensor) -> Iterable[int]:
        """`count` different indices into the tokens of an image, 0 <= count <= len(image).

        `embeds` (len(image), d) is what the projector gave of them.
        """

    def pairs(self, tokens: int, count: int) -> int:
        """How many pairs of embeddings `choose` compares, for the FLOPs of scoring."""
        return 0

    def start(self, layout: TokenLayout, shape: DecoderShape) -> EntryRun:
        return EntryRun(self)


class EntryRun(PrunerRun):
    """One prefill: everything happens at its entry."""

    def __init__(self, config: EntryPruner) -> None:
        self.config = config
        self.positions = config.positions
        self._flops: list[int] = []

    def scoring_flops(self) -> list[int]:
        return self._flops

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        """Keep what the method chooses in each image. Waits for the device, to see the images."""
        target = int(self.config.target_token_num)
        if max(layout.n_visual) <= target:
            return None
        self._flops = [0] * layout.batch

        def choose(sample: int, image: ImageTokens, count: int) -> Iterable[int]:
            own = embeds[sample, image.columns[0] : image.columns[-1] + 1]
            self._flops[sample] += 2 * self.config.pairs(len(image), count) * embeds.shape[-1]
            return self.config.choose(image, count, own)

        return select_in_images(layout, [min(target, n) for n in layout.n_visual], choose)


def select_in_images(
    layout: TokenLayout,
    keep: Sequence[int],
    choose: Callable[[int, ImageTokens, int], Iterable[int]],
) -> Selection | None:
    """Keep `keep[i]` visual tokens of sample i, which its images share as `divide` says.

    `choose(sample, image, count)` gives `count` different indices into the tokens of an image,
    0 <= count < len(image); it is not asked where an image keeps all. Waits for the device.
    """
    chosen = torch.zeros(layout.image.shape)
    for sample, images in enumerate(find_images(layout)):
        counts = divide(keep[sample], [len(image) for image in images])
        for image, count in zip(images, counts):
            whole = count == len(image)
            indices = range(count) if whole else choose(sample, image, count)
            chosen[sample, [image.columns[index] for index in indices]] = 1
    return keep_top(layout, chosen.to(layout.image.device), keep)


def divide(total: int, sizes: Sequence[int]) -> list[int]:
    """Split `total` over images of `sizes` tokens in proportion, by largest remainder.

    No image gets more than it has; a total at or above the sum of the sizes gives all of each.
    """
    whole = sum(sizes)
    if total >= whole:
        return list(sizes)
    counts = [total * size // whole for size in sizes]
    # The sort is stable: of equal remainders the first image's comes first.
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(total * sizes[i] % whole))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def find_images(layout: TokenLayout) -> list[list[ImageTokens]]:
    """The images of each sample, in order."""
    return [
        _images_of(image, patch, layout.mixed)
        for image, patch in zip(layout.image.tolist(), layout.patch.tolist())
    ]


def _images_of(image: Sequence[int], patch: Sequence[int], mixed: bool) -> list[ImageTokens]:
    columns: dict[int, list[int]] = {}
    for column, owner in enumerate(image):
        if owner != TEXT:
            columns.setdefault(owner, []).append(column)
    found = []
    next_patch = 0
    for own in columns.values():
        ids, side = [patch[column] for column in own], isqrt(len(own))
        # Where the vision tower handed over only some patches, their ids have gaps.
        whole = ids == list(range(next_patch, next_patch + len(own))) and not mixed
        found.append(ImageTokens(own, side if whole and side * side == len(own) else None))
        next_patch = ids[-1] + 1
    return found
