"""Curves, and the released schedule against counts recorded from the reference implementation.

The lists are counts leaving layers 1, 2, ...; the reference is AutoLab-SAI-SJTU/AutoPrune at
e4a9918, x0 = 14.9.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.pruning.schedules import logistic, logistic_area, recycled

from .common import released

LISTS = {
    (64, 0.2): "121 118 117 115 112 109 106 102 98 94 88 83 77 71 65 59 52 46 41 36 31 27 23 20 17 "
    "14 12 10 9 8 7",
    (64, 0.4): "126 125 125 125 124 123 122 119 117 113 107 100 90 79 67 55 43 33 25 18 13 9 7 5 4 "
    "3 3 2 2 2 2",
    (64, 0.0): "64" + " 61" * 30,
    (128, 0.2): "243 238 235 230 226 220 213 206 198 188 178 167 155 142 130 117 105 93 81 71 61 "
    "53 45 38 32 27 23 19 16 14 12",
    (192, 0.2): "365 358 353 346 339 331 321 309 297 283 267 250 232 214 195 176 157 139 122 106 "
    "91 78 67 57 48 40 34 28 24 20 17",
}
# (tokens, k, visual tokens, layers): scale, first counts, last counts
SCALES = {
    (64, 0.2, 576, 32): (1.050720, "121 118", "8 7"),
    (64, 0.4, 576, 32): (1.042786, "126 125", "2 2"),
    (64, 0.0, 576, 32): (0.996094, "64 61", "61 61"),
    (64, 0.1, 576, 32): (1.039734, "102 99 97 95 92 90", "28 26 24 22"),
    (64, 0.3, 576, 32): (1.048584, "126 124 123 122 121 119", "4 3 3 3"),
    (128, 0.2, 576, 32): (1.061096, "243 238", "14 12"),
    (192, 0.2, 576, 32): (1.064453, "365 358", "20 17"),
    (160, 0.2, 2880, 32): (1.063805, "305 298 294 289 283 275", "24 20 17 14"),
    (320, 0.2, 2880, 32): (1.066895, "610 597 589 578", ""),
    (640, 0.2, 2880, 32): (1.067963, "1221 1195 1178 1157", ""),
    (64, 0.2, 576, 40): (1.324005, "151 149 146 144", ""),
    (128, 0.2, 576, 40): (1.336975, "303 300 295 290", ""),
}
# (visual tokens, layers): tokens, true average at k = 0.2, at k = 0
TRUE_AVERAGES = {
    (576, 32): ((64, 128, 192), (81.8, 145.6, 209.5), (80.3, 142.6, 203.9)),
    (2880, 32): ((160, 320, 640), (249.6, 409.2, 728.3), (245.2, 400.5, 710.9)),
    (576, 40): ((64, 128, 192), (78.3, 142.3, 206.3), (76.4, 139.4, 201.4)),
}
BUDGETS = [(n, layers, t) for (n, layers), (ts, *_) in TRUE_AVERAGES.items() for t in ts]
BUDGETS += [(2880, 40, tokens) for tokens in (160, 320, 640)]


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


@pytest.mark.parametrize(("setting", "expected"), LISTS.items())
def test_counts_of_every_layer(setting, expected) -> None:
    plan = released(*setting)
    assert list(plan.leaving[1:]) == numbers(expected)
    assert plan.entering == (576, *plan.leaving[:-1])


@pytest.mark.parametrize(("setting", "expected"), SCALES.items())
def test_scale_first_and_last_counts(setting, expected) -> None:
    plan = released(*setting)
    scale, first, last = expected
    assert plan.scale == pytest.approx(scale, abs=5.1e-7)
    leaving = list(plan.leaving[1:])
    assert leaving[: len(numbers(first))] == numbers(first)
    assert leaving[len(leaving) - len(numbers(last)) :] == numbers(last)


def test_merged_tokens_of_a_schedule() -> None:
    plan = released(64, 0.2)
    assert sum(plan.leaving) == 64 * 32
    assert plan.keep[:2] == (160, 119)
    assert plan.clusters == (0, 2, *[1] * 30)
    assert plan.pools[:2] == (0, int(0.3 * (160 - 119)) + 1)
    flat = released(64, 0.0)
    assert sum(flat.leaving) - 64 * 32 == 6
    assert (flat.keep[1], flat.clusters[1]) == (60, 4)


def test_retention_is_the_scaled_curve() -> None:
    plan = released(64, 0.2)
    curve = [plan.scale * 0.75 / (1 + math.exp(0.2 * (x - 15.1))) for x in range(1, 32)]
    assert plan.retention == pytest.approx(curve, rel=1e-12)


@pytest.mark.parametrize(("setting", "expected"), TRUE_AVERAGES.items())
def test_true_average_exceeds_the_published_budget(setting, expected) -> None:
    n, layers = setting
    for tokens, sloped, flat in zip(*expected):
        for k, average in ((0.2, sloped), (0.0, flat)):
            entering = released(tokens, k, n, layers).entering
            assert sum(entering) / layers == pytest.approx(average, abs=0.0501)


@pytest.mark.parametrize(("nominal", "true"), [(46, 64), (110, 128), (174, 192)])
def test_nominal_budget_of_a_true_average(nominal: int, true: int) -> None:
    assert sum(released(nominal, 0.2).entering) / 32 == pytest.approx(true, abs=0.5)


@pytest.mark.parametrize(("n", "layers", "tokens"), BUDGETS)
def test_published_budget_is_met_on_tokens_leaving(n: int, layers: int, tokens: int) -> None:
    for k in (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6):
        plan = released(tokens, k, n, layers)
        assert plan.entering[1] == min(int(2.5 * tokens), n)
        assert abs(sum(plan.leaving) - layers * tokens) <= (1 if k else 18)
        assert sorted(plan.leaving, reverse=True) == list(plan.leaving)
        if k == 0:
            assert len(set(plan.keep[1:])) == 1


@pytest.mark.parametrize(
    ("dropped", "share", "expected"),
    [
        (0, 0.3, (0, 0)),
        (41, 0.3, (13, 2)),
        (100, 0.3, (31, 4)),
        (1, 0.3, (1, 1)),
        (29, 0.3, (9, 1)),
        (30, 0.3, (10, 2)),
        (5, 0.0, (0, 0)),
        (5, 1.0, (5, 1)),
    ],
)
def test_recycled(dropped: int, share: float, expected: tuple[int, int]) -> None:
    assert recycled(dropped, share) == expected


@given(st.floats(-50, 50), st.floats(-5, 5), st.floats(-50, 50))
@settings(max_examples=60)
def test_logistic_is_its_formula(x: float, k: float, x0: float) -> None:
    assert logistic(x, k, x0, 32) == pytest.approx(1 / (1 + math.exp(k * (x - x0))), rel=1e-9)
    assert logistic(x, -k, x0, 32) == pytest.approx(1 - logistic(x, k, x0, 32), abs=1e-12)


def test_logistic_at_its_ends() -> None:
    assert logistic(3.0, 0.0, 14.9, 32) == 0.5
    assert logistic(14.9, 0.4, 14.9, 32) == 0.5
    assert logistic(32, 1e6, 14.9, 32) == 0.0
    assert logistic(0, 1e6, 14.9, 32) == 1.0
    assert logistic(0, -1e6, 14.9, 32) == 0.0
    assert logistic(32, -1e6, 14.9, 32) == 1.0


@pytest.mark.parametrize("x0", [-5.0, 0.0, 14.9, 32.0, 100.0])
@pytest.mark.parametrize("k", [-3.0, -0.4, -1e-7, -1e-12, 0.0, 1e-12, 1e-7, 0.02, 0.4, 5.0])
def test_logistic_area_is_the_integral(k: float, x0: float) -> None:
    steps, layers = 4000, 32
    width = layers / steps
    middle = [width * (i + 0.5) for i in range(steps)]
    quadrature = width * sum(1 / (1 + math.exp(min(k * (x - x0), 700))) for x in middle)
    assert logistic_area(k, x0, layers) == pytest.approx(quadrature, abs=2e-5)


def test_logistic_area_of_a_step() -> None:
    assert logistic_area(1e5, 14.9, 32) == pytest.approx(14.9)
    assert logistic_area(-1e5, 14.9, 32) == pytest.approx(32 - 14.9)
    assert logistic_area(1e5, -5.0, 32) == pytest.approx(0, abs=1e-9)
    assert logistic_area(1e5, 50.0, 32) == pytest.approx(32)
