"""What methods share that drop visual tokens after a few layers, to counts known beforehand.

A depth d is the number of layers that have run before a cut, 1 <= d < L: everything enters layers
0 .. d - 1, the cut follows layer d - 1. Of cuts at equal depths, which scaling to a small decoder
can give, the last one counts.

Tokens per layer on average, N visual tokens, cuts at d_1 < .. < d_s that leave n_1 .. n_s:
  entering: (d_1 N + (d_2 - d_1) n_1 + .. + (L - d_s) n_s) / L          "strict" counts these
  leaving:  the same with every d_i one smaller

`Stages.fit` finds the counts for a target from a rule with one free number. In strict mode it then
spends what the rounding left over, a token at a time, in the longest stage where it still fits. The
total so differs from L T by at most half the length of the shortest stage (a stage that may not
grow, because the one before is no larger, aside); a single cut at d is off by (L - d) / 2 at most.

All images of a sample are one pool of visual tokens; with `budget_per` "image" what a cut keeps is
divided over them. A sample with no more tokens than the target
keeps all.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

from .base import Observation, PrunerRun
from .checks import BudgetError, demand_later_layers, demand_text_behind
from .cost import DecoderShape
from .layout import Selection, TokenLayout
from .schedules import recycled
from .selectors import keep_top
from .target import WholeTarget

Counted = Literal["entering", "leaving"]

_HALVINGS = 60


@dataclass(frozen=True)
class Cut:
    """After layer `layer` (from 0): `keep` tokens stay, `pool` more become `clusters` tokens."""

    layer: int
    keep: int
    pool: int = 0
    clusters: int = 0


@dataclass(frozen=True)
class Stages:
    """The arithmetic of one sample.

    n_visual: visual tokens entering layer 0; layers: of the decoder; depths: of the cuts, ascending
    recycle:  share of the dropped tokens that is merged (0: none), see `schedules.recycled`
    strictly: every cut drops at least one token, whatever it may keep
    """

    n_visual: int
    layers: int
    depths: tuple[int, ...]
    recycle: float = 0.0
    strictly: bool = False

    def cuts(self, keeps: Sequence[int]) -> tuple[Cut, ...]:
        """The cuts that keep `keeps[i]` tokens each, or as many as are there."""
        made, current = [], self.n_visual
        for depth, keep in zip(self.depths, keeps, strict=True):
            keep = max(1, min(keep, current - self.strictly))
            pool, clusters = recycled(current - keep, self.recycle)
            made.append(Cut(depth - 1, keep, pool, clusters))
            current = keep + clusters
        return tuple(made)

    def total(self, keeps: Sequence[int], counted: Counted) -> int:
        """Visual tokens entering or leaving the layers, summed over layers."""
        cuts = self.cuts(keeps)
        after = [cut.layer + (counted == "entering") for cut in cuts]
        bounds = [0, *after, self.layers]
        counts = [self.n_visual, *(cut.keep + cut.clusters for cut in cuts)]
        return sum((b - a) * n for a, b, n in zip(bounds, bounds[1:], counts))

    def demand_reachable(self, target: float, counted: Counted) -> None:
        """Raise BudgetError when a single token kept at every cut is more than the target."""
        least = self.total((1,) * len(self.depths), counted) / self.layers
        if least > target:
            raise BudgetError(
                f"target_token_num {target:g} is below the floor of {least:.6g} tokens {counted} "
                f"a layer: that much cost {self.n_visual} visual tokens with a single one kept "
                f"after {', '.join(map(str, self.depths))} of {self.layers} layers; raise the "
                "target or cut earlier"
            )

    def fit(
        self,
        rule: Callable[[float], Sequence[int]],
        target: float,
        counted: Counted,
        *,
        spend: bool,
    ) -> tuple[int, ...]:
        """What the cuts keep so that `target` tokens a layer are met as nearly as possible.

        `rule` gives what each cut keeps for a number in [0, 1] and grows with it. Of two that are
        equally near the smaller is taken. With `spend`, leftover tokens are spent (see the module).

        Raises ValueError when a single token kept at every cut is more than the target.
        """
        self.demand_reachable(target, counted)
        wanted = target * self.layers

        def cost(keeps: Sequence[int]) -> int:
            return self.total(keeps, counted)

        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(rule(middle)) <= wanted else (low, middle)
        under, over = tuple(rule(low)), tuple(rule(high))
        tries = [under, over]
        if spend and cost(over) > wanted:
            under = self._spend(under, wanted, cost)
            tries = [under, over, *self._one_more(under)]
        return min(tries, key=lambda keeps: abs(cost(keeps) - wanted))

    def _spend(
        self, keeps: tuple[int, ...], wanted: float, cost: Callable[[Sequence[int]], int]
    ) -> tuple[int, ...]:
        while True:
            now = cost(keeps)
            fitting = (more for more in self._one_more(keeps) if now < cost(more) <= wanted)
            better = next(fitting, None)
            if better is None:
                return keeps
            keeps = better

    def _one_more(self, keeps: tuple[int, ...]) -> list[tuple[int, ...]]:
        """`keeps` with a token more in one stage, the longest stage first."""
        ends = (*self.depths[1:], self.layers)
        order = sorted(range(len(keeps)), key=lambda i: self.depths[i] - ends[i])
        return [(*keeps[:i], keeps[i] + 1, *keeps[i + 1 :]) for i in order]


def fit_single(n_visual: int, layers: int, depth: int, target: float) -> int:
    """What a single cut keeps so that `target` tokens enter a layer, as nearly as possible.

    Raises ValueError when that is out of reach.
    """
    stages = Stages(n_visual, layers, (depth,))
    return stages.fit(lambda x: [int(x * n_visual)], target, "entering", spend=False)[0]


@dataclass(frozen=True, kw_only=True)
class StagedPruner(WholeTarget):
    """Settings of every method that drops tokens after a few layers.

    budget_mode: "published" as each method says; "strict": T tokens enter a layer on average.
    """

    @property
    @abc.abstractmethod
    def cut_depths(self) -> tuple[int, ...]:
        """Depths of the cuts, ascending; equal ones are allowed."""

    @abc.abstractmethod
    def cuts(self, n_visual: int, shape: DecoderShape) -> tuple[Cut, ...]:
        """The cuts of a sample with `n_visual` visual tokens, at least 1; () to leave it alone.

        Raises ValueError when the budget is out of reach.
        """


@lru_cache(maxsize=1024)
def _cuts(config: StagedPruner, n_visual: int, shape: DecoderShape) -> dict[int, Cut]:
    return {cut.layer: cut for cut in config.cuts(n_visual, shape)}


class StagedRun(PrunerRun, abc.ABC):
    """One prefill. A method says which rows it measures at a cut, and what the tokens score."""

    def __init__(
        self, config: StagedPruner, layout: TokenLayout, shape: DecoderShape, positions: str
    ) -> None:
        self.config, self.shape, self.positions = config, shape, positions
        fields = ", ".join(config.depths)
        demand_later_layers(config.method, fields, config.cut_depths[-1], shape.layers)
        demand_text_behind(config.method, layout)
        self.plans = [
            _cuts(config.resolved(sizes), n, shape) if n else {}
            for sizes, n in zip(layout.sizes, layout.n_visual)
        ]
        self.targets = config.targets_in_images(layout.sizes)
        self._flops = [0] * layout.batch

    def scoring_flops(self) -> list[int]:
        return self._flops

    def rows(self, layer: int, layout: TokenLayout) -> int:
        return self.rows_at_cut(layout) if any(self.needed_by(layer, layout)) else 0

    def needed_by(self, layer: int, layout: TokenLayout) -> list[bool]:
        return [
            layer in plan and plan[layer].keep < n for plan, n in zip(self.plans, layout.n_visual)
        ]

    def after_layer(self, observation: Observation) -> Selection | None:
        layer, layout = observation.layer, observation.layout
        drops = self.needed_by(layer, layout)
        if not any(drops):
            return None
        for i, dropping in enumerate(drops):
            if dropping:
                self._flops[i] += self.flops_at_cut(layout, i)
        cuts = [
            plan[layer] if dropping else Cut(layer, n)
            for plan, dropping, n in zip(self.plans, drops, layout.n_visual)
        ]
        keep = [cut.keep for cut in cuts]
        return keep_top(
            layout,
            self.scores(observation, keep).to(layout.image.device),
            keep,
            pools=[cut.pool for cut in cuts],
            clusters=[cut.clusters for cut in cuts],
            features=observation.hidden,
            targets=self.targets,
        )

    def rows_at_cut(self, layout: TokenLayout) -> int:
        """How many of the last tokens' attention rows the scores need."""
        return 0

    def flops_at_cut(self, layout: TokenLayout, sample: int) -> int:
        """FLOPs of scoring a sample at a cut, beyond the measured rows."""
        return 0

    @abc.abstractmethod
    def scores(self, observation: Observation, keep: Sequence[int]) -> Tensor:
        """(batch, n): of each sample i the `keep[i]` highest-scoring visual tokens stay."""
