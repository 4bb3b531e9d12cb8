"""FastV: three ways of counting T, and the score of the last row or of all."""

from __future__ import annotations

import pytest
import torch

from llava.pruning.base import Observation
from llava.pruning.methods.fastv import FastV
from llava.pruning.staged import Cut

from .common import entering, figures, kept, layout, leaving_average, observe, vicuna, walk

# Settings -> kept, then the columns of `figures` without the last, at 192, 128 and 64.
TABLE = {
    "kept": ({}, (192, 128, 64), (216, 156, 96), (43.7, 34.5, 25.3), (113.2, 81.8, 50.3)),
    "leaving": (
        {"published_count": "leaving"},
        (180, 114, 48),
        (204.8, 142.9, 81.0),
        (42.0, 32.5, 23.0),
        (107.3, 74.9, 42.5),
    ),
    "strict": (
        {"budget_mode": "strict"},
        (166, 98, 30),
        (191.6, 127.9, 64.1),
        (39.9, 30.2, 20.4),
        (100.5, 67.0, 33.6),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_published_comparison(name: str) -> None:
    extra, *columns = TABLE[name]
    for target, keep, *expected in zip((192, 128, 64), *columns):
        pruner = FastV(target_token_num=target, **extra)
        assert entering(pruner) == [576] * 2 + [keep] * 30
        average, share, megabytes, last = figures(pruner)
        assert [average, share, megabytes] == pytest.approx(expected, abs=0.0501)
        assert last == keep


def test_leaving_averages() -> None:
    found = [
        leaving_average(FastV(target_token_num=t, published_count="leaving"))
        for t in (192, 128, 64)
    ]
    assert found == pytest.approx([192.4, 128.4, 64.5], abs=0.0501)


def test_next_keeps_640_320_160() -> None:
    """Of 2880: kept as given, 780/480/330 a layer."""
    averages = [sum(entering(FastV(target_token_num=t), 2880)) / 32 for t in (640, 320, 160)]
    assert averages == [780, 480, 330]


def test_strict_wins_over_the_published_count_and_depth_moves_the_cut() -> None:
    both = FastV(target_token_num=192, budget_mode="strict", published_count="leaving")
    assert both.cuts(576, vicuna()) == (Cut(1, 166),)
    # (32 * 192 - 3 * 576) / 29 = 152.3
    assert FastV(target_token_num=192, budget_mode="strict", depth=3).cuts(576, vicuna()) == (
        Cut(2, 152),
    )
    assert FastV(target_token_num=576).cuts(576, vicuna()) == ()
    assert FastV(target_token_num=600, budget_mode="strict").cuts(576, vicuna()) == ()


def rows_of(*samples: list[list[float]]) -> torch.Tensor:
    """(batch, 2 heads, rows, n) with the same attention in both heads, but swapped signs of 0.1."""
    rows = torch.tensor(samples)[:, None]
    return torch.cat([rows + 0.1, rows - 0.1], 1)


def test_the_last_row_decides() -> None:
    tokens = layout(4, text=2)
    run = FastV(target_token_num=2, depth=1).start(tokens, vicuna(4))
    assert (run.rows(0, tokens), run.rows(1, tokens)) == (1, 0)
    seen = observe(run, tokens, 0)
    rows = rows_of([[9.0, 0.3, 0.5, 0.2, 0.5, 9.0, 9.0]])
    selection = run.after_layer(Observation(0, tokens, seen.hidden, rows, seen.row_mask))
    # Text scores do not matter; 1 and 3 have most.
    assert kept(tokens, selection) == [[1, 3]]
    assert run.scoring_flops() == [0]


def test_heads_are_averaged() -> None:
    tokens = layout(3, text=1)
    run = FastV(target_token_num=1, depth=1).start(tokens, vicuna(4))
    rows = torch.tensor([[[[0, 0.6, 0.4, 0.1, 0]], [[0, 0.1, 0.4, 0.6, 0.0]]]])
    seen = Observation(0, tokens, torch.zeros(1, 5, 2), rows)
    # Means 0.35, 0.4, 0.35.
    assert kept(tokens, run.after_layer(seen)) == [[1]]


def test_ties_go_to_the_lower_index() -> None:
    tokens = layout(5, text=1)
    run = FastV(target_token_num=2, depth=1).start(tokens, vicuna(4))
    rows = torch.full((1, 2, 1, 7), 0.25)
    assert kept(tokens, run.after_layer(Observation(0, tokens, torch.zeros(1, 7, 2), rows))) == [
        [0, 1]
    ]


def test_all_rows_count_where_they_are_no_padding() -> None:
    tokens = layout(3, 2, text=1)  # the second sample is padded by one column
    run = FastV(target_token_num=1, depth=1, query="all").start(tokens, vicuna(4))
    assert run.rows(0, tokens) == 5
    rows = torch.zeros(2, 2, 5, 5)
    rows[0, :, 1, 1] = 0.9  # an early row decides for patch 0
    rows[0, :, 4, 3] = 0.5
    rows[1, :, 0, 3] = 9.0  # of a padding row: patch 1 may not win by it
    rows[1, :, 3, 2] = 0.1
    selection = run.after_layer(Observation(0, tokens, torch.zeros(2, 5, 2), rows))
    assert kept(tokens, selection) == [[0], [0]]
    # One text row each is counted by the trace; the others here: 2 r d (d + n).
    d = 4096
    assert run.scoring_flops() == [2 * 4 * d * (d + 5), 2 * 3 * d * (d + 4)]


def test_a_mixed_batch_walks_through_its_budgets() -> None:
    tokens = layout(20, 0, 4, 9)
    run = FastV(target_token_num=5).start(tokens, vicuna(4))
    seen = walk(run, tokens, 4)
    assert [step.n_visual for step in seen] == [(20, 0, 4, 9)] * 2 + [(5, 0, 4, 5)] * 3
    text_only = layout(0, 0)
    idle = FastV(target_token_num=5).start(text_only, vicuna(4))
    assert [idle.rows(layer, text_only) for layer in range(4)] == [0] * 4
    assert idle.positions == "original"
