"""The solver of budgets: finds the scale at which what a method keeps meets its target.

A method states its `Problem`: how many tokens it would keep at a scale, which tokens then enter
and leave each layer, and the `Target`. `solve` bisects the scale, spends what rounding leaves over,
and refuses a budget below the floor. A single token kept at each place is the floor.

Paper (arXiv 2509.23931, section 3.3): a bisection of a global scale until the floors sum to the
budget. The released code bisects only, see `Problem.early`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .budget import Flow, Target

Counts = tuple[int, ...]

# Bisecting [0, 20] in double precision stops moving after about 57 halvings; more change nothing.
_HALVINGS = 60


@dataclass(frozen=True)
class Problem:
    """What a method would keep of one sample, and the target to meet with it.

    keep:   tokens kept at each place that drops any, at a scale; never fewer at a larger one
    flow:   the flow that such counts make
    target: see `Target`
    places: how many places there are; a single token kept at each is the floor
    n_visual, where: for messages: the visual tokens of the sample, and where one is kept at least
    high:   the scale from which on `keep` grows no more, or the first to try if it `grows`
    grows:  whether a scale above the given one keeps more
    full:   counts to go up to where even the scale `high` costs too little, if not its own
    rounding: which counts to take of those on both sides of the target: "nearest" (the lower of
        two that are equally near), "down" or "up"
    spend:  instead, counts between both sides to take the nearest of, see `fill` and `top_up`
    early:  stop at a cost within a hundredth of the target, or where twelve digits of the scale are
        known, and take the nearest counts on the way, the first of equally near ones: AutoPrune as
        released, whose recorded counts and scales depend on it. `spend` is for what is then left.
    """

    keep: Callable[[float], Sequence[int]]
    flow: Callable[[Sequence[int]], Flow]
    target: Target
    places: int
    n_visual: int
    where: str
    high: float = 1.0
    grows: Callable[[float], bool] = lambda scale: False
    full: Sequence[int] | None = None
    rounding: Literal["nearest", "down", "up"] = "nearest"
    spend: Callable[[Problem, Counts, Counts], Iterator[Counts]] | None = None
    early: bool = False

    def cost(self, counts: Sequence[int]) -> float:
        return self.target.cost(self.flow(counts))

    @property
    def floor(self) -> float:
        """The least that can be had: a single token kept at each place."""
        return self.cost((1,) * self.places)


def solve(problem: Problem) -> tuple[float, Counts]:
    """The scale at which the counts of a problem meet its target, and these counts.

    Raises BudgetError when even a single token kept at each place costs more than the target.
    """
    target = problem.target
    target.demand_reachable(problem.floor, problem.n_visual, problem.where)
    if not problem.places:
        return 0.0, ()

    low, high = 0.0, problem.high
    while problem.grows(high) and problem.cost(problem.keep(high)) < target.amount:
        low, high = high, high * 8
    best_scale, best, best_gap = 0.0, (), math.inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        counts = tuple(problem.keep(middle))
        cost = problem.cost(counts)
        if abs(cost - target.amount) < best_gap:
            best_scale, best, best_gap = middle, counts, abs(cost - target.amount)
        if problem.early and best_gap < 0.01:
            return best_scale, best
        low, high = (middle, high) if cost <= target.amount else (low, middle)
        if problem.early and high - low <= 1e-12 * high:
            break
    if problem.early and not problem.spend:
        return best_scale, best

    under = tuple(problem.keep(low))
    reached = problem.full is None or high < problem.high
    over = tuple(problem.keep(high) if reached else problem.full)
    if problem.spend:
        choices: Iterable[Counts] = problem.spend(problem, under, over)
    elif problem.rounding == "nearest":
        choices = (under, over)
    else:
        enough = problem.rounding == "down" or problem.cost(under) == target.amount
        choices = (under if enough else over,)
    return best_scale if problem.early else low, _nearest(problem, choices)


def _nearest(problem: Problem, choices: Iterable[Counts]) -> Counts:
    """Of `choices` the first whose cost is nearest to the target."""
    best, best_gap = (), math.inf
    for counts in choices:
        gap = abs(problem.cost(counts) - problem.target.amount)
        if gap < best_gap:
            best, best_gap = counts, gap
        if not gap:
            break
    return best


def fill(problem: Problem, under: Counts, over: Counts) -> Iterator[Counts]:
    """`under` raised to `over` a token at a time, place by place from the first.

    Where no count of either is above the one before, so it is all along.
    """
    counts = list(under)
    yield under
    for place, most in enumerate(over):
        while counts[place] < most:
            counts[place] += 1
            yield tuple(counts)


def top_up(
    order: Sequence[int],
) -> Callable[[Problem, Counts, Counts], Iterator[Counts]]:
    """Raise counts a token at a time while the target allows, the first place of `order` that can.

    Unlike `fill` this goes on beyond the counts of the upper scale.
    """

    def one_more(counts: Counts) -> list[Counts]:
        return [(*counts[:i], counts[i] + 1, *counts[i + 1 :]) for i in order]

    def spend(problem: Problem, under: Counts, over: Counts) -> Iterator[Counts]:
        cost, amount = problem.cost, problem.target.amount
        more: Counts | None = under if cost(over) > amount else None
        while more:
            under, now = more, cost(more)
            more = next((c for c in one_more(under) if now < cost(c) <= amount), None)
        yield under
        yield over
        if cost(over) > amount:
            yield from one_more(under)

    return spend
