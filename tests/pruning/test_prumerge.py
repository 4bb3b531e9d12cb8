"""PruMerge and PruMerge+ by hand: outliers, samples, the fixed count, the weighted merge."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llava import pruning
from llava.pruning.cost import TowerShape
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.prumerge import PruMerge, adaptive, fixed, outliers, trained
from llava.pruning.vision import Probe, VisionFeatures
from tests.closeness import assert_close

from .common import vicuna


def peaks(p: int, *where: int) -> torch.Tensor:
    """Attention that is 1, 2, 3, ... thousandths but at `where`, 99, 98, ...: clear outliers."""
    made = torch.arange(1, p + 1) / 1000
    made[list(where)] = torch.arange(99.0, 99 - len(where), -1)
    return made


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        # 0 .. 14 and one more: quartiles 3.75 and 11.25, the bound 11.25 + 1.5 x 7.5 = 22.5
        (22.4, 0),
        (22.6, 1),
    ],
)
def test_outliers_by_hand(largest, expected) -> None:
    assert outliers(torch.tensor([[largest, *range(15)]])) == expected
    assert outliers(torch.full((1, 16), 0.1)) == 0


def test_outliers_of_several_images_are_pooled() -> None:
    """Of 32 values the one image has four outliers, the other one: two each, rounded down."""
    one, other = peaks(16, 2, 3, 5, 7), peaks(16, 4)
    assert outliers(one[None]) == 4 and outliers(other[None]) == 1
    assert outliers(torch.stack([one, other])) == 2


@pytest.mark.parametrize(
    ("attention", "kept"),
    [
        (peaks(16, 15), [15, 0, 5, 10]),  # n = 1: step int(16 / 3) = 5, below 15
        (peaks(16, 5), [5, 0, 10]),
        (peaks(16, 7, 3), [7, 3, 0, 2, 4, 6, 8, 10, 12, 14]),  # n = 2: step int(8 / 3)
        (torch.ones(16), [0, 5, 10]),  # none: counts as 1
        (torch.ones(2), [0]),  # the step would be 0
    ],
)
def test_the_adaptive_rule_by_hand(attention, kept) -> None:
    count = max(outliers(attention[None]), 1)
    assert adaptive(attention, count, plus=True).tolist() == kept
    assert adaptive(attention, count, plus=False).tolist() == kept[:count]


def test_the_typical_counts_of_the_paper() -> None:
    """32 outliers of 576 are 5.5 %; step 6 adds the 96 multiples of 6 below 575."""
    kept = adaptive(peaks(576, *range(1, 33)), 32, plus=True)
    assert len(kept) == 32 + 96 - 5  # 6, 12, 18, 24, 30 are outliers already
    assert kept[:3].tolist() == [1, 2, 3] and kept[32:34].tolist() == [0, 36]
    assert kept[-1] == 570


def test_the_rule_of_training_by_hand() -> None:
    """An eighth by attention, and every eighth patch, 12 for the second time."""
    assert trained(peaks(24, 12, 3, 9), plus=True).tolist() == [12, 3, 9, 4, 12, 20]
    assert trained(peaks(24, 12, 3, 9), plus=False).tolist() == [12, 3, 9]


def test_the_fixed_count_by_hand() -> None:
    # 5 of 10: two by attention, 3 of the eight others at 0, floor(8 / 3), floor(16 / 3).
    assert fixed(peaks(10, 9, 4), 5, plus=True).tolist() == [9, 4, 0, 2, 6]
    assert fixed(peaks(10, 9, 4), 5, plus=False).tolist() == [9, 4, 8, 7, 6]
    assert fixed(peaks(10, 9, 4), 1, plus=True).tolist() == [9]
    assert fixed(peaks(10, 9, 4), 0, plus=True).tolist() == []


@pytest.mark.parametrize("tokens", [64, 128, 192, 575])
def test_the_fixed_count_is_exact(tokens) -> None:
    kept = fixed(peaks(576, 400), tokens - 1, plus=True).tolist()
    assert len(kept) == len(set(kept)) == tokens - 1
    by_attention = math.ceil((tokens - 1) / 4)
    assert kept[0] == 400 and kept[1:by_attention] == list(range(575, 576 - by_attention, -1))
    assert kept[by_attention:] == sorted(kept[by_attention:])
    assert kept[by_attention] == 0


def image(patches: list[list[float]], keys: list[list[float]], query=(0.0, 0.0)) -> VisionFeatures:
    """One image of two heads of width 1; CLS has the key 0, 0. Layer 23 is behind the features."""
    made = torch.tensor([[0.0, 0.0], *keys]).T[None, :, :, None]
    probe = Probe(torch.tensor(query)[None, :, None], made)
    return VisionFeatures(torch.tensor(patches)[None], torch.zeros(1, 1), 23, {23: probe})


def test_the_merge_by_hand() -> None:
    """No query: every weight is 1 / (1 + p). 0 and 2 have similar keys, 1 is elsewhere."""
    seen = image([[8.0], [80.0], [800.0]], [[1, 0], [0, 1], [1, 0.1]])
    plain = PruMerge(plus=False, neighbours=1)
    made = plain.choose(seen, 0, 2)
    assert made.features[:, 0].tolist() == [8 + 200, 20 + 200]
    assert made.patch.tolist() == [0, 1]
    # A single token is the extra one: all of them, weighed.
    assert PruMerge(plus=False, neighbours=1).choose(seen, 0, 1).features[:, 0].tolist() == [222]
    # With all neighbours, whether kept or not, and of what was there before the merge.
    made = PruMerge(plus=False).choose(image([[8.0], [80.0], [800.0]], [[1, 0]] * 3), 0, 3)
    assert made.features[:, 0].tolist() == [8 + 220, 80 + 202, 200]
    assert made.patch.tolist() == [0, 1, 2]


def test_all_heads_are_one() -> None:
    """Scale 2^-0.5 and one softmax: scores 2, 0, 1 of the patches, 0 of CLS."""
    root = 2**0.5
    seen = image([[1.0], [10.0], [100.0]], [[root, root], [root, -root], [root, 0]], (1.0, 1.0))
    made = PruMerge(plus=False, neighbours=0).choose(seen, 0, 2)
    total = math.e**2 + 1 + math.e + 1
    assert made.patch.tolist() == [0, 2], "the extra token carries the heaviest it has"
    expected = torch.tensor([1.0, (10 + 100 * math.e) / total])
    assert_close(made.features[:, 0], expected)


def test_the_adaptive_count_is_what_the_image_says() -> None:
    """16 patches, no outlier: 0, 5 and 10 stay, and one token of the 13 others."""
    seen = image([[float(i)] for i in range(16)], [[0.0, 0.0]] * 16)
    groups = [[], [1]]  # a sample has no image
    (made,) = PruMerge(adaptive=True, neighbours=0, target_token_num=9).reduce(seen, groups)
    assert made.patch.tolist() == [0, 5, 10, 1]
    assert_close(made.features[:, 0], torch.tensor([0.0, 5, 10, (120 - 15) / 17]))
    (made,) = PruMerge(neighbours=0, target_token_num=9).reduce(seen, [[1]])
    # 8 patches: two by attention (ties: the first), 6 of 14 others at 0, 2, 4, 7, 9, 11.
    assert made.patch.tolist() == [0, 1, 2, 4, 6, 9, 11, 13, 3]


def test_what_scoring_costs() -> None:
    # 4 features wide, 5 patches, 2 kept: 5 + 1 keys and one query of 4 x 4; 2 x 5 pairs of width 4;
    # 2 x 3 neighbours and 3 dropped of width 4.
    pruner = PruMerge(neighbours=3)
    assert pruner.scoring(3, TowerShape(2, 4, 2, 5)) == 7 * 16 + 10 * 4 + 9 * 4
    assert pruner.scoring(0, TowerShape(2, 4, 2, 5)) == 0


def test_what_adaptive_scoring_costs() -> None:
    # Two images of 16 patches came to 4 and 5 tokens, 3 and 4 patches and the extra one, 8 wide.
    images = [Segment(n, i, torch.arange(n), whole=16) for i, n in enumerate((4, 5))]
    tokens = TokenLayout.from_segments([[*images, Segment(2)], [Segment(3)]])
    shape = replace(vicuna(), tower=TowerShape(23, 8, 2, 16))
    run = PruMerge(adaptive=True, neighbours=0).start(tokens, shape)
    one, other = (18 * 64 + (kept * 16 + 16 - kept) * 8 for kept in (3, 4))
    assert run.scoring_flops() == [2 * (one + other), 0]
    assert PruMerge(adaptive=True).start(tokens, vicuna()).scoring_flops() == []


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"adaptive=true .* meets no budget"):
        pruning.build("prumerge+", adaptive=True, budget_mode="strict")
    with pytest.raises(ValueError, match=r"training=true .* whatever the budget is"):
        pruning.build("prumerge+", training=True, budget_mode="strict")
    with pytest.raises(ValueError, match="two rules: set one"):
        pruning.build("prumerge+", training=True, adaptive=True)
    with pytest.raises(ValueError, match="neighbours must be 0 or more, got -1"):
        pruning.build("prumerge+", neighbours=-1)
    assert pruning.build("prumerge+", budget_mode="strict").tower_layers(23) == (23,)
