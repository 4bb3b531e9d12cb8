"""Retention curves, and the integers per layer that a scaled curve gives.

A schedule is data: a `Plan` of plain integers, made by a pure, deterministic function of floats
and integers. No tensor is touched here.

Paper (arXiv 2509.23931, section 3.3): the logistic curve of eq. 5, its integral eq. 6, the
normalisation eq. 7, and a global scale for which the floors sum to the budget (see `solver`). The
released code rounds up and counts the merged tokens of each layer; both are fields of `Schedule`.

The other curves are those of the paper's Table 4b, which names them and prints no formula; the
released code has only the logistic one. Here `linear` and `exponential` have the logistic curve's
value 1/2 and slope -k/4 at x0, so that k and x0 mean the same in all of them. A tanh that matches
in both *is* the logistic curve, so `tanh` takes k as it stands and is twice as steep. Only the form
of a curve matters, because the budget scales it; each is at most 1 on [0, layers]. Negative k
rises. A curve is `curve(x, k, x0, layers)`, x and x0 being depths in layers.

A staircase (`prune_every` above 1, neither the paper's nor the released code's) drops tokens after
every n-th layer only. Its steps are layers first, first + n, first + 2n, ... up to last; the count
of a step holds up to the next one, and its share is the mean of the curve over the layers up to
there. Shares and counts are then one a step, the flow is of all layers as ever, so a budget of any
kind counts what it counts without steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_float
from dataclasses import dataclass
from typing import NamedTuple

from .budget import Flow


def logistic(x: float, k: float, x0: float, layers: int) -> float:
    """1 / (1 + exp(k (x - x0))), eq. 5 with N = 1."""
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


def tanh(x: float, k: float, x0: float, layers: int) -> float:
    """(1 - tanh(k (x - x0))) / 2, which equals the logistic curve of slope 2 k."""
    return logistic(2 * x, k, 2 * x0, layers)


def tanh_area(k: float, x0: float, layers: int) -> float:
    """Integral of `tanh` over [0, layers]."""
    return logistic_area(k, 2 * x0, 2 * layers) / 2


def linear(x: float, k: float, x0: float, layers: int) -> float:
    """max(0, 1 - x / r) with r = x0 + 2 / k: the line 1/2 - k (x - x0) / 4 over its value at 0.

    0 everywhere when r <= 0; 1 everywhere at k = 0; for k < 0 the mirror image, 1 at `layers`.
    """
    if k < 0:
        return linear(layers - x, -k, layers - x0, layers)
    reach = x0 + 2 / k if k else math.inf
    return max(0.0, 1 - x / reach) if reach > 0 else 0.0


def linear_area(k: float, x0: float, layers: int) -> float:
    """Integral of `linear` over [0, layers]: r / 2, or L - L^2 / (2 r) if r > L; 0 if r <= 0."""
    if k < 0:
        return linear_area(-k, layers - x0, layers)
    reach = x0 + 2 / k if k else math.inf
    return layers - layers**2 / (2 * reach) if reach > layers else max(reach, 0.0) / 2


def exponential(x: float, k: float, x0: float, layers: int) -> float:
    """exp(-k x / 2): exp(-k (x - x0) / 2) / 2 over its value at 0, in which x0 cancels.

    Moving an exponential along the depth only multiplies it. For k < 0 the mirror image, which is
    1 at `layers`.
    """
    return math.exp(-k / 2 * x) if k >= 0 else math.exp(k / 2 * (layers - x))


def exponential_area(k: float, x0: float, layers: int) -> float:
    """Integral of `exponential` over [0, layers]: 2 (1 - exp(-|k| L / 2)) / |k|, L at k = 0."""
    rate = abs(k) / 2
    return -math.expm1(-rate * layers) / rate if rate * layers > 1e-12 else float(layers)


class Curve(NamedTuple):
    """A curve of (x, k, x0, layers), and its integral over [0, layers] of (k, x0, layers)."""

    share: Callable[[float, float, float, int], float]
    area: Callable[[float, float, int], float]


CURVES = {
    "logistic": Curve(logistic, logistic_area),
    "linear": Curve(linear, linear_area),
    "tanh": Curve(tanh, tanh_area),
    "exponential": Curve(exponential, exponential_area),
}


def shares(curve: Curve, k: float, x0: float, layers: int, steps: range) -> list[float]:
    """The share of each step, above 0: the mean of the curve from there to before the next step.

    No scale raises a share of exactly 0. So that a budget can still be met once all other steps
    are full, such steps get a millionth of the lowest other share (all the same if all are 0):
    less than one token until then.
    """
    values = []
    for step in steps:
        span = range(step, min(step + steps.step, steps.stop))
        values.append(sum(curve.share(layer, k, x0, layers) for layer in span) / len(span))
    # Shares that a double cannot scale up without overflow count as 0 too.
    lowest = min((share for share in values if share > 1e-200), default=1.0)
    return [max(share, 1e-6 * lowest) for share in values]


@dataclass(frozen=True)
class Schedule:
    """What a curve makes of one sample, but for its scale.

    n_visual:   visual tokens entering layer 0
    start:      visual tokens entering the first scheduled layer (after a pre-selection)
    pre_layer:  layer after which the pre-selection cuts to `start`; None without one
    layers:     decoder layers
    steps:      layers after which tokens are dropped by the curve, the paper's one after the other
    retention:  the share of each step, before scaling
    rounding:   "ceil": ceil((start - 1) * min(1, s r)) as released; "floor": floor(start * s r)
    cap:        most tokens a layer may keep
    recycle:    share of the dropped tokens that is merged into clusters (0: none)
    """

    n_visual: int
    start: int
    pre_layer: int | None
    layers: int
    steps: range
    retention: tuple[float, ...]
    rounding: str
    cap: int
    recycle: float

    def keep(self, scale: float, single: bool = False) -> list[int]:
        """Tokens kept after each step at a scale; at least one, never more than before.

        single: multiply in single precision, as the released code's tensors do when "ceil" is
            applied to the product.
        """
        counts, current = [], self.start
        for share in self.retention:
            if self.rounding == "ceil":
                fraction = min(1.0, scale * share)
                if single:
                    fraction = c_float(fraction).value
                product = (self.start - 1) * fraction
                count = math.ceil(c_float(product).value if single else product)
            else:
                count = math.floor(self.start * min(1.0, scale * share))
            count = max(1, min(count, self.cap, current))
            counts.append(count)
            current = count + recycled(current - count, self.recycle)[1]
        return counts

    def grows(self, scale: float) -> bool:
        """Whether a larger scale can keep more: not once the curve's lowest point is lifted to 1.

        A curve that is all but zero where it begins (early inflection, or one that rises) needs a
        large one.
        """
        return scale * min(self.retention) < 1 and scale < 1e300

    def flow(self, keep: Sequence[int]) -> Flow:
        """Tokens entering and leaving each layer, merged ones included."""
        entering, leaving, *_ = zip(*self._walk(keep))
        return Flow(entering, leaving)

    def plan(self, keep: Sequence[int], scale: float) -> Plan:
        """The plan that keeps `keep` after the steps."""
        entering, leaving, kept, pools, clusters = zip(*self._walk(keep))
        retention = tuple(scale * share for share in self.retention)
        return Plan(entering, leaving, kept, pools, clusters, scale, retention)

    def _walk(self, keep: Sequence[int]) -> Iterator[tuple[int, int, int, int, int]]:
        """(entering, leaving, keep, pool, clusters) of every layer."""
        current = self.n_visual
        for layer in range(self.layers):
            if layer == self.pre_layer:
                yield current, self.start, self.start, 0, 0
                current = self.start
            elif layer in self.steps:
                count = min(keep[self.steps.index(layer)], current)
                pool, clusters = recycled(current - count, self.recycle)
                yield current, count + clusters, count, pool, clusters
                current = count + clusters
            else:
                yield current, current, current, 0, 0


@dataclass(frozen=True)
class Plan:
    """Integers per layer, index = layer.

    entering, leaving: visual tokens before and after each layer, merged tokens included
    keep:     tokens kept as they are; equal to `entering` where nothing is dropped
    pools:    dropped tokens that are clustered; clusters: merged tokens that come of them
    retention: scaled retention of the steps, before rounding
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
