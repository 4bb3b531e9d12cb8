"""Properties of the budget solver over a wide grid of settings, and its corner cases."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llava import pruning
from llava.pruning.cost import DecoderShape, prefill_flops
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.autoprune.budget import Budget, budget, solve_plan
from llava.pruning.schedules import CURVES, Plan, logistic, logistic_area, recycled

from .common import released, vicuna


@dataclass(frozen=True)
class Case:
    """A sample, a decoder, settings and a curve."""

    config: AutoPrune
    shape: DecoderShape
    n: int
    text: int
    k: float
    x0: float

    def cost(self, entering: Sequence[int]) -> float:
        """What an exact budget counts, as a number of tokens or FLOPs."""
        if self.config.target_flops is not None:
            return prefill_flops(entering, self.text, self.shape)
        return sum(entering) + (self.text * len(entering) if self.config.target_kv else 0)

    @property
    def dense(self) -> float:
        return self.cost([self.n] * self.shape.layers)

    def solve(self) -> tuple[Budget, Plan]:
        """Skips a sample that needs no pruning or cannot meet its budget."""
        try:
            made = budget(self.config, self.shape, self.n, self.text)
            assume(made.tokens < self.n)
            return made, solve_plan(self.config, self.shape, made, self.k, self.x0)
        except ValueError as error:
            assert "below the floor" in str(error)
            assume(False)


@st.composite
def cases(draw, kind: str | None = None) -> Case:
    """Everything that shapes a schedule. `kind`: how the budget is given; any when None."""
    kind = kind or draw(st.sampled_from(["published", "strict", "target_flops", "target_kv"]))
    layers = draw(st.sampled_from([1, 2, 3, 8, 12, 32, 40]))
    hidden, intermediate = draw(st.sampled_from([(64, 96), (1024, 2752), (4096, 11008)]))
    shape = DecoderShape(layers, hidden, 4, 4, hidden // 4, intermediate)
    n = draw(st.sampled_from([2, 5, 16, 144, 576, 2880]))
    text = draw(st.sampled_from([1, 7, 70]))
    chosen = {
        "preselect_ratio": draw(st.sampled_from([None, 1.0, 2.5])),
        "rounding": draw(st.sampled_from(["ceil", "floor"])),
        "recycle_ratio": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "mi_layer": draw(st.integers(0, min(3, layers - 1))),
        "prune_last_layer": draw(st.booleans()),
        "analytic_area": draw(st.booleans()),
        "curve": draw(st.sampled_from(sorted(CURVES))),
        "cap_ratio": draw(st.sampled_from([None, 2.5])),
        "prune_every": draw(st.sampled_from([every for every in (1, 2, 4, 8) if every <= layers])),
    }
    # A share of what lies between about the least possible and no pruning at all.
    share = draw(st.floats(0.01, 0.999))
    first = 0 if chosen["preselect_ratio"] else chosen["mi_layer"]
    least = [n if layer <= first else 1 for layer in range(layers)]
    if kind == "target_flops":
        floor = prefill_flops(least, text, shape) / prefill_flops([n] * layers, text, shape)
        chosen["target_flops"] = min(1.0, floor + share * (1 - floor))
    elif kind == "target_kv":
        floor = (sum(least) + layers * text) / (layers * (n + text))
        chosen["target_kv"] = min(1.0, floor + share * (1 - floor))
    else:
        floor = sum(least) / layers if kind == "strict" else 1
        chosen |= {"budget_mode": kind, "target_token_num": floor + share * (n - floor)}
    k = draw(st.one_of(st.sampled_from([0.0, 0.02, 0.2, 0.4]), st.floats(-1, 2)))
    x0 = draw(st.one_of(st.just(14.9), st.floats(-5, 60)))
    return Case(AutoPrune(**chosen, to_the_letter=False), shape, n, text, k, x0)


def saturated(config: AutoPrune, made: Budget, layers: int) -> list[int]:
    """Tokens entering each layer, and leaving the last, when the curve keeps all that its rounding
    and cap allow."""
    top = made.start - 1 if config.rounding == "ceil" else made.start
    if config.cap_ratio is not None:
        top = min(top, int(config.cap_ratio * made.tokens))
    first = config.mi_layer if config.preselect_ratio is None else max(config.mi_layer, 1)
    last = layers - 1 if config.prune_last_layer else layers - 2
    entering, current = [], made.n_visual
    for layer in range(layers):
        entering.append(current)
        if layer == 0 and config.preselect_ratio is not None:
            current = made.start
        elif first <= layer <= last and (layer - first) % config.prune_every == 0:
            kept = max(1, min(top, current))
            current = kept + recycled(current - kept, config.recycle_ratio)[1]
    return [*entering, current]


@given(cases())
@settings(max_examples=200, deadline=None)
def test_every_plan_is_whole_numbers_that_never_grow(case: Case) -> None:
    made, plan = case.solve()
    config, layers = case.config, case.shape.layers
    lists = (plan.entering, plan.leaving, plan.keep, plan.pools, plan.clusters)
    assert all(type(count) is int for counts in lists for count in counts)
    assert all(len(counts) == layers for counts in lists)
    assert plan.entering[0] == case.n
    assert plan.entering[1:] == plan.leaving[:-1]
    for entering, leaving, keep, pool, clusters in zip(*lists):
        assert 1 <= keep <= leaving == keep + clusters <= entering
        assert clusters <= pool <= entering - keep
    if config.preselect_ratio is not None:
        assert plan.leaving[0] == made.start <= max(1, config.preselect_ratio * made.tokens)
    if not config.prune_last_layer and layers > 1:
        assert plan.leaving[-1] == plan.entering[-1]
    solve_plan.cache_clear()
    assert solve_plan(config, case.shape, made, case.k, case.x0) == plan


@pytest.mark.parametrize("kind", ["strict", "target_flops", "target_kv"])
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_exact_budget_is_met(kind: str, data) -> None:
    case = data.draw(cases(kind))
    config, layers = case.config, case.shape.layers
    made, plan = case.solve()
    value = config.target_token_num if kind == "strict" else getattr(config, kind)
    target = value * (layers if kind == "strict" else case.dense)
    most = saturated(config, made, layers)[:-1]
    gap = abs(case.cost(plan.entering) - target)
    one = case.dense - case.cost([case.n] * (layers - 1) + [case.n - 1])
    if case.cost(most) <= target:
        assert list(plan.entering) == most
    elif not config.recycle_ratio:
        assert gap <= one * config.prune_every * (1 + 1e-6)
    elif kind == "target_flops" and case.k >= 0:
        assert gap <= max(0.01 * target, one * config.prune_every)
    else:
        # Recycling may move all later layers by a token, see `solve_plan`.
        assert gap <= one * layers


@given(cases("published"))
@settings(max_examples=150, deadline=None)
def test_published_budget_is_met_to_half_a_token(case: Case) -> None:
    made, plan = case.solve()
    target = case.config.target_token_num * case.shape.layers
    most = saturated(case.config, made, case.shape.layers)[1:]
    if sum(most) <= target:
        assert list(plan.leaving) == most
    else:
        assert abs(sum(plan.leaving) - target) <= case.shape.layers / 2 * (1 + 1e-6)


@pytest.mark.parametrize("setting", ["target_flops", "target_kv"])
@pytest.mark.parametrize("fraction", [0.2, 0.25, 0.4, 0.7])
def test_fractions_with_the_released_settings(setting: str, fraction: float) -> None:
    config, shape = AutoPrune(**{setting: fraction}), vicuna()
    plan = solve_plan(config, shape, budget(config, shape, 576, 70), 0.2, 15.1)
    dense = [576] * 32
    if setting == "target_flops":
        share = prefill_flops(plan.entering, 70, shape) / prefill_flops(dense, 70, shape)
    else:
        share = (sum(plan.entering) + 32 * 70) / (32 * 646)
    assert share == pytest.approx(fraction, rel=1e-3)


@pytest.mark.parametrize("curve", CURVES)
@given(st.integers(20, 400), st.floats(0.02, 0.6), st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_exact_plan_follows_its_curve(curve: str, tokens: int, k: float, x0: float) -> None:
    """Meeting the budget is not enough: every count must be the curve's, to one token."""
    config = AutoPrune(
        budget_mode="strict",
        target_token_num=tokens,
        preselect_ratio=None,
        rounding="floor",
        recycle_ratio=0,
        curve=curve,
    )
    _, plan = Case(config, vicuna(), 576, 70, k, x0).solve()
    counts = [max(1, math.floor(576 * min(1.0, share))) for share in plan.retention]
    assert all(abs(kept - count) <= 1 for kept, count in zip(plan.keep[1:], counts))


def test_cap_bounds_every_layer_of_the_curve() -> None:
    free, shape = AutoPrune(target_token_num=64, preselect_ratio=None, recycle_ratio=0), vicuna()
    capped = replace(free, cap_ratio=1.5)
    keep = [solve_plan(c, shape, budget(c, shape, 576, 70), 0.4, 5.0).keep for c in (free, capped)]
    assert keep[0][1] > 96
    assert keep[1][0] == 576
    assert max(keep[1][1:]) == 96


def test_the_pre_selection_takes_layer_0_even_when_the_curve_could_begin_there() -> None:
    early, late = AutoPrune(mi_layer=0), AutoPrune(mi_layer=1)
    shape = vicuna()
    plans = [solve_plan(c, shape, budget(c, shape, 576, 70), 0.3, 15.0) for c in (early, late)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(("k", "x0"), [(0.3, 15.1), (0.0, 15.0), (-0.2, 12.0)])
def test_paper_curve_is_divided_by_its_area(k: float, x0: float) -> None:
    config, shape = pruning.build("autoprune", preset="paper", target_token_num=64), vicuna()
    plan = solve_plan(config, shape, budget(config, shape, 576, 70), k, x0)
    amplitude = 64 * 32 / 576 / logistic_area(k, x0, 32)
    curve = [plan.scale * amplitude * logistic(x, k, x0, 32) for x in range(1, 31)]
    assert plan.retention == pytest.approx(curve, rel=1e-9)


@pytest.mark.parametrize("mode", ["published", "strict"])
@pytest.mark.parametrize(("k", "x0"), [(-0.4, 15.7), (-2.0, 60.0), (2.0, -20.0), (0.4, 1.0)])
def test_curve_that_begins_near_zero_still_meets_the_budget(mode: str, k: float, x0: float) -> None:
    config = pruning.build("autoprune", preset="paper", budget_mode=mode, target_token_num=64)
    shape = vicuna()
    plan = solve_plan(config, shape, budget(config, shape, 576, 70), k, x0)
    counted = plan.entering if mode == "strict" else plan.leaving
    assert sum(counted) / 32 == pytest.approx(64, abs=1 if mode == "published" else 0.04)


@pytest.mark.parametrize("kind", ["strict", "target_flops", "target_kv"])
@given(st.data())
@settings(max_examples=80, deadline=None)
def test_unreachable_budget_names_the_least_that_is_reachable(kind: str, data) -> None:
    case = data.draw(cases(kind))
    setting = "target_token_num" if kind == "strict" else kind
    config = replace(case.config, **{setting: 1 if kind == "strict" else 0.002})
    shape, n, text = case.shape, case.n, case.text
    first = config.mi_layer if config.preselect_ratio is None else 0
    least = [n if layer <= first else 1 for layer in range(shape.layers)]
    lowest = case.cost(least) / (shape.layers if kind == "strict" else case.dense)
    with pytest.raises(ValueError, match=f"{setting} .* is below the floor of") as caught:
        budget(config, shape, n, text)
    floor = float(re.search(r"floor of ([\d.e+-]+):", str(caught.value))[1])
    if config.recycle_ratio:
        # Wherever something is dropped, at least one merged token stays.
        assert floor >= lowest * (1 - 1e-5)
    else:
        assert floor == pytest.approx(lowest, rel=1e-5)
    if floor < 0.999 * (n if kind == "strict" else 1):
        enough = replace(config, **{setting: floor * 1.00001})
        solve_plan(enough, shape, budget(enough, shape, n, text), 0.2, 15.1)


@pytest.mark.parametrize(
    ("layers", "tokens", "chosen", "floor"),
    [
        # 576 leave layer 0. Of 575 dropped after layer 1, 173 are merged into 18; 1 + 18 stay, and
        # of these 1 + 1, as in all later layers: (576 + 19 + 10 x 2) / 12.
        (12, 32, {"preselect_ratio": None}, 51.25),
        # (576 + 30 + 576) / 32: nothing is dropped after the last layer, which 1 enters.
        (32, 16, {"preset": "paper"}, 607 / 32),
        # 5 of 2 x 2.5 leave layer 0, 1 + 1 any other. Of one token's budget 2 leave layer 0, but a
        # budget of the 2 that then are the least lets 5 through.
        (32, 2, {}, 67 / 32),
        (32, 1, {}, 67 / 32),
        # 2.5 budgets leave layer 0 of two: no budget but that of all tokens is enough.
        (2, 100, {"recycle_ratio": 0.0}, 577 / 2),
    ],
)
def test_floor_of_a_published_budget(layers: int, tokens: int, chosen: dict, floor: float) -> None:
    shape = vicuna(layers)
    config = pruning.build("autoprune", target_token_num=tokens, **chosen)
    with pytest.raises(ValueError, match=rf"^target_token_num {tokens} is below the floor of") as e:
        budget(config, shape, 576, 70)
    said = float(re.search(r"floor of ([\d.]+):", str(e.value))[1])
    assert said == pytest.approx(floor, rel=1e-5)
    enough = replace(config, target_token_num=said)
    plan = solve_plan(enough, shape, budget(enough, shape, 576, 70), 0.2, 15.1)
    assert sum(plan.leaving) == pytest.approx(layers * floor)


@given(cases("published"), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_floor_of_a_published_budget_is_the_least(case: Case, share: float) -> None:
    config, shape, n = replace(case.config, target_token_num=1.0), case.shape, case.n
    try:
        budget(config, shape, n, case.text)
    except ValueError as error:
        floor = float(re.search(r"floor of ([\d.e+-]+):", str(error))[1])
    else:
        assume(False)
    between = replace(config, target_token_num=1 + share * (0.999 * floor - 1))
    with pytest.raises(ValueError, match=f"is below the floor of {floor:.6g}:"):
        budget(between, shape, n, case.text)
    enough = replace(config, target_token_num=floor)
    made = budget(enough, shape, n, case.text)
    if floor < n:
        plan = solve_plan(enough, shape, made, case.k, case.x0)
        assert sum(plan.leaving) == pytest.approx(shape.layers * floor, rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (32, {"target_token_num": 20, "budget_mode": "strict"}),
        (32, {"target_token_num": 24, "budget_mode": "strict", "mi_layer": 5}),
        (32, {"target_kv": 0.14}),
        (4, {"target_flops": 0.5, "mi_layer": 2}),
    ],
)
def test_pre_selection_gives_way_to_a_tight_exact_budget(layers: int, chosen: dict) -> None:
    config, shape = AutoPrune(**chosen), vicuna(layers)
    made = budget(config, shape, 576, 70)
    assert made.start < int(2.5 * made.tokens)
    case = Case(config, shape, 576, 70, 0.2, 15.1)
    plan = solve_plan(config, shape, made, case.k, case.x0)
    value = next(iter(chosen.values()))
    target = value * (layers if "budget_mode" in chosen else case.dense)
    assert 0.98 * target <= case.cost(plan.entering) <= 1.001 * target


def test_a_budget_made_by_hand_is_checked_too() -> None:
    config = AutoPrune(target_token_num=20, budget_mode="strict")
    with pytest.raises(ValueError, match="target_token_num 20 is below the floor of"):
        solve_plan(config, vicuna(), Budget(576, 70, 20.0, 576), 0.2, 15.1)


@pytest.mark.parametrize("setting", ["target_flops", "target_kv"])
def test_a_single_visual_token_cannot_meet_a_fraction(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} 0.5 is below the floor of 1:"):
        budget(AutoPrune(**{setting: 0.5}), vicuna(), 1, 70)


@pytest.mark.parametrize("tokens", [0, 0.99, -3, math.nan, math.inf])
def test_targets_below_one_token_or_without_end_are_refused(tokens: float) -> None:
    with pytest.raises(ValueError, match="target_token_num"):
        AutoPrune(target_token_num=tokens)


def test_plans_are_cached_and_hold_only_plain_numbers() -> None:
    first, second = released(64, 0.2), released(64, 0.2)
    assert first is second
    assert isinstance(first, Plan)
    assert json.loads(json.dumps(vars(first)))["leaving"] == list(first.leaving)
