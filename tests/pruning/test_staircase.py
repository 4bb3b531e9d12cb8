"""`prune_every`: AutoPrune's tokens leave after every n-th layer of the curve only."""

from __future__ import annotations

import pytest

from llava import pruning
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.autoprune.budget import budget, solve_plan
from llava.pruning.schedules import CURVES, Plan, logistic, shares

from .common import layout, observe, vicuna, walk
from .test_autoprune_run import ragged


def plan_of(k: float, x0: float, n: int, layers: int, **settings) -> Plan:
    config, shape = pruning.build("autoprune", **settings), vicuna(layers)
    return solve_plan(config, shape, budget(config, shape, n, 9), k, x0)


@pytest.mark.parametrize(
    ("every", "counts"),
    [
        # The line has 1, 3/4, 1/2 and 1/4 of 8 tokens; a step the mean of the layers up to the
        # next one. 20 tokens leave the four layers in all.
        (1, (8, 6, 4, 2)),
        (2, (7, 7, 3, 3)),
        (3, (6, 6, 6, 2)),
        (4, (5, 5, 5, 5)),
    ],
)
@pytest.mark.parametrize("analytic_area", [False, True])
def test_steps_of_a_line_by_hand(every: int, counts: tuple[int, ...], analytic_area: bool) -> None:
    settings = {
        "curve": "linear",
        "target_token_num": 5,
        "preselect_ratio": None,
        "recycle_ratio": 0,
        "rounding": "floor",
        "mi_layer": 0,
        "analytic_area": analytic_area,
    }
    assert plan_of(1.0, 2.0, 8, 4, **settings, prune_every=every).leaving == counts


def test_what_leaves_at_a_step_is_recycled_there() -> None:
    """A flat curve that keeps 40 of 100: 19 of 60 dropped become 2, then 1 of 2 is 1, 1 is 1."""
    plan = plan_of(
        0.0,
        3.0,
        100,
        5,
        target_token_num=(2 * 42 + 3 * 41) / 5,
        preselect_ratio=None,
        rounding="floor",
        mi_layer=0,
        prune_every=2,
    )
    assert plan.entering == (100, 42, 42, 41, 41)
    assert plan.leaving == (42, 42, 41, 41, 41)
    assert plan.keep == (40, 42, 40, 41, 40)
    assert plan.pools == (19, 0, 1, 0, 1)
    assert plan.clusters == (2, 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"prune_every": 4}, [1, 5, 9, 13, 17, 21, 25, 29]),
        ({"prune_every": 8, "mi_layer": 0}, [1, 9, 17, 25]),
        ({"prune_every": 8, "mi_layer": 6}, [6, 14, 22, 30]),
        ({"prune_every": 10, "prune_last_layer": False}, [1, 11, 21]),
        ({"prune_every": 10, "prune_last_layer": True}, [1, 11, 21, 31]),
        ({"prune_every": 8, "preset": "paper", "mi_layer": 0}, [0, 8, 16, 24]),
        ({"prune_every": 32}, [1]),
    ],
)
def test_steps_begin_with_the_curve(settings: dict, steps: list[int]) -> None:
    plan = plan_of(0.2, 15.1, 576, 32, **settings)
    dropping = [
        i for i, counts in enumerate(zip(plan.entering, plan.keep)) if counts[0] > counts[1]
    ]
    first_cut = [] if settings.get("preset") == "paper" else [0]
    assert dropping == first_cut + steps
    assert len(plan.retention) == len(steps)
    # Of all 32 layers' tokens, whatever the steps.
    assert sum(plan.leaving) / 32 == pytest.approx(64, abs=0.5)


def test_the_share_of_a_step_is_the_mean_of_the_curve_up_to_the_next() -> None:
    curve = [logistic(x, 0.3, 7.0, 12) for x in range(12)]
    by_layer = shares(CURVES["logistic"], 0.3, 7.0, 12, range(1, 12))
    assert by_layer == curve[1:]
    steps = shares(CURVES["logistic"], 0.3, 7.0, 12, range(1, 12, 4))
    means = [sum(curve[1:5]) / 4, sum(curve[5:9]) / 4, sum(curve[9:12]) / 3]
    assert steps == pytest.approx(means, rel=1e-12)
    # 1 - x / 8 ends at layer 8: the last step is only part of the way above 0.
    line = shares(CURVES["linear"], 0.4, 3.0, 32, range(1, 13, 5))
    assert line == pytest.approx([(7 + 6 + 5 + 4 + 3) / 40, (2 + 1) / 40, 1.5e-6 / 20], rel=1e-9)


@pytest.mark.parametrize("preset", ["released", "paper"])
@pytest.mark.parametrize("every", [2, 4])
def test_a_run_looks_and_drops_at_steps_only(preset: str, every: int) -> None:
    config = pruning.build(
        "autoprune", preset=preset, target_token_num=16, x0=3.0, prune_every=every
    )
    tokens = ragged()
    run = config.start(tokens, vicuna(8))
    seen = walk(run, tokens, 8)
    steps = set(range(1, 8 if preset == "released" else 7, every))
    for sample in (0, 3):
        plan = run.plans[sample]
        counts = [after.n_visual[sample] for after in seen]
        assert counts == [*plan.entering, plan.leaving[-1]]
        assert {i for i in range(1, 8) if counts[i + 1] < counts[i]} == steps
    looking = {layer for layer in range(8) if observe(run, seen[layer], layer).rows is not None}
    assert looking == steps | ({0} if preset == "released" else set())


@pytest.mark.parametrize("kind", ["target_flops", "target_kv"])
@pytest.mark.parametrize("every", [2, 4, 8])
def test_exact_budgets_with_the_released_settings(kind: str, every: int) -> None:
    config, shape = AutoPrune(**{kind: 0.25}, prune_every=every), vicuna()
    plan = solve_plan(config, shape, budget(config, shape, 576, 70), 0.2, 15.1)
    target = config.target(shape, 576, 70)
    assert target.cost(plan) == pytest.approx(target.amount, rel=3e-3)


def test_a_period_beyond_the_decoder_is_refused() -> None:
    AutoPrune(target_token_num=4, prune_every=6).start(layout(16), vicuna(6))
    with pytest.raises(ValueError, match=r"prune_every must be at most the 6 layers .* got 7"):
        AutoPrune(target_token_num=4, prune_every=7).start(layout(16), vicuna(6))


def test_the_period_is_no_depth() -> None:
    """In a decoder of any depth the default is every layer, and 4 is every fourth."""
    for every in (1, 4):
        config = AutoPrune(prune_every=every)
        assert [config.scaled(32, n).prune_every for n in (12, 80)] == [every, every]
