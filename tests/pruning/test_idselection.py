"""ID-Selection: suppression worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llava import pruning
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.idselection import suppressed

from .common import kept, vicuna

#: Twins, one at 60 degrees (cosine 1/2) and one at a right angle to them.
POINTS = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, math.sqrt(3)], [0.0, 1.0]])


def test_the_choice_by_hand() -> None:
    """Importance 0.5, 0.4, 0.3, 0.1 is 1, 0.75, 0.5, 0 of its range.

    gamma 4 log 2: a distance of 1/2 suppresses by 1/2, of 1 by 1/16. After token 0: its twin is at
    0, token 2 at 0.5 - 0.5 = 0, token 3 at 0. All others are 0: by importance.
    """
    importance = torch.tensor([0.5, 0.4, 0.3, 0.1])
    gamma = 4 * math.log(2)
    assert suppressed(importance, POINTS, 4, gamma) == [0, 1, 2, 3]
    # Twice gamma: 1/4 and 1/256. Token 2 is at 0.5 - 0.25 and goes before the twin.
    assert suppressed(importance, POINTS, 4, 2 * gamma) == [0, 2, 1, 3]
    # None suppress but what is identical.
    assert suppressed(importance, POINTS, 2, 1e6) == [0, 2]
    # All alike: importance alone.
    for count in range(5):
        assert suppressed(importance, POINTS, count, 0.0) == [0, 1, 2, 3][:count]


def test_what_is_suppressed_below_nothing_counts_as_nothing() -> None:
    """Distances 1/2: w = 1/2 at gamma 4 log 2. 1, 0.3 and 0.2 become -, 0 and 0, and the more
    important of these is next although it was suppressed as much."""
    points = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [0.5, -math.sqrt(0.75)], [0, 1.0]])
    importance = torch.tensor([1.0, 0.2, 0.3, 0.0])
    assert suppressed(importance, points, 3, 4 * math.log(2)) == [0, 2, 1]


def test_equal_importance_goes_to_the_lower_index() -> None:
    assert suppressed(torch.full((4,), 0.2), torch.eye(4), 4, 20.0) == [0, 1, 2, 3]
    assert suppressed(torch.zeros(3), torch.zeros(3, 2), 3, 20.0) == [0, 1, 2]


def test_importance_is_the_attention_of_cls() -> None:
    scores = torch.tensor([0.1, 0.4, 0.2, 0.3])
    runs = [Segment(1), Segment(4, 0, torch.arange(4), scores), Segment(2)]
    tokens = TokenLayout.from_segments([runs])
    embeds = torch.zeros(1, tokens.n, 4)
    embeds[0, 1:5] = torch.eye(4)[[0, 1, 2, 1]]
    pruner = pruning.build("id-selection", target_token_num=2)
    assert pruner.needs_cls
    run = pruner.start(tokens, vicuna(4))
    # The second and the fourth are twins.
    assert kept(tokens, run.at_entry(tokens, embeds)) == [[1, 2]]
    assert run.scoring_flops() == [2 * 16 * 4]


def test_gamma_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^gamma must be .*, got "):
        pruning.build("id-selection", gamma=-1.0)
