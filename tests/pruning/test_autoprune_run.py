"""Which samples AutoPrune prunes, and what it asks of them, before any layer has run."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.pruning.autoprune import AutoPrune, budget, solve_plan
from llava.pruning.base import Observation
from llava.pruning.layout import Segment, TokenLayout

from .common import vicuna


def layout(*visual: int, text: int = 4) -> TokenLayout:
    """Samples with one image (none for 0 tokens) after one token of text and before `text`."""
    return TokenLayout.from_segments(
        [
            [
                Segment(1),
                *([Segment(n, 0, torch.arange(n), torch.rand(n))] if n else []),
                Segment(text),
            ]
            for n in visual
        ]
    )


def test_only_samples_above_their_budget_are_active() -> None:
    run = AutoPrune(target_token_num=16).start(layout(15, 16, 17, 0), vicuna())
    assert run.active == [False, False, True, False]
    exact = AutoPrune(target_flops=1.0).start(layout(15, 0), vicuna())
    assert exact.active == [False, False]


@pytest.mark.parametrize("visual", [0, 8])
def test_nothing_is_measured_or_dropped_without_an_active_sample(visual: int) -> None:
    tokens = layout(visual, visual)
    run = AutoPrune(target_token_num=8).start(tokens, vicuna(4))
    for layer in range(4):
        assert run.rows(layer, tokens) == 0
        hidden = torch.zeros(2, tokens.n, 3)
        assert run.after_layer(Observation(layer, tokens, hidden)) is None
    assert run.complexity() == []


def test_one_layer() -> None:
    with pytest.raises(ValueError, match="mi_layer 1 of a decoder of 1 layer"):
        AutoPrune().start(layout(8), vicuna(1))
    shape = vicuna(1)
    config = AutoPrune(mi_layer=0, target_token_num=4)
    assert solve_plan(config, shape, budget(config, shape, 16, 4), 0.2, 5.0).leaving == (10,)
    bare = AutoPrune(mi_layer=0, target_token_num=4, preselect_ratio=None, recycle_ratio=0)
    assert solve_plan(bare, shape, budget(bare, shape, 16, 4), 0.2, 5.0).leaving == (4,)
    with pytest.raises(ValueError, match="below the floor of 16"):
        AutoPrune(mi_layer=0, target_token_num=4, budget_mode="strict").start(layout(16), shape)


def test_a_decoder_too_shallow_to_drop_anything_refuses_an_exact_budget() -> None:
    config = pruning.build("autoprune", preset="paper", target_token_num=4, budget_mode="strict")
    with pytest.raises(ValueError, match="below the floor of 16"):
        config.start(layout(16), vicuna(2))


def test_text_after_the_image_and_cls_scores_are_required() -> None:
    with pytest.raises(ValueError, match="needs text after the last image"):
        AutoPrune(target_token_num=2).start(layout(8, text=0), vicuna(4))
    bare = TokenLayout.from_segments([[Segment(8, 0, torch.arange(8)), Segment(2)]])
    with pytest.raises(ValueError, match="preselect_ratio"):
        AutoPrune(target_token_num=2).start(bare, vicuna(4))
    assert AutoPrune(target_token_num=2, preselect_ratio=None).start(bare, vicuna(4)).active[0]
