"""DivPrune: the greedy max-min choice on points laid out by hand."""

from __future__ import annotations

import pytest
import torch

from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.divprune import DivPrune, farthest

from .common import layout, vicuna


def on_a_circle(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    # Lengths must not matter.
    return torch.stack([angle.cos(), angle.sin()], 1) * torch.arange(1, len(degrees) + 1)[:, None]


def test_the_choice_by_hand() -> None:
    """Nearest neighbours at 25, 65, 20, 25 and 20 degrees: 90 is the loneliest and comes first.

    From it 200 is farthest (110 degrees); then 0 is 90 away from both; 25 is 25 away from 0; 180 is
    20 away from 200.
    """
    points = on_a_circle(0, 90, 180, 25, 200)
    order = [1, 4, 0, 3, 2]
    for count in range(6):
        assert farthest(points, count) == order[:count]


@pytest.mark.parametrize(
    ("points", "order"),
    [
        (torch.eye(4), [0, 1, 2, 3]),
        (torch.ones(4, 4), [0, 1, 2, 3]),
        (torch.eye(2)[[0, 0, 1]], [2, 0, 1]),
        (torch.zeros(3, 2), [0, 1, 2]),
    ],
    ids=["orthogonal", "identical", "twins", "zeros"],
)
def test_ties_go_to_the_lower_index_and_nothing_is_chosen_twice(points, order) -> None:
    assert farthest(points, len(points)) == order


def test_identical_tokens_in_half_precision_are_chosen_once_each() -> None:
    torch.manual_seed(0)
    points = torch.randn(1, 37).repeat(30, 1).bfloat16()
    assert sorted(farthest(points, 30)) == list(range(30))


def test_distances_are_float32() -> None:
    torch.manual_seed(0)
    points = torch.randn(40, 16).bfloat16()
    assert farthest(points, 12) == farthest(points.float(), 12)


def test_each_image_is_chosen_from_alone_and_counted() -> None:
    tokens = TokenLayout.from_segments(
        [[Segment(2), Segment(5, 0, torch.arange(5)), Segment(1), Segment(3, 1, torch.arange(3))]]
    )
    embeds = torch.zeros(1, tokens.n, 2)
    embeds[0, 2:7] = on_a_circle(0, 90, 180, 25, 200)
    embeds[0, 8:11] = on_a_circle(10, 20, 50)  # 50 is 30 away from 20: first
    run = DivPrune(target_token_num=4).start(tokens, vicuna(4))
    after = tokens.select(run.at_entry(tokens, embeds))
    # 4 of 8 tokens: 2.5 and 1.5, the odd one to the first image.
    assert [p for p in after.patch[0].tolist() if p >= 0] == [0, 1, 4, 5 + 2]
    assert run.scoring_flops() == [2 * (5 * 5 + 3 * 3) * 2]


def test_a_sample_that_keeps_all_costs_nothing() -> None:
    tokens = layout(9, 4, 0)
    torch.manual_seed(0)
    run = DivPrune(target_token_num=4).start(tokens, vicuna(4))
    selection = run.at_entry(tokens, torch.randn(3, tokens.n, 8))
    assert selection.n_visual == (4, 4, 0)
    assert run.scoring_flops() == [2 * 81 * 8, 0, 0]
