"""The solver of budgets: finds the scale at which what a method keeps meets its target.

A method states its `Problem`: how many tokens it would keep at a scale, which tokens then enter
and leave each layer, and the `Target`. `solve` bisects the scale, spends what rounding leaves over,
and refuses a budget below the floor.

Paper (arXiv 2509.23931, section 3.3): a bisection of a global scale until the floors sum to the
budget. The released code bisects only, see `Problem.released`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .budget import Flow, Target

Counts = tuple[int, ...]
#: (problem, counts at or below the target, counts above it) -> counts to choose from
Choices = Callable[["Problem", Counts, Counts], Iterator[Counts]]

# Bisecting [0, 20] in double precision stops moving after about 57 halvings; more change nothing.
_HALVINGS = 60


@dataclass(frozen=True)
class Problem:
    """What a method would keep of one sample, and the target to meet with it.

    keep:   tokens kept at each place that drops any, at a scale; never fewer at a larger one
    flow:   the flow that such counts make
    places: how many places there are; a single token kept at each is the floor
    n_visual, where: for messages: the visual tokens of the sample, and where one is kept at least
    high:   the scale from which on `keep` grows no more, or the first to try if it `grows`
    grows:  whether a scale above the given one keeps more
    full:   counts to go up to where even the scale `high` costs too little, if not its own
    choices: of the counts on both sides of the target those to take the nearest of (of equally near
        ones the first): `nearest`, `down`, `up`, `fill` or `top_up`
    released: stop at a cost within a hundredth of the target, or where twelve digits of the scale
        are known, and take the nearest counts on the way: AutoPrune as released, whose recorded
        counts and scales depend on it. `choices` are for what is then left, None without.
    estimate: where counts at scale 1 are taken as they are if this of them is within one token of
        the target, whatever they cost: AutoPrune as released; None where they are not
    """

    keep: Callable[[float], Sequence[int]]
    flow: Callable[[Sequence[int]], Flow]
    target: Target
    places: int
    n_visual: int
    where: str
    choices: Choices | None
    high: float = 1.0
    grows: Callable[[float], bool] = lambda scale: False
    full: Sequence[int] | None = None
    released: bool = False
    estimate: Callable[[Counts], float] | None = None

    def cost(self, counts: Sequence[int]) -> float:
        return self.target.cost(self.flow(counts))

    @property
    def floor(self) -> float:
        """The least that can be had."""
        return self.cost((1,) * self.places)


def solve(problem: Problem) -> tuple[float, Counts]:
    """The scale at which the counts of a problem meet its target, and these counts.

    Raises BudgetError when even a single token kept at each place costs more than the target.
    """
    amount = problem.target.amount
    problem.target.demand_reachable(problem.floor, problem.n_visual, problem.where)
    if not problem.places:
        return 0.0, ()
    if problem.estimate is not None:
        counts = tuple(problem.keep(1.0))
        if abs(problem.estimate(counts) - amount) <= 1:
            return 1.0, counts
    low, high = 0.0, problem.high
    while problem.grows(high) and problem.cost(problem.keep(high)) < amount:
        low, high = high, high * 8
    best: tuple[float, float, Counts] = (math.inf, 0.0, ())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        counts = tuple(problem.keep(middle))
        cost = problem.cost(counts)
        if abs(cost - amount) < best[0]:
            best = (abs(cost - amount), middle, counts)
        if problem.released and best[0] < 0.01:
            return best[1:]
        low, high = (middle, high) if cost <= amount else (low, middle)
        if problem.released and high - low <= 1e-12 * high:
            break
    if problem.choices is None:
        return best[1:]

    scale = best[1] if problem.released else low
    full = problem.full if high == problem.high else None
    over = tuple(problem.keep(high) if full is None else full)
    best_gap = math.inf
    for choice in problem.choices(problem, tuple(problem.keep(low)), over):
        gap = abs(problem.cost(choice) - amount)
        if gap < best_gap:
            best_gap, counts = gap, choice
        if not gap:
            break
    return scale, counts


def nearest(problem: Problem, under: Counts, over: Counts) -> Iterator[Counts]:
    """The nearest, the lower of two that are equally near."""
    yield from (under, over)


def down(problem: Problem, under: Counts, over: Counts) -> Iterator[Counts]:
    """The most that the target allows."""
    yield under


def up(problem: Problem, under: Counts, over: Counts) -> Iterator[Counts]:
    """The fewest that reach the target."""
    yield under if problem.cost(under) == problem.target.amount else over


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


def top_up(order: Sequence[int]) -> Choices:
    """Raise counts a token at a time while the target allows, the first place of `order` that can.

    Unlike `fill` this goes on beyond the counts of the upper scale.
    """

    def one_more(counts: Counts) -> list[Counts]:
        return [(*counts[:i], counts[i] + 1, *counts[i + 1 :]) for i in order]

    def choices(problem: Problem, under: Counts, over: Counts) -> Iterator[Counts]:
        cost, amount = problem.cost, problem.target.amount
        if cost(over) <= amount:
            yield from (under, over)
            return
        more: Counts | None = under
        while more:
            under, spent = more, cost(more)
            more = next((c for c in one_more(under) if spent < cost(c) <= amount), None)
        yield from (under, over, *one_more(under))

    return choices
