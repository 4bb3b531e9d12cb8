"""VTW: at which layer the visual tokens leave, and that nothing else does."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.pruning.base import Observation
from llava.pruning.checks import BudgetError, PromptError
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.vtw import VTW

from .common import layout, vicuna


@pytest.mark.parametrize(
    ("target", "visual", "depth"),
    [
        (64, 576, 4),  # 64 * 32 / 576 = 3.56
        (192, 576, 11),  # 10.67
        (270, 576, 15),  # the paper's 15 of 32
        (27, 576, 1),  # 1.5: the lower
        (18, 576, 1),
        (576, 576, 32),
        (600, 576, 32),
        (64, 60, 32),
    ],
)
def test_the_layer_of_a_budget(target, visual, depth) -> None:
    for mode in ("published", "strict"):
        assert VTW(target_token_num=target, budget_mode=mode).depth(visual, 32) == depth


def test_the_layer_of_a_fraction() -> None:
    pruner = VTW(target_fraction=15 / 32)
    for sizes in ((576,), (2145,), (577, 1000)):
        assert pruner.resolved(sizes).depth(sum(sizes), 32) == 15


def test_less_than_one_layer_is_refused() -> None:
    message = "target_token_num 17 is below the floor of 18 tokens entering a layer"
    with pytest.raises(BudgetError, match=message):
        VTW(target_token_num=17).start(layout(576), vicuna())


def test_all_images_leave_together_each_sample_at_its_layer() -> None:
    """8 tokens a layer are 2 of 4 layers of 16 tokens, and 3 of 4 of 10 (3.2)."""
    two = [Segment(2), Segment(9, 0, torch.arange(9)), Segment(1), Segment(7, 1, torch.arange(7))]
    ten = [Segment(1), Segment(10, 0, torch.arange(10)), Segment(4)]
    tokens = TokenLayout.from_segments([[*two, Segment(3)], ten, [Segment(5)]])
    run = pruning.build("vtw", target_token_num=8).start(tokens, vicuna(4))
    assert run.at_entry(tokens, torch.zeros(3, tokens.n, 2)) is None
    seen = []
    for layer in range(4):
        assert run.rows(layer, tokens) == 0
        leaving = run.leaving(layer, tokens)
        selection = run.after_layer(Observation(layer, tokens))
        assert (selection is None) == (sum(leaving) == 0)
        before, tokens = tokens, tokens if selection is None else tokens.select(selection)
        assert [a - b for a, b in zip(before.n_visual, tokens.n_visual)] == leaving
        seen.append(tokens.n_visual)
    assert seen == [(16, 10, 0), (0, 10, 0), (0, 0, 0), (0, 0, 0)]
    assert tokens.lengths == (6, 5, 5)
    assert tokens.positions(run.positions)[0, -3:].tolist() == [19, 20, 21]


def test_a_prompt_that_ends_with_an_image_is_refused() -> None:
    ends = TokenLayout.from_segments([[Segment(2), Segment(9, 0, torch.arange(9))]])
    with pytest.raises(PromptError, match="method vtw needs text after the last image"):
        VTW(target_token_num=8).start(ends, vicuna(4))
