"""What methods share that drop visual tokens after a few layers, to counts known beforehand.

A depth d is the number of layers that have run before a cut, 1 <= d < L: everything enters layers
0 .. d - 1, the cut follows layer d - 1. Of cuts at equal depths, which scaling to a small decoder
can give, the last one counts.

Tokens per layer on average, N visual tokens, cuts at d_1 < .. < d_s that leave n_1 .. n_s:
  entering: (d_1 N + (d_2 - d_1) n_1 + .. + (L - d_s) n_s) / L          "strict" counts these
  leaving:  the same with every d_i one smaller

`Stages.fit` finds the counts for a target from a rule with one free number (see `solver`). In
strict mode what the rounding left over is spent, a token at a time, in the longest stage where it
still fits. The total so differs from L T by at most half the length of the shortest stage (a stage
that may not grow, because the one before is no larger, aside); a single cut at d is off by
(L - d) / 2 at most.

All images of a sample are one pool of visual tokens; with `budget_per` "image" what a cut keeps is
divided over them. A sample with no more tokens than the target keeps all.

Newlines end the rows of tiled pictures (LLaVA-1.6). `newlines` "candidates": they are visual tokens
like others and stay or leave by their scores, as in the reference code of these methods, which cuts
one block of image tokens out of the prompt and knows nothing of what is in it. "last": they count
as visual tokens, but leave before any patch does.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from torch import Tensor

from .base import Observation, PrunerRun
from .budget import Budgeted, Counted, Flow, token_target
from .checks import demand_later_layers, demand_text_behind
from .cost import DecoderShape
from .layout import Newlines, TokenLayout
from .schedules import recycled
from .selection import Selection
from .selectors import keep_top
from .solver import Choices, Problem, nearest, solve, top_up


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
        cuts, current = [], self.n_visual
        for depth, keep in zip(self.depths, keeps, strict=True):
            keep = max(1, min(keep, current - self.strictly))
            pool, clusters = recycled(current - keep, self.recycle)
            cuts.append(Cut(depth - 1, keep, pool, clusters))
            current = keep + clusters
        return tuple(cuts)

    def flow(self, keeps: Sequence[int]) -> Flow:
        """Visual tokens entering and leaving each layer."""
        leaving, current = [], self.n_visual
        after = {cut.layer: cut.keep + cut.clusters for cut in self.cuts(keeps)}
        for layer in range(self.layers):
            current = after.get(layer, current)
            leaving.append(current)
        return Flow([self.n_visual, *leaving[:-1]], leaving)

    def fit(
        self,
        rule: Callable[[float], Sequence[int]],
        target: float,
        counted: Counted,
        *,
        spend: bool = False,
        choices: Choices = nearest,
    ) -> tuple[int, ...]:
        """What the cuts keep so that `target` tokens a layer are met as `choices` says.

        `rule` gives what each cut keeps for a number in [0, 1] and grows with it. With `spend`,
        leftover tokens are spent (see the module).

        Raises BudgetError when a single token kept at every cut is more than the target.
        """
        ends = (*self.depths[1:], self.layers)
        longest_first = sorted(range(len(ends)), key=lambda i: self.depths[i] - ends[i])
        after = ", ".join(map(str, self.depths))
        problem = Problem(
            keep=rule,
            flow=self.flow,
            target=token_target(target, self.layers, counted),
            places=len(self.depths),
            n_visual=self.n_visual,
            where=f"after {after} of {self.layers} layers; raise the target or cut earlier",
            choices=top_up(longest_first) if spend else choices,
        )
        return solve(problem)[1]


def fit_single(
    n_visual: int,
    layers: int,
    depth: int,
    target: float,
    counted: Counted = "entering",
    choices: Choices = nearest,
) -> int:
    """What a single cut keeps so that `target` tokens a layer are met as `choices` says.

    Raises BudgetError when that is out of reach.
    """
    stages = Stages(n_visual, layers, (depth,))
    return stages.fit(lambda x: [int(x * n_visual)], target, counted, choices=choices)[0]


@dataclass(frozen=True, kw_only=True)
class StagedPruner(Budgeted):
    """Settings of every method that drops tokens after a few layers.

    budget_mode: "published" as each method says; "strict": T tokens enter a layer on average.
    newlines: of tiled pictures, what becomes of those, see the module.
    """

    newlines: Newlines = "candidates"

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
    """One prefill. A method says which rows it measures at a cut, and what the tokens score.

    needs_output: whether the scores look at what the layer before the cut returns.
    """

    needs_output: ClassVar[bool] = False

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

    def leaving(self, layer: int, layout: TokenLayout) -> list[int] | None:
        drops = self.needed_by(layer, layout)
        if self.needs_output and any(drops):
            return None
        return [
            n - plan[layer].keep - plan[layer].pool if dropping else 0
            for plan, dropping, n in zip(self.plans, drops, layout.n_visual)
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
            self.scores(observation, keep),
            keep,
            pools=[cut.pool for cut in cuts],
            clusters=[cut.clusters for cut in cuts],
            features=observation.hidden,
            targets=self.targets,
            positions=self.positions,
            newlines=self.config.newlines,
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
