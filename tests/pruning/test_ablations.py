"""AutoPrune's run with another indicator or another curve, on made-up attention."""

from __future__ import annotations

import json

import pytest
import torch

from llava import pruning
from llava.pruning.indicators import cosine_similarity, mean_attention
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.schedules import CURVES

from .common import layout, observe, vicuna, walk

INDICATORS = ("mutual_information", "mean_attention", "cosine_similarity", "static")


@pytest.mark.parametrize("preset", ["released", "paper", "balanced"])
@pytest.mark.parametrize("indicator", INDICATORS)
@pytest.mark.parametrize("curve", CURVES)
def test_settings_survive_json(preset: str, indicator: str, curve: str) -> None:
    pruner = pruning.build("autoprune", preset=preset, indicator=indicator, curve=curve)
    assert (pruner.indicator, pruner.curve) == (indicator, curve)
    assert pruning.build(**json.loads(json.dumps(pruner.to_dict()))) == pruner


@pytest.mark.parametrize("preset", ["released", "paper"])
@pytest.mark.parametrize("mi_rows", ["text", "last"])
@pytest.mark.parametrize("indicator", ["mean_attention", "cosine_similarity"])
def test_slope_and_inflection_follow_the_indicator(preset, mi_rows, indicator) -> None:
    config = pruning.build(
        "autoprune",
        preset=preset,
        target_token_num=8,
        indicator=indicator,
        mi_rows=mi_rows,
        gamma=0.3,
        beta=0.7,
    )
    tokens = layout(40)
    run = config.start(tokens, vicuna(6))
    seen = walk(run, tokens, 6)
    at = observe(run, seen[1], 1)
    last = 1 if mi_rows == "last" else 4
    mask = torch.ones(1, last, dtype=torch.bool)
    if indicator == "mean_attention":
        value = mean_attention(at.rows[:, :, -last:], mask, seen[1].is_visual).item()
    else:
        value = cosine_similarity(at.hidden, mask, seen[1].is_visual).item()
    measured = run.complexity()[0]
    assert set(measured) == {indicator, "k", "x0", "scale"}
    assert measured[indicator] == pytest.approx(value, abs=1e-9)
    k = 0.4 - 0.3 * value
    assert measured["k"] == pytest.approx(k, abs=1e-9)
    shift = k if preset == "released" else 0.7 * value
    assert measured["x0"] == pytest.approx(14.9 + shift, abs=1e-9)


def test_mutual_information_keeps_its_short_name() -> None:
    run = AutoPrune(target_token_num=8).start(layout(40), vicuna(6))
    walk(run, layout(40), 6)
    assert set(run.complexity()[0]) == {"mi", "k", "x0", "scale"}


@pytest.mark.parametrize("indicator", INDICATORS)
def test_the_pre_selection_is_the_same_under_every_indicator(indicator: str) -> None:
    tokens = layout(40)
    usual = walk(AutoPrune(target_token_num=8).start(tokens, vicuna(6)), tokens, 1)[1]
    run = AutoPrune(target_token_num=8, indicator=indicator).start(tokens, vicuna(6))
    assert torch.equal(walk(run, tokens, 1)[1].patch, usual.patch)


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_a_static_run_measures_nothing_and_treats_all_samples_alike(preset: str) -> None:
    config = pruning.build(
        "autoprune", preset=preset, target_token_num=8, indicator="static", k0=0.5, x0=3.0
    )
    tokens = layout(40, 0, 40, 5)
    run = config.start(tokens, vicuna(6))
    first, text_only, second, small = run.plans
    assert first == second
    assert text_only is small is None
    known = {"k": 0.5, "x0": 3.0, "scale": first.scale}
    assert run.complexity() == [known, {}, known, {}]
    before = list(run.plans)
    for sharpness in (1.0, 20.0):
        seen = walk(run, tokens, 6, sharpness)
        assert [after.n_visual[0] for after in seen] == [*first.entering, first.leaving[-1]]
        assert run.plans == before
    assert run.complexity() == [known, {}, known, {}]


def test_static_is_not_the_released_adaptation_at_gamma_0() -> None:
    """Without a gamma the released inflection still moves by k; a static one does not."""
    tokens = layout(40)
    x0 = {}
    for name, chosen in (("static", {"indicator": "static"}), ("gamma", {"gamma": 0.0})):
        run = AutoPrune(target_token_num=8, **chosen).start(tokens, vicuna(6))
        walk(run, tokens, 6)
        assert run.complexity()[0]["k"] == 0.4
        x0[name] = run.complexity()[0]["x0"]
    assert x0 == {"static": 14.9, "gamma": pytest.approx(15.3)}


def test_a_static_run_asks_for_rows_only_where_it_drops() -> None:
    config = AutoPrune(
        target_token_num=32,
        indicator="static",
        preselect_ratio=None,
        recycle_ratio=0,
        rounding="floor",
        k0=50.0,
        x0=3.5,
    )
    tokens = layout(40)
    run = config.start(tokens, vicuna(6))
    # Full up to layer 3; of the 192 - 4 * 40 tokens left, all that layer 5 can spare go to layer 4.
    assert run.plans[0].leaving == (40, 40, 40, 40, 31, 1)
    assert [run.rows(layer, tokens) for layer in range(6)] == [0, 0, 0, 0, 4, 4]
    assert [after.n_visual[0] for after in walk(run, tokens, 6)][1:] == [40, 40, 40, 40, 31, 1]


@pytest.mark.parametrize("clamp_slope", [True, False])
def test_a_negative_slope_of_a_static_run_is_clamped_like_any_other(clamp_slope: bool) -> None:
    config = AutoPrune(target_token_num=8, indicator="static", k0=-0.1, clamp_slope=clamp_slope)
    run = config.start(layout(40), vicuna(6))
    assert run.complexity()[0]["k"] == (0.0 if clamp_slope else -0.1)


@pytest.mark.parametrize("preset", ["released", "paper"])
@pytest.mark.parametrize("curve", CURVES)
def test_every_layer_follows_the_plan_of_its_curve(preset: str, curve: str) -> None:
    config = pruning.build("autoprune", preset=preset, target_token_num=12, x0=3.0, curve=curve)
    tokens = layout(60, 0, 9, 45)
    run = config.start(tokens, vicuna(6))
    seen = walk(run, tokens, 6)
    for i in (0, 3):
        plan, measured = run.plans[i], run.complexity()[i]
        assert [after.n_visual[i] for after in seen] == [*plan.entering, plan.leaving[-1]]
        form = [CURVES[curve].share(x, measured["k"], measured["x0"], 6) for x in range(1, 5)]
        scaled = [share / plan.retention[0] * form[0] for share in plan.retention[:4]]
        assert scaled == pytest.approx(form, rel=1e-9)
