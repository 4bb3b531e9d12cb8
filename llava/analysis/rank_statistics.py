"""Statistics by rank that need nothing but numpy: comparisons, correlations, summaries.

A statistic of too little, such as the correlation with a constant, is None and never NaN, so that
every result is JSON. Not called `statistics`, which is a module of Python's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_COVERED = (0.025, 0.975)  # the ends of a 95 % interval
_ROUNDING = 1e-12  # a variance below this is one of floating point


@dataclass(frozen=True)
class Comparison:
    """Whether values of one kind ("high") exceed those of the other, over `pairs` of both.

    auc: share of pairs in which the high one is larger, ties counting half (the area under the ROC
    curve); low, high: its bootstrap 95 % interval. All None without pairs.
    """

    auc: float | None
    low: float | None
    high: float | None
    pairs: int


def describe(values: ArrayLike) -> dict[str, float | int | None]:
    """n, mean, sd (of a sample, n - 1) and quartiles q1, median, q3 (interpolated linearly)."""
    array = np.asarray(values, dtype=float)
    if not array.size:
        return {"n": 0, **dict.fromkeys(("mean", "sd", "q1", "median", "q3"))}
    q1, median, q3 = np.quantile(array, (0.25, 0.5, 0.75)).tolist()
    return {
        "n": array.size,
        "mean": float(array.mean()),
        "sd": float(array.std(ddof=1)) if array.size > 1 else None,
        "q1": q1,
        "median": median,
        "q3": q3,
    }


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Rank of each value from 1, equal values sharing the mean of their ranks."""
    _, code, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the highest rank of each distinct value
    return (last - (counts - 1) / 2)[code]


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation; None for fewer than two points or where one is constant.

    Raises ValueError for different lengths.
    """
    first, second = np.asarray(x), np.asarray(y)
    if len(first) != len(second):
        raise ValueError(f"a correlation of {len(first)} values with {len(second)}")
    if len(first) < 2:
        return None
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else None


def partial_spearman(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> float | None:
    """Rank correlation of x and y with the linear part of `given`'s ranks taken out of both.

    (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)); None where one of the three is constant,
    or `given` fixes the ranks of x or of y.
    """
    xy, xz, yz = spearman(x, y), spearman(x, given), spearman(y, given)
    if xy is None or xz is None or yz is None:
        return None
    left = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / np.sqrt(left)) if left > _ROUNDING else None


def compare(
    values: Sequence[float],
    is_high: Sequence[bool],
    clusters: Sequence[object],
    *,
    within: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """How often a value marked `is_high` exceeds one that is not, with a bootstrap interval.

    `clusters` says which values belong together, such as questions about one picture: values of a
    cluster are not independent, so the bootstrap draws whole clusters. `within` counts only pairs
    inside a cluster. Resamples without any pair are left out of the interval, which is None when
    fewer than two clusters take part.

    Raises:
        ValueError: different lengths, a value that is not finite, or no resamples.
    """
    array, high = np.asarray(values, dtype=float), np.asarray(is_high, dtype=bool)
    if not len(array) == len(high) == len(clusters):
        raise ValueError(f"{len(array)} values, {len(high)} marks and {len(clusters)} clusters")
    if not np.isfinite(array).all():
        raise ValueError("expected finite values")
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, got {resamples}")
    numbers: dict[object, int] = {}
    cluster = np.array([numbers.setdefault(key, len(numbers)) for key in clusters], dtype=int)
    if within:
        members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
        counted = np.array([_wins(_codes(array[m]), high[m], np.ones(len(m))) for m in members])
        counted = counted.reshape(-1, 2)
        counted = counted[counted[:, 1] > 0]  # the others have nothing to say
        taking_part = len(counted)
    else:
        codes, taking_part = _codes(array), len(numbers)

    def count(weights: NDArray[np.int64]) -> tuple[float, float]:
        """Wins and pairs with every cluster there `weights` times."""
        if within:
            wins, pairs = weights @ counted
            return wins, pairs
        return _wins(codes, high, weights[cluster])

    wins, pairs = count(np.ones(taking_part, dtype=int))
    if not pairs:
        return Comparison(None, None, None, 0)
    if taking_part < 2:
        return Comparison(float(wins / pairs), None, None, int(pairs))
    rng = np.random.default_rng(seed)
    chance = np.full(taking_part, 1 / taking_part)
    drawn = [count(rng.multinomial(taking_part, chance)) for _ in range(resamples)]
    shares = [won / met for won, met in drawn if met]
    low, upper = np.quantile(shares, _COVERED).tolist() if shares else (None, None)
    return Comparison(float(wins / pairs), low, upper, int(pairs))


def _codes(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of each value among the distinct ones."""
    return np.unique(values, return_inverse=True)[1]


def _wins(
    codes: NDArray[np.int64], high: NDArray[np.bool_], weights: NDArray
) -> tuple[float, float]:
    """Wins of the high values (a tie is half a win) and pairs, each value there `weights` times."""
    up = np.bincount(codes, weights * high)
    down = np.bincount(codes, weights * ~high)
    wins = up @ (np.cumsum(down) - down / 2)
    return float(wins), float(up.sum() * down.sum())
