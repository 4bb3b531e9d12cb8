"""ZipVL: each layer keeps the fewest visual tokens that hold a share tau of the attention.

Paper: "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification". A few
probe tokens are compared with all tokens; the attention that each token gets is accumulated and
divided by the number of probes that can see it; in every layer the fewest tokens whose sum reaches
tau times the total are important. The share tau is its only knob: how many tokens that are comes
out, per sample and layer.

The code, ThisisBillhe/ZipVL, could not be read, and the constants are not known. What the paper
leaves open was chosen as follows:
- The probes are the last `probes` tokens of the prompt, as far as they follow the last image. The
  paper adds random ones; here nothing is random. All of them see every visual token, so dividing
  by their number changes nothing. Heads are averaged.
- Text is never dropped, and the total is the attention on what is left of the visual tokens.
- A token that is not important is dropped: it takes part in no later layer, neither in attention
  nor in the MLP. This is the evicting version of the paper; the other one quantises the keys and
  values of such tokens. Whether a later layer could take a token up again is not public.
- Rotary positions stay ("original"), as the paper has it.

tau is the method's own knob: `tau=0.98` (`--set tau=0.98`) drops after every layer but the last,
and target_token_num is not looked at. Without it, each sample gets the tau that meets
target_token_num: after layer 0, the tokens sorted by the attention on them give the share F(c) that
the best c hold. If all layers shared attention out like layer 0, keeping tau of what is left after
every layer would leave n_l = the fewest c with F(c) >= tau^(l+1) after layer l. tau is bisected
until the sum of these meets the budget; what integers leave over goes to the first layers. The
counts are then fixed, the ranking is each layer's own. A sample that looks at few tokens keeps few
for long, one that looks everywhere loses them evenly. The trace has the tau found.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal

from torch import Tensor

from ..base import Observation, PrunerRun
from ..budget import Budgeted, Flow, Target, token_target
from ..checks import demand, demand_text_behind
from ..cost import DecoderShape
from ..indicators import text_relevance
from ..layout import TokenLayout
from ..registry import register
from ..selection import Selection
from ..selectors import keep_top
from ..solver import Problem, fill, solve

_WHERE = "after every layer that drops"
#: Least total of a curve, so that no attention at all gives shares of 0: float32's least normal.
_TINY = 2.0**-126


@register
@dataclass(frozen=True, kw_only=True)
class ZipVL(Budgeted):
    """Settings of ZipVL.

    target_token_num: visual tokens per layer on average. How they are counted: budget_mode
        "published": leaving each layer; "strict": entering each layer, layer 0 with all of them.
    tau: instead, the share of the attention to keep in each layer, in (0, 1].
    probes: most tokens whose attention is measured.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "zipvl"
    fractional: ClassVar[bool] = True

    tau: float | None = None
    probes: int = 64
    positions: Literal["compact", "original"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.tau is None or 0 < self.tau <= 1
        demand(self, "tau", ok, "none or a share in (0, 1]")
        demand(self, "probes", self.probes >= 1, "at least 1")

    def start(self, layout: TokenLayout, shape: DecoderShape) -> ZipVLRun:
        """Raises ValueError for an image without text behind it, and a budget below the floor."""
        return ZipVLRun(self, layout, shape)


class ZipVLRun(PrunerRun):
    """State of one prefill: the counts of each sample, once layer 0 has run."""

    def __init__(self, config: ZipVL, layout: TokenLayout, shape: DecoderShape) -> None:
        self.config, self.layers = config, shape.layers
        self.positions = config.positions
        demand_text_behind(config.method, layout)
        free = config.tau is not None
        # Only the published way of counting looks at what leaves the last layer.
        self.drops = shape.layers - (free or config.strict)
        budgets = [config.resolved(sizes).target_token_num for sizes in layout.sizes]
        self.targets = None if free else config.targets_in_images(layout.sizes)
        self.active = [
            visual > 0 and (free or tokens < visual)
            for tokens, visual in zip(budgets, layout.n_visual)
        ]
        self.budgets = [
            token_target(tokens, shape.layers, config.counted, whole=True) for tokens in budgets
        ]
        for budget, visual, active in zip(self.budgets, layout.n_visual, self.active):
            if active and not free:
                least = budget.cost(flow(visual, shape.layers, [1] * self.drops))
                budget.demand_reachable(least, visual, _WHERE)
        self.counts: list[list[int]] = []
        self.solved: list[dict[str, float]] = []

    def rows(self, layer: int, layout: TokenLayout) -> int:
        needed = any(self.needed_by(layer, layout))
        return min(max(layout.tail), self.config.probes) if needed else 0

    def needed_by(self, layer: int, layout: TokenLayout) -> list[bool]:
        """Those that may drop; once the counts are known, those that do."""
        if layer >= self.drops:
            return [False] * layout.batch
        if not self.counts:
            return self.active
        return [
            active and counts[layer] < visual
            for counts, active, visual in zip(self.counts, self.active, layout.n_visual)
        ]

    def leaving(self, layer: int, layout: TokenLayout) -> list[int] | None:
        if self.config.tau is not None and layer < self.drops:
            return None
        if layer >= self.drops:
            return [0] * layout.batch
        # What leaves layer 0 is known once its rows are: many, if the budget is what it is for.
        counts = self.counts or [[0] * self.drops] * layout.batch
        return [
            n - kept[layer] if active else 0
            for n, kept, active in zip(layout.n_visual, counts, self.active)
        ]

    def after_layer(self, observation: Observation) -> Selection | None:
        """Waits for the device: after every layer with `tau`, otherwise after layer 0 only."""
        if observation.rows is None:
            return None
        layer, layout = observation.layer, observation.layout
        mass = text_relevance(*observation.measured())
        if self.config.tau is not None:
            keep = [
                fewest(curve, self.config.tau) if curve else 0 for curve in curves(mass, layout)
            ]
            return keep_top(layout, mass, keep)
        if not self.counts:
            self._solve(curves(mass, layout))
        keep = [
            counts[layer] if active else visual
            for counts, active, visual in zip(self.counts, self.active, layout.n_visual)
        ]
        return keep_top(layout, mass, keep, targets=self.targets)

    def _solve(self, measured: Sequence[Sequence[float]]) -> None:
        for curve, budget, active in zip(measured, self.budgets, self.active):
            tau, counts = solve_tau(curve, self.layers, self.drops, budget) if active else (1.0, [])
            self.counts.append(counts)
            self.solved.append({"tau": tau} if active else {})

    def complexity(self) -> list[dict[str, float]]:
        return self.solved


def curves(mass: Tensor, layout: TokenLayout) -> list[list[float]]:
    """Share of a sample's visual attention that its best 1, 2, ... tokens hold.

    mass (batch, n), 0 or more. Summed in double precision on the host; waits for the device once.
    """
    mass = (mass * layout.is_patch).masked_fill(~layout.is_visual, -1)
    ranked = mass.sort(dim=1, descending=True).values
    per_sample = []
    for row, tokens in zip(ranked.tolist(), layout.n_visual):
        summed = list(accumulate(row[:tokens]))
        total = max(summed[-1], _TINY) if summed else _TINY
        per_sample.append([value / total for value in summed])
    return per_sample


def fewest(curve: Sequence[float], share: float) -> int:
    """How few of the best tokens hold `share` of the attention: 1 to all of them."""
    return min(bisect_left(curve, share) + 1, len(curve))


def flow(visual: int, layers: int, counts: Sequence[int]) -> Flow:
    """What enters and leaves each layer when `counts` are left after the first ones."""
    leaving = [*counts]
    leaving += [leaving[-1] if leaving else visual] * (layers - len(counts))
    return Flow([visual, *leaving[:-1]], leaving)


def solve_tau(
    curve: Sequence[float], layers: int, drops: int, budget: Target
) -> tuple[float, list[int]]:
    """tau, and the counts after each of the first `drops` layers, see the module.

    The counts never increase and meet the budget to the token.
    """
    visual = len(curve)

    def keep(tau: float) -> list[int]:
        return [fewest(curve, tau**layer) for layer in range(1, drops + 1)]

    problem = Problem(
        keep=keep,
        flow=lambda counts: flow(visual, layers, counts),
        target=budget,
        places=drops,
        n_visual=visual,
        where=_WHERE,
        # Tokens that no probe looks at come in at no tau at all.
        full=[visual] * drops,
        choices=fill,
    )
    tau, counts = solve(problem)
    return tau, list(counts)
