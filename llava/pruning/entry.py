"""What methods share that choose a number of visual tokens once, before layer 0.

The target T is the total of a sample. Several images divide it in proportion to their tokens, by
largest remainder (of equal ones the first image's), and the method chooses in each of them; with
`budget_per` "image" each has a T of its own. Newlines of a tiled picture (LLaVA-1.6) are tokens of
it and, unless a method says otherwise, are never chosen: they stay only where all its patches do.
T tokens enter and leave every layer, so both ways of counting a budget, `published` on tokens
leaving a layer and `strict` on tokens entering it, mean the same here. A sample with no more than T
visual tokens keeps all.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal

import torch
from torch import Tensor

from .base import PrunerRun
from .budget import Budgeted
from .cost import DecoderShape
from .images import columns_of_images, divide, share_out
from .layout import TokenLayout
from .selection import Selection
from .selectors import keep_top


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image to choose from: their columns in the layout, ascending.

    side: of the square of patches that they are, row by row; None if they are no whole square.
    newlines: tokens of the image that are none of these.
    scores: (len,) what the vision tower says of each, see `TokenLayout.cls`; None where nothing.
    """

    columns: Sequence[int]
    side: int | None
    newlines: int = 0
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def span(self) -> slice | list[int]:
        """What indexes the patches in the row of their sample: a slice where there are no gaps, so
        that no index has to go to the device."""
        first, stop = self.columns[0], self.columns[-1] + 1
        return slice(first, stop) if stop - first == len(self) else list(self.columns)


@dataclass(frozen=True, kw_only=True)
class EntryPruner(Budgeted):
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

    @property
    def chooses_newlines(self) -> bool:
        """Whether newlines of tiled pictures are chosen from like patches."""
        return False

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
        targets = [int(self.config.resolved(s).target_token_num) for s in layout.sizes]
        if all(n <= target for n, target in zip(layout.n_visual, targets)):
            return None
        self._flops = [0] * layout.batch

        def choose(sample: int, image: ImageTokens, count: int) -> Iterable[int]:
            self._flops[sample] += 2 * self.config.pairs(len(image), count) * embeds.shape[-1]
            if layout.cls is not None:
                image = replace(image, scores=layout.cls[sample, image.span])
            return self.config.choose(image, count, embeds[sample, image.span])

        keep = [min(target, n) for target, n in zip(targets, layout.n_visual)]
        in_images = self.config.targets_in_images(layout.sizes)
        images = find_images(layout, self.config.chooses_newlines)
        return select_in_images(layout, keep, choose, in_images, images)


def select_in_images(
    layout: TokenLayout,
    keep: Sequence[int],
    choose: Callable[[int, ImageTokens, int], Iterable[int]],
    targets: Sequence[Sequence[float]] | None = None,
    known_images: Sequence[Sequence[ImageTokens]] | None = None,
) -> Selection | None:
    """Keep `keep[i]` visual tokens of sample i, which its images share in proportion to their
    `targets`, or to their tokens where there are none.

    `choose(sample, image, count)` gives `count` different indices into the tokens of an image,
    0 <= count < len(image); it is not asked where an image keeps all its patches. Waits for the
    device, unless it has been to see the images, `known_images`.
    """
    chosen = torch.full(layout.image.shape, -1.0)
    shares = []
    for sample, images in enumerate(known_images or find_images(layout)):
        sizes = [len(image) + image.newlines for image in images]
        if targets is None:
            counts = divide(keep[sample], sizes)
        else:
            counts = share_out(keep[sample], targets[sample], sizes)
        shares.append(counts)
        for image, count in zip(images, counts):
            # What is left over when all patches stay goes to the image's newlines, see `keep_top`.
            whole = count >= len(image)
            indices = range(len(image)) if whole else choose(sample, image, count)
            chosen[sample, [image.columns[index] for index in indices]] = 1
    shared = shares if layout.tile is not None else None
    scores = chosen.to(layout.image.device)
    if (newline := layout.is_newline) is not None:
        # Adds up to 0 with what ranks a newline below every patch: between chosen and not chosen.
        highest = torch.finfo(scores.dtype).max
        scores = scores.masked_fill(newline & (scores > 0), highest)
    return keep_top(layout, scores, keep, targets=shared)


def find_images(layout: TokenLayout, newlines: bool = False) -> list[list[ImageTokens]]:
    """The images of each sample, in order. Waits for the device, once.

    newlines: whether those of tiled pictures are to be chosen from.
    """
    tiled = layout.tile is not None
    candidates = layout.is_visual if newlines else layout.is_patch
    marks = candidates.long() if tiled else layout.patch
    images, marked = torch.stack([layout.image, marks]).tolist()
    if tiled:
        return [_tiled_images(image, is_patch) for image, is_patch in zip(images, marked)]
    return [_images_of(image, patch, layout.mixed) for image, patch in zip(images, marked)]


def _tiled_images(image: Sequence[int], is_patch: Sequence[int]) -> list[ImageTokens]:
    images = []
    for columns in columns_of_images(image).values():
        patches = [column for column in columns if is_patch[column]]
        images.append(ImageTokens(patches, None, len(columns) - len(patches)))
    return images


def _images_of(image: Sequence[int], patch: Sequence[int], mixed: bool) -> list[ImageTokens]:
    images = []
    next_patch = 0
    for columns in columns_of_images(image).values():
        ids, tokens = [patch[column] for column in columns], len(columns)
        # Where the vision tower handed over only some patches, their ids have gaps.
        whole = ids == list(range(next_patch, next_patch + tokens)) and not mixed
        side = isqrt(tokens)
        images.append(ImageTokens(columns, side if whole and side * side == tokens else None))
        next_patch = ids[-1] + 1
    return images
