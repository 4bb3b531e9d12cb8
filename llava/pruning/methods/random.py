"""Random: T visual tokens chosen at random before layer 0. A floor that every method should beat.

Published comparisons hardly ever print it. It is strong where neighbouring patches say much the
same, for then a random part of them still covers the picture.

One mask a seed and size: the choice depends on the seed and on the number of tokens of the image,
and on nothing else. So a batch gives what its samples give alone, a continued run what an
uninterrupted one gives, and the tokens of a smaller T are among those of a larger one. All images
of one size therefore lose the same patches; the spread of the method is that over seeds
(`--set seed=1`). Letterbox patches are drawn like any other; newlines of LLaVA-1.6, which show
nothing, are not drawn.

Several images and the ways of counting T: `entry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import demand
from ..entry import EntryPruner, ImageTokens
from ..registry import register

_SEEDS = 2**63


@register
@dataclass(frozen=True, kw_only=True)
class Random(EntryPruner):
    """Settings of `EntryPruner`, and `seed`, a whole number from 0.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = isinstance(self.seed, int) and 0 <= self.seed < _SEEDS
        demand(self, "seed", ok, "a whole number from 0 to 2^63 - 1")

    def choose(self, image: ImageTokens, count: int, embeds: Tensor) -> list[int]:
        # A generator of its own: neither the caller's random numbers nor earlier calls matter.
        generator = torch.Generator("cpu").manual_seed(self.seed)
        order = torch.randperm(len(image), generator=generator, device="cpu")
        return order[:count].tolist()
