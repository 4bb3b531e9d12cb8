"""Statistics by rank, on values worked by hand and on samples whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from llava.analysis.rank_statistics import (
    Comparison,
    compare,
    describe,
    partial_spearman,
    ranks,
    spearman,
)


def test_describe() -> None:
    assert describe([4, 1, 3, 2]) == {
        "n": 4,
        "mean": 2.5,
        "sd": pytest.approx((5 / 3) ** 0.5),  # deviations 1.5, 0.5, 0.5, 1.5; divided by 3
        "q1": 1.75,
        "median": 2.5,
        "q3": 3.25,
    }
    assert describe([7]) == {"n": 1, "mean": 7, "sd": None, "q1": 7, "median": 7, "q3": 7}
    assert describe([]) == {"n": 0, **dict.fromkeys(("mean", "sd", "q1", "median", "q3"))}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([30, 10, 20], [3, 1, 2]),
        ([20, 10, 20, 30], [2.5, 1, 2.5, 4]),
        ([5, 5, 5, 1], [3, 3, 3, 1]),
        ([], []),
    ],
)
def test_equal_values_share_the_mean_of_their_ranks(values, expected) -> None:
    assert ranks(values).tolist() == expected


def test_spearman() -> None:
    assert spearman([1, 2, 3], [10, 200, 3000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [9, 8, -7]) == pytest.approx(-1)
    # one swap of neighbours: 1 - 6 (1 + 1) / (4 x 15)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    # ranks 1, 2.5, 2.5, 4 and 1 to 4: 4.5 / sqrt(4.5 x 5)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / 22.5**0.5)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1], [2]), ([1, 2, 3], [4, 4, 4])])
def test_too_little_for_a_correlation(x, y) -> None:
    assert spearman(x, y) is None
    assert partial_spearman(x, y, x) is None


def test_a_correlation_needs_pairs() -> None:
    with pytest.raises(ValueError, match="3 values with 2"):
        spearman([1, 2, 3], [1, 2])


def test_partial_spearman() -> None:
    x, y, z = [1, 2, 3, 4], [1, 3, 2, 4], [2, 1, 3, 4]
    # r_xy = r_xz = 1 - 12/60 = 0.8; the ranks of y and z differ by 1, 2, 1, 0: 1 - 36/60 = 0.4
    assert partial_spearman(x, y, z) == pytest.approx((0.8 - 0.32) / (0.36 * 0.84) ** 0.5)
    assert partial_spearman(x, y, x) is None  # nothing of x is left


def test_a_correlation_through_a_third_thing_alone_vanishes() -> None:
    rng = np.random.default_rng(1)
    z, a, b = rng.normal(size=(3, 4000))
    x, y = z + 0.5 * a, z + 0.5 * b
    assert spearman(x, y) > 0.75
    assert abs(partial_spearman(x, y, z)) < 0.06


def test_compare_counts_pairs_and_half_of_ties() -> None:
    # high 3, 2, 2 against low 2, 1: 3 beats both, each 2 ties once and wins once: 5 of 6
    found = compare([3, 2, 2, 2, 1], [True] * 3 + [False] * 2, range(5), seed=3)
    assert (found.auc, found.pairs) == (pytest.approx(5 / 6), 6)
    assert 0 <= found.low <= found.auc <= found.high <= 1


def test_compare_within_clusters() -> None:
    values = [1.0, 2.0, 9.0, 5.0, 5.0, 7.0]
    high = [True, False, True, True, False, True]
    cluster = ["a", "a", "b", "b", "b", "c"]
    # a: 1 < 2; b: 9 > 5 and 5 = 5; c has nothing to compare with
    found = compare(values, high, cluster, within=True)
    assert (found.auc, found.pairs) == (pytest.approx(0.5), 3)
    # Two clusters: half of the resamples have both (0.5), a quarter a alone (0), one b (0.75).
    assert (found.low, found.high) == (0, 0.75)


@pytest.mark.parametrize("within", [False, True])
def test_compare_of_separated_and_of_equal_samples(within) -> None:
    rng = np.random.default_rng(0)
    high = np.tile([True, False], 200)
    pictures = np.repeat(np.arange(200), 2)
    apart = compare(rng.random(400) + high, high, pictures, within=within, resamples=200)
    assert (apart.auc, apart.low, apart.high) == (1, 1, 1)
    upside_down = compare(rng.random(400) - high, high, pictures, within=within, resamples=200)
    assert upside_down.auc == upside_down.high == 0
    constant = compare(np.ones(400), high, pictures, within=within, resamples=200)
    assert (constant.auc, constant.low, constant.high) == (0.5, 0.5, 0.5)
    same = compare(rng.random(400), high, pictures, within=within, resamples=500)
    assert same.low < 0.5 < same.high and 0.05 < same.high - same.low < 0.2


def test_only_pairs_of_one_picture_see_through_differences_between_pictures() -> None:
    rng = np.random.default_rng(0)
    high = np.tile([True, False], 300)
    pictures = np.repeat(np.arange(300), 2)
    values = np.repeat(rng.normal(size=300) * 50, 2) + high
    assert compare(values, high, pictures, within=True, resamples=50).auc == 1
    over_all = compare(values, high, pictures, resamples=200)
    assert 0.5 < over_all.auc < 0.55


def test_a_cluster_is_drawn_as_a_whole() -> None:
    """Copies of a question add pairs but nothing that is known: the interval must not shrink."""
    rng = np.random.default_rng(5)
    values, high = rng.random(60), np.tile([True, False], 30)
    once = compare(values, high, range(60), resamples=1000)
    copies = [np.repeat(array, 9) for array in (values, high, np.arange(60))]
    often = compare(*copies, resamples=1000)
    assert often.pairs == 81 * once.pairs
    assert often == Comparison(once.auc, once.low, once.high, often.pairs)


def test_the_interval_depends_on_the_seed_alone() -> None:
    rng = np.random.default_rng(5)
    values, high = rng.random(60), np.tile([True, False], 30)
    assert compare(values, high, range(60)) == compare(values, high, range(60))
    other = compare(values, high, range(60), seed=1)
    assert other.low != compare(values, high, range(60)).low


def test_the_interval_covers_the_truth() -> None:
    """P(x + 0.5 > y) of two standard normals is 0.638; 95 % intervals cover it mostly."""
    rng = np.random.default_rng(2)
    high = np.tile([True, False], 40)
    intervals = [
        compare(rng.normal(size=80) + 0.5 * high, high, range(80), resamples=200) for _ in range(60)
    ]
    covered = sum(found.low <= 0.638 <= found.high for found in intervals)
    assert 51 <= covered <= 60


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_without_pairs_there_is_no_comparison(values, within) -> None:
    high = [True] * len(values)
    nothing = Comparison(None, None, None, 0)
    assert compare(values, high, ["a"] * len(values), within=within) == nothing


def test_one_cluster_gives_no_interval() -> None:
    assert compare([2, 1], [True, False], ["a", "a"]) == Comparison(1.0, None, None, 1)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="2 values, 1 marks and 2 clusters"):
        compare([1, 2], [True], "ab")
    with pytest.raises(ValueError, match="finite"):
        compare([1, float("nan")], [True, False], "ab")
    with pytest.raises(ValueError, match="at least 1 resample"):
        compare([1, 2], [True, False], "ab", resamples=0)
