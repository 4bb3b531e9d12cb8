"""Uniform grid: T visual tokens spread evenly over each image before layer 0. A floor.

Published comparisons hardly ever print it. It covers the picture without looking at it: nothing is
random, and letterbox patches are taken like any other; newlines of LLaVA-1.6, which are on no grid,
are not taken.

The rule, for a square grid of g x g patches and T tokens, from 1 to g^2:
    R = sqrt(T) rounded to the nearest whole number; the grid is cut into R bands of equal height;
    band i, from 0, gets floor((i + 1) T / R) - floor(i T / R) tokens: T / R rounded down or up,
    and is cut into as many cells of equal width;
    the token of a cell is the patch that holds the cell's centre: row floor((i + 1/2) g / R),
    column floor((j + 1/2) g / t) for cell j of the t of its band. A centre on the border of two
    patches belongs to the later one.
A square T gives a regular lattice: 64 of 24 x 24 are rows and columns 1, 4, 7, ..., 22. Any T gives
exactly T different patches, since no band is thinner than a patch and no cell narrower.

Where the tokens are no square grid (the vision tower handed over a part of its patches, or another
shape), they are taken at even steps of their order: indices floor((i + 1/2) n / T) of n.

Several images and the ways of counting T: `entry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

from torch import Tensor

from ..entry import EntryPruner, ImageTokens
from ..registry import register


@register
@dataclass(frozen=True, kw_only=True)
class UniformGrid(EntryPruner):
    """Settings of `EntryPruner`."""

    method: ClassVar[str] = "uniform-grid"
    needs_grid: ClassVar[bool] = True

    def choose(self, image: ImageTokens, count: int, embeds: Tensor) -> list[int]:
        if image.side is None:
            return centres(len(image), count)
        return lattice(image.side, count)


def lattice(side: int, count: int) -> list[int]:
    """Indices, ascending, of `count` patches spread over a grid of side x side, row by row."""
    if not count:
        return []
    bands = isqrt(count)
    bands += count > bands * (bands + 1)  # sqrt(count) rounds up from bands + 1/2
    chosen = []
    for band, row in enumerate(centres(side, bands)):
        tokens = (band + 1) * count // bands - band * count // bands
        chosen += [row * side + column for column in centres(side, tokens)]
    return chosen


def centres(length: int, parts: int) -> list[int]:
    """The places that hold the centres of `parts` equal parts of 0 .. length - 1, ascending."""
    return [(2 * part + 1) * length // (2 * parts) for part in range(parts)]
