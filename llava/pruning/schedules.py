"""Retention curves, and the solver that turns a curve and a budget into integers per layer.

A schedule is data: a `Plan` of plain integers, made by a pure, deterministic function of floats
and integers. No tensor is touched here.

Paper (arXiv 2509.23931, section 3.3): the logistic curve of eq. 5, its integral eq. 6, the
normalisation eq. 7, and a bisection of a global scale until the floors sum to the budget. The
released code bisects only, rounds up, and counts the merged tokens of each layer; both are
expressed by the fields of `Problem`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Bisecting [0, 20] in double precision stops moving after about 57 halvings; more change nothing.
_HALVINGS = 60


def logistic(x: float, k: float, x0: float) -> float:
    """Share of tokens retained at depth `x` (layers): 1 / (1 + exp(k (x - x0))), eq. 5 with N=1."""
    z = k * (x - x0)
    if z > 0:
        e = math.exp(-z) if z < 700 else 0.0
        return e / (1.0 + e)
    return 1.0 / (1.0 + math.exp(max(z, -700.0)))


def logistic_area(k: float, x0: float, layers: int) -> float:
    """Integral of `logistic` over [0, layers] (eq. 6), and its limit layers / 2 at k = 0."""
    if abs(k) < 1e-9:
        return layers / 2

    def softplus(z: float) -> float:
        return max(z, 0.0) + math.log1p(math.exp(-abs(z)))

    return layers - (softplus(k * (layers - x0)) - softplus(-k * x0)) / k


@dataclass(frozen=True)
class Problem:
    """What a schedule has to meet, for one sample.

    n_visual:   visual tokens entering layer 0
    start:      visual tokens entering the first scheduled layer (after a pre-selection)
    pre_layer:  layer after which the pre-selection cuts to `start`; None without one
    layers:     decoder layers
    first, last: layers after which tokens are dropped by the curve, both included
    retention:  the curve at layers first..last, before scaling
    rounding:   "ceil": ceil((start - 1) * min(1, s r)) as released; "floor": floor(start * s r)
    cap:        most tokens a layer may keep
    recycle:    share of the dropped tokens that is merged into clusters (0: none)
    cost:       (tokens entering each layer, tokens leaving each layer) -> cost, never decreasing
                in the counts
    target:     the cost to meet
    setting, per: for messages: the name of the user's budget, and the cost that one unit of it is
    exact:      after the bisection, spend what is left of the target one token at a time
    """

    n_visual: int
    start: int
    pre_layer: int | None
    layers: int
    first: int
    last: int
    retention: tuple[float, ...]
    rounding: str
    cap: int
    recycle: float
    cost: Callable[[Sequence[int], Sequence[int]], float]
    target: float
    setting: str
    per: float
    exact: bool


@dataclass(frozen=True)
class Plan:
    """Integers per layer, index = layer.

    entering, leaving: visual tokens before and after each layer, merged tokens included
    keep:     tokens kept as they are; equal to `entering` where nothing is dropped
    pools:    dropped tokens that are clustered; clusters: merged tokens that come of them
    retention: scaled retention of the scheduled layers, before rounding
    """

    entering: tuple[int, ...]
    leaving: tuple[int, ...]
    keep: tuple[int, ...]
    pools: tuple[int, ...]
    clusters: tuple[int, ...]
    scale: float
    retention: tuple[float, ...]


def recycled(dropped: int, share: float) -> tuple[int, int]:
    """Pool size and clusters for a number of dropped tokens, as released: int(share d) + 1, a
    tenth of it + 1 clusters (methods as in SparseVLM). (0, 0) when nothing is dropped or share=0.
    """
    if dropped <= 0 or share <= 0:
        return 0, 0
    pool = min(int(share * dropped) + 1, dropped)
    return pool, min(pool // 10 + 1, pool)


def solve(problem: Problem) -> Plan:
    """Find the scale of the curve whose counts meet the target, and return the counts.

    The smallest |cost - target| met during the bisection wins, the earlier one on ties. With
    `exact`, the counts on either side of the last step are then mixed: the lower ones, raised to
    the upper ones layer by layer from the first, as far as the target allows, so that the target
    is missed by less than one token in one layer, unless the curve is saturated. With recycling a
    token more in one layer can mean one more in all later ones (one dropped and merged is one
    again); a curve that rises then misses the target by up to a token a layer.

    Raises ValueError when even one token a layer costs more than an exact target.
    """
    demand_reachable(problem)
    if problem.first > problem.last:
        return _finish(problem, [], 0.0)

    best_scale, best_keep, best_gap = 0.0, None, math.inf
    low, high = 0.0, 20.0
    # A curve that is all but zero where it begins (early inflection, or one that rises) needs
    # more; from the scale that lifts its lowest point to 1 on, nothing changes any more.
    while high * min(problem.retention) < 1 and high < 1e300:
        if _cost(problem, _keep(problem, high)) >= problem.target:
            break
        low, high = high, high * 8
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        keep = _keep(problem, middle)
        cost = _cost(problem, keep)
        if abs(cost - problem.target) < best_gap:
            best_scale, best_keep, best_gap = middle, keep, abs(cost - problem.target)
        if best_gap < 0.01:
            break
        if cost < problem.target:
            low = middle
        else:
            high = middle
        if high - low <= 1e-12 * high:
            break
    if problem.exact and best_gap >= 0.01:
        best_keep = _spend(problem, _keep(problem, low), _keep(problem, high))
    return _finish(problem, best_keep, best_scale)


def floor(problem: Problem) -> float:
    """The least a schedule can cost: one visual token kept after every layer that may drop."""
    return _cost(problem, [1] * (problem.last - problem.first + 1))


def demand_reachable(problem: Problem) -> None:
    """Raise ValueError when the floor is above an exact target."""
    if problem.exact and floor(problem) > problem.target * (1 + 1e-9):
        raise ValueError(
            f"{problem.setting} {problem.target / problem.per:.6g} is below the floor of "
            f"{floor(problem) / problem.per:.6g}: that much cost {problem.n_visual} visual tokens "
            "with a single one left after every layer that may drop"
        )


def _keep(problem: Problem, scale: float) -> list[int]:
    """Tokens kept after layers first..last at a scale; at least one, never more than before."""
    counts, current = [], problem.start
    for share in problem.retention:
        if problem.rounding == "ceil":
            count = math.ceil((problem.start - 1) * min(1.0, scale * share))
        else:
            count = math.floor(problem.start * min(1.0, scale * share))
        count = max(1, min(count, problem.cap, current))
        counts.append(count)
        current = count + recycled(current - count, problem.recycle)[1]
    return counts


def _walk(problem: Problem, keep: Sequence[int]):
    """(entering, leaving, keep, pool, clusters) of every layer."""
    current = problem.n_visual
    for layer in range(problem.layers):
        if layer == problem.pre_layer:
            yield current, problem.start, problem.start, 0, 0
            current = problem.start
        elif problem.first <= layer <= problem.last and keep:
            count = min(keep[layer - problem.first], current)
            pool, clusters = recycled(current - count, problem.recycle)
            yield current, count + clusters, count, pool, clusters
            current = count + clusters
        else:
            yield current, current, current, 0, 0


def _cost(problem: Problem, keep: Sequence[int]) -> float:
    entering, leaving, *_ = zip(*_walk(problem, keep))
    return problem.cost(entering, leaving)


def _spend(problem: Problem, low: list[int], high: list[int]) -> list[int]:
    """Raise `low` towards `high` from the first layer on while the cost stays within the target.

    Raising a prefix keeps the counts non-increasing, because both lists are; of all mixtures the
    one closest to the target is taken.
    """
    best, best_gap = low, abs(_cost(problem, low) - problem.target)
    mixed = list(low)
    for i, upper in enumerate(high):
        while mixed[i] < upper:
            mixed[i] += 1
            gap = abs(_cost(problem, mixed) - problem.target)
            if gap < best_gap:
                best, best_gap = list(mixed), gap
    return best


def _finish(problem: Problem, keep: Sequence[int], scale: float) -> Plan:
    entering, leaving, kept, pools, clusters = zip(*_walk(problem, keep))
    retention = tuple(scale * share for share in problem.retention)
    return Plan(entering, leaving, kept, pools, clusters, scale, retention)
