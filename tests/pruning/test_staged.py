"""Cuts after a few layers: totals, the search for counts, what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava import pruning
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.staged import Cut, Stages, fit_single

from .common import layout, vicuna

STAGED = ["fastv", "pdrop", "dart", "sparsevlm"]


def test_totals_by_hand() -> None:
    stages = Stages(20, 6, (1, 3, 4))
    # Layers see 20, 9, 9, 4, 2, 2; they leave 9, 9, 4, 2, 2, 2.
    assert stages.flow((9, 4, 2)).total("entering") == 46
    assert stages.flow((9, 4, 2)).total("leaving") == 28
    assert stages.cuts((9, 4, 2)) == (Cut(0, 9), Cut(2, 4), Cut(3, 2))
    # No cut keeps more than it gets, and none keeps nothing.
    assert stages.cuts((30, 9, 10)) == (Cut(0, 20), Cut(2, 9), Cut(3, 9))
    assert stages.cuts((5, 0, 3)) == (Cut(0, 5), Cut(2, 1), Cut(3, 1))


def test_totals_with_merging_by_hand() -> None:
    stages = Stages(40, 5, (1, 3), recycle=0.3, strictly=True)
    # 40 - 6 = 34 dropped: int(10.2) + 1 = 11 pooled, 2 clusters; 8 - 5 = 3: 1 pooled, 1 cluster.
    assert stages.cuts((6, 5)) == (Cut(0, 6, 11, 2), Cut(2, 5, 1, 1))
    assert stages.flow((6, 5)).total("entering") == 40 + 2 * 8 + 2 * 6
    # Every cut drops a token: 40 -> 39 + 1 of 1 pooled, then 39 of 40.
    assert [cut.keep for cut in stages.cuts((99, 99))] == [39, 39]


@pytest.mark.parametrize(
    ("target", "keep"),
    [(192, 166), (128, 98), (64, 30), (96, 64)],  # (32 T - 1152) / 30 = 166.4, 98.1, 29.9, 64
)
def test_a_single_cut_takes_the_nearest(target: int, keep: int) -> None:
    assert fit_single(576, 32, 2, target) == keep


@given(
    n=st.integers(2, 300),
    target=st.integers(1, 300),
    depth=st.integers(1, 5),
    more=st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_a_single_cut_is_off_by_half_the_layers_behind_it(n, target, depth, more) -> None:
    layers = depth + more
    stages = Stages(n, layers, (depth,))
    if target >= n:
        return
    if depth * n + more > layers * target:
        with pytest.raises(ValueError, match="below the floor"):
            fit_single(n, layers, depth, target)
        return
    total = stages.flow((fit_single(n, layers, depth, target),)).total("entering")
    assert 2 * abs(total - layers * target) <= more


def test_leftover_tokens_go_to_the_longest_stage_that_takes_them() -> None:
    """100 tokens, cuts after 1, 3 and 6 of 11 layers: stages of 2, 3 and 5 layers."""
    stages = Stages(100, 11, (1, 3, 6))

    def coarse(share: float) -> list[int]:
        tens = 10 * int(10 * share)
        return [tens, tens, tens]

    # 440 - 100 = 340 for T = 40; 30 everywhere is 300. No stage may hold more than the one before,
    # so the first takes a token (2 layers), then the middle (3), then the last (5): four times.
    keeps = stages.fit(coarse, 40, "entering", spend=True)
    assert keeps == (34, 34, 34)
    assert stages.flow(keeps).total("entering") == 440
    assert stages.fit(coarse, 40, "entering", spend=False) == (30, 30, 30)
    # 451 - 100 = 351 for T = 41: 35 everywhere is 350; a token more in the first is no nearer.
    assert stages.fit(coarse, 41, "entering", spend=True) == (35, 35, 35)


@given(n=st.integers(30, 600), target=st.integers(10, 600))
@settings(max_examples=40, deadline=None)
def test_strict_totals_are_within_half_the_shortest_stage(n, target) -> None:
    pruner = pruning.build("pdrop", target_token_num=target, budget_mode="strict")
    if target >= n:
        assert pruner.cuts(n, vicuna()) == ()
        return
    if 2 * n + 30 > 32 * target:
        with pytest.raises(ValueError, match="below the floor"):
            pruner.cuts(n, vicuna())
        return
    first, second, third = (cut.keep for cut in pruner.cuts(n, vicuna()))
    assert n >= first >= second >= third >= 1
    gap = abs(2 * n + 6 * first + 8 * second + 16 * third - 32 * target)
    # Where a stage cannot grow because the one before is as small, only the first stage can.
    assert gap <= 3 or (first == n and gap <= 8)


@pytest.mark.parametrize(
    ("method", "extra", "floor"),
    [
        ("fastv", {"budget_mode": "strict"}, "36.9375"),  # (2 * 576 + 30) / 32
        ("fastv", {"published_count": "leaving"}, "18.9688"),  # (576 + 31) / 32
        ("dart", {"budget_mode": "strict"}, "36.9375"),
        ("pdrop", {}, "36.9375"),
        ("pdrop", {"stages": (8, 16, 24)}, "144.75"),  # (8 * 576 + 24) / 32
        ("sparsevlm", {"version": "plus"}, "36.9375"),
        ("sparsevlm", {"version": "plus", "budget_mode": "strict"}, "54.9062"),  # 3 full layers
    ],
)
def test_a_budget_below_the_floor_names_it(method, extra, floor) -> None:
    pruner = pruning.build(method, target_token_num=18, **extra)
    with pytest.raises(ValueError, match=rf"^target_token_num 18 is below the floor of {floor} "):
        pruner.start(layout(576, text=70), vicuna())


@pytest.mark.parametrize("method", STAGED)
def test_the_decoder_must_be_deeper_than_the_last_cut(method) -> None:
    pruner = pruning.build(method)
    last = pruner.cut_depths[-1]
    message = rf"{method} cuts after {last} layers, but this decoder has {last}: .*--depth-layers"
    with pytest.raises(ValueError, match=message):
        pruner.start(layout(100), vicuna(last))
    pruner.scaled(32, 6).start(layout(64), vicuna(6))


@pytest.mark.parametrize("method", STAGED)
def test_text_behind_the_image_is_needed(method) -> None:
    bare = TokenLayout.from_segments([[Segment(3), Segment(4, 0, layout(4).patch[0, 1:5])]])
    with pytest.raises(ValueError, match=f"method {method} needs text after the last image"):
        pruning.build(method).start(bare, vicuna())


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        *((method, "target_token_num", value) for method in STAGED for value in (0, 3.5)),
        *((method, "budget_mode", "loose") for method in STAGED),
        *((method, "positions", "dense") for method in STAGED),
        ("fastv", "depth", 0),
        ("fastv", "depth", 2.0),
        ("fastv", "query", "first"),
        ("fastv", "published_count", "entering"),
        ("dart", "depth", 0),
        ("dart", "image_pivots", 0),
        ("dart", "text_pivots", -1),
        ("pdrop", "stages", ()),
        ("pdrop", "stages", (8, 2, 16)),
        ("pdrop", "stages", (0, 2)),
        ("pdrop", "stages", 8),
        ("pdrop", "ratios", (0.5, 0.25)),
        ("pdrop", "ratios", (0.5, 0.25, 0.3)),
        ("pdrop", "ratios", (1.5, 0.5, 0.3)),
        ("pdrop", "ratios", (0.5, 0.25, 0.0)),
        ("sparsevlm", "version", "1.0"),
        ("sparsevlm", "stages", (3, 7)),
        ("sparsevlm", "top_heads", 0),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(method, field, value) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*, got "):
        pruning.build(method, **{field: value})


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("fastv", {"depth": 3, "query": "all", "published_count": "leaving"}),
        ("dart", {"image_pivots": 2, "budget_mode": "strict"}),
        ("pdrop", {"stages": (8, 16, 24), "ratios": (0.5, 0.25, 0.125)}),
        ("sparsevlm", {"version": "plus", "stages": (1, 2, 4), "positions": "compact"}),
    ],
)
def test_settings_survive_json(method, extra) -> None:
    pruner = pruning.build(method, **extra)
    again = pruning.build(**json.loads(json.dumps(pruner.to_dict())))
    assert again == pruner and hash(again) == hash(pruner)


def test_depths_scale_with_the_decoder() -> None:
    def depths(method: str, layers: int) -> tuple[int, ...]:
        return pruning.build(method).scaled(32, layers).cut_depths

    assert depths("fastv", 64) == depths("dart", 64) == (4,)
    assert depths("fastv", 6) == (1,)
    assert depths("pdrop", 16) == (1, 4, 8)
    assert depths("sparsevlm", 64) == (6, 14, 32)
    assert depths("sparsevlm", 6) == (1, 1, 3)


def test_of_equal_depths_the_last_counts() -> None:
    ratios = pruning.build("pdrop", stages=(1, 1, 3), ratios=(0.8, 0.5, 0.25))
    assert ratios.cuts(40, vicuna(6)) == (Cut(0, 20), Cut(2, 10))
    # lambda^2 then lambda^3: 100 + 2 * 49 + 3 * 34 = 300 for lambda = 0.7.
    solved = pruning.build("pdrop", stages=(1, 1, 3), target_token_num=50)
    assert solved.cuts(100, vicuna(6)) == (Cut(0, 49), Cut(2, 34))
    plus = pruning.build("sparsevlm", version="plus", stages=(1, 1, 3), target_token_num=10)
    assert [cut.layer for cut in plus.cuts(40, vicuna(6))] == [0, 2]
