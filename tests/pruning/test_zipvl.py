"""ZipVL: how many tokens hold a share of the attention, and the share that meets a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from llava.pruning.base import Observation
from llava.pruning.budget import token_target
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.zipvl import ZipVL, curves, fewest, solve_tau

from .common import layout, vicuna, walk

CURVE = [0.5, 0.75, 0.875, 1.0]


def attention(tokens: TokenLayout, *weights: float) -> torch.Tensor:
    """Two rows of one head: `weights` / 32 on the visual tokens, the rest on the first token."""
    row = torch.zeros(tokens.n)
    row[tokens.is_visual[0]] = torch.tensor(weights) / 32
    row[0] = 1 - row.sum()
    return row.expand(1, 1, 2, -1)


def solve(curve: Sequence[float], layers: int, total: int) -> tuple[float, list[int]]:
    """tau and counts for `total` tokens that leave the layers, all of which drop."""
    budget = replace(token_target(1, layers, "leaving"), amount=total)
    return solve_tau(curve, layers, layers, budget)


def test_the_curve_is_of_visual_tokens_alone() -> None:
    tokens = layout(4)
    mass = attention(tokens, 2, 8, 4, 2)[:, 0, 0]
    assert curves(mass, tokens) == [CURVE]
    assert [len(curve) for curve in curves(torch.rand(3, 10), layout(4, 0, 5))] == [4, 0, 5]


def test_the_fewest_tokens_that_hold_a_share() -> None:
    shares = [0.01, 0.5, 0.51, 0.75, 0.76, 0.875, 0.9, 1.0]
    assert [fewest(CURVE, share) for share in shares] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert fewest([0.0] * 3, 0.5) == 3


@pytest.mark.parametrize(
    ("tau", "kept"),
    [(0.4, [1]), (0.75, [1, 2]), (0.76, [0, 1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_a_layer_keeps_the_share_tau(tau, kept) -> None:
    """Of equal tokens the first ones go on; the last layer drops nothing."""
    tokens = layout(4)
    run = ZipVL(tau=tau, probes=2).start(tokens, vicuna(3))
    assert [run.rows(i, tokens) for i in range(3)] == [2, 2, 0]
    rows = attention(tokens, 2, 8, 4, 2)
    seen = Observation(0, tokens, torch.zeros(1, 9, 4), rows, torch.ones(1, 2).bool())
    selection = run.after_layer(seen)
    after = tokens if selection is None else tokens.select(selection)
    assert [p for p in after.patch[0].tolist() if p >= 0] == kept
    assert after.lengths == (5 + len(kept),)


@pytest.mark.parametrize(
    ("total", "tau", "counts"),
    [
        # The first count rises where tau passes .5, .75, .875, the second where tau^2 does, ...
        (3, 0.5, [1, 1, 1]),
        (8, 0.875, [3, 3, 2]),
        (9, 0.75 ** (1 / 3), [4, 3, 2]),
        (10, math.sqrt(0.875), [4, 3, 3]),
        (12, 1.0, [4, 4, 4]),
    ],
)
def test_tau_is_solved_for_the_budget(total, tau, counts) -> None:
    found, kept = solve(CURVE, 3, total)
    assert kept == counts
    assert found == pytest.approx(tau, abs=1e-12)


def test_tokens_that_nothing_looks_at_fill_the_first_layers() -> None:
    assert solve([1.0] * 3, 2, 5)[1] == [3, 2]


@pytest.mark.parametrize("mode", ["published", "strict"])
@pytest.mark.parametrize("target", [5, 6.5, 11.25])
def test_every_budget_is_met_to_the_token(mode, target) -> None:
    tokens, layers = layout(16, 0, 30, 4), 8
    run = ZipVL(target_token_num=target, budget_mode=mode).start(tokens, vicuna(layers))
    seen = walk(run, tokens, layers, sharpness=3.0)
    counted = seen[:-1] if mode == "strict" else seen[1:]
    for sample, visual in enumerate(tokens.n_visual):
        counts = [entered.n_visual[sample] for entered in counted]
        assert sum(counts) == (int(layers * target) if visual > target else layers * visual)
        assert counts == sorted(counts, reverse=True) and min(counts) >= min(visual, 1)
    # Attention is measured for what drops, and for all that may before the counts are known.
    falls = [[a > b for a, b in zip(x.n_visual, y.n_visual)] for x, y in pairwise(seen)]
    assert [run.needed_by(i, x) for i, x in enumerate(seen[:-1])] == falls
    assert [bool(run.rows(i, x)) for i, x in enumerate(seen[:-1])] == [any(x) for x in falls]
    solved = [entry.get("tau") for entry in run.complexity()]
    assert solved[1] is solved[3] is None and 0 < solved[0] < 1 and 0 < solved[2] < 1


def test_few_looked_at_tokens_stay_few_for_long() -> None:
    """Sharp attention: a quick fall and a long plateau; even attention: an even loss."""
    sharp = torch.cat([torch.full((4,), 24.0), torch.full((12,), 1 / 3)]).cumsum(0) / 100
    even = torch.arange(1, 17) / 16
    a, b = (solve(curve.tolist(), 8, 48)[1] for curve in (sharp, even))
    assert sum(a) == sum(b) == 48
    assert a[-1] > b[-1]


def test_what_cannot_be_met_is_refused_with_the_floor() -> None:
    # 16 in layer 0 and one token in each of five more: 21 / 6.
    pruner = ZipVL(target_token_num=3, budget_mode="strict")
    with pytest.raises(ValueError, match=r"target_token_num 3 is below the floor of 3\.5"):
        pruner.start(layout(16), vicuna(6))
    assert pruner.start(layout(3), vicuna(6)).rows(0, layout(3)) == 0
    ZipVL(target_token_num=1).start(layout(16), vicuna(6))


def test_an_image_at_the_end_cannot_be_probed() -> None:
    bare = TokenLayout.from_segments([[Segment(2), Segment(4, 0, torch.arange(4))]])
    with pytest.raises(ValueError, match="zipvl needs text after the last image"):
        ZipVL().start(bare, vicuna(4))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_token_num", 0.5),
        ("target_token_num", math.nan),
        ("target_token_num", math.inf),
        ("budget_mode", "loose"),
        ("tau", 0.0),
        ("tau", 1.01),
        ("tau", math.nan),
        ("probes", 0),
        ("positions", "dense"),
    ],
)
def test_values_that_make_no_sense_are_refused(field, value) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*, got "):
        ZipVL(**{field: value})
