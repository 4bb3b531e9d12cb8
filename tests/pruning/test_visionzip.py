"""VisionZip by hand: the split of T, the strided targets, the order of what is handed on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llava import pruning
from llava.pruning.cost import TowerShape
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.visionzip import VisionZip, contextual_tokens
from llava.pruning.vision import Probe, VisionFeatures
from tests.closeness import assert_close

from .common import vicuna


def features(patches: torch.Tensor, keys: torch.Tensor, query: torch.Tensor) -> VisionFeatures:
    """One image; keys (heads, 1 + p, e) and query (heads, e) of the last layer that ran, 22."""
    token = torch.full((1, patches.shape[-1]), -7.0, dtype=patches.dtype)
    return VisionFeatures(patches[None], token, 23, {22: Probe(query[None], keys[None])})


@pytest.mark.parametrize(
    ("count", "split"),
    [
        (192, (162, 30)),
        (128, (108, 20)),
        (64, (54, 10)),
        (32, (27, 5)),
        (100, (85, 15)),  # 15.6
        (7, (6, 1)),
        (6, (6, 0)),
        (1, (1, 0)),
    ],
)
def test_the_published_splits_and_others(count, split) -> None:
    assert VisionZip().split(count) == split


def test_contextual_tokens_by_hand() -> None:
    # 7 patches, 3 targets: step 2, targets 0, 2, 4; 1, 3, 5 and 6 join. The last target is alone.
    metric = torch.tensor([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6], [-1, 0], [0, 1], [1, 0]])
    patches = torch.tensor([[1.0], [20], [300], [4000], [5e4], [6e5], [7e6]])
    made, targets = contextual_tokens(patches, metric, 3)
    assert targets.tolist() == [0, 2, 4]
    assert made[:, 0].tolist() == [1 + (4000 + 7e6) / 2, 300 + (20 + 6e5) / 2, 5e4]


def test_a_step_that_does_not_divide_takes_the_first_targets() -> None:
    # 576 patches, T = 64: 53 dominant patches leave 523; step 52 gives 11 places, the first 10.
    made, targets = contextual_tokens(torch.ones(523, 1), torch.ones(523, 1), 10)
    assert targets.tolist() == list(range(0, 520, 52))
    # All metrics are equal, so all join the first target; a target keeps itself, not doubled.
    assert made[:, 0].tolist() == [2.0] + [1.0] * 9


def image_of_eight() -> VisionFeatures:
    """CLS attends, by its two heads together, to patches 5, 2 and 7 in this order.

    Head 0 alone would say 2, 5, 1. The keys' other half, which no query looks at, is the metric.
    """
    first = torch.tensor([0.0, 0, 2, 4, 0, 0, 3, 0, 1])  # CLS, then patches 0 to 7
    second = torch.tensor([0.0, 0, -9, 0, 0, 0, 3, 0, 2])
    turned = torch.tensor([0.0, 4, 0, 0, 0, 3, 0, 4, 0])  # 0, 4 and 6 point to one side
    flat = torch.zeros(9)
    keys = torch.stack(
        [torch.stack([first, turned, flat], -1), torch.stack([second, flat, flat + 1], -1)]
    )
    query = torch.tensor([[3**0.5, 0, 0], [3**0.5, 0, 0]])
    return features(10.0 ** torch.arange(8.0)[:, None] * torch.ones(8, 2), keys, query)


def test_choose_by_hand() -> None:
    # T = 4, half of it contextual: CLS and one patch; 0 1 2 3 4 6 7 are left, step 3: targets 0, 3.
    made = VisionZip(contextual_ratio=0.5).choose(image_of_eight(), 0, 4)
    assert made.patch.tolist() == [8, 5, 0, 3]
    assert made.features[0].tolist() == [-7, -7]
    assert made.features[1].tolist() == [1e5, 1e5]
    # Keys averaged over heads, last entry .5: 0 and 6 (0, 2), 4 (0, 1.5), 3 (0, 0), 1 (-3.5, 0),
    # 2 (2, 0), 7 (1.5, 0). Nearest to 0 are 4 and 6, to 3 are 1, 2 and 7.
    expected = [1 + (1e4 + 1e6) / 2, 1e3 + (10 + 100 + 1e7) / 3]
    assert_close(made.features[2:, 0], torch.tensor(expected))


def test_dominant_patches_are_in_spatial_order_and_ranked_by_both_heads() -> None:
    made = VisionZip().choose(image_of_eight(), 0, 4)
    assert made.patch.tolist() == [8, 2, 5, 7]
    assert made.features[:, 0].tolist() == [-7, 1e2, 1e5, 1e7]


def test_what_merging_costs() -> None:
    # T = 64: 576 + 1 - 64 patches join, each against 10 targets in 64 dimensions, means in 1024.
    clip = TowerShape(23, 1024, 16, 576)
    assert VisionZip().scoring(64, clip) == 513 * (10 * 64 + 1024)
    assert VisionZip().scoring(6, clip) == VisionZip().scoring(0, clip) == 0
    shape = replace(vicuna(), tower=clip)
    visual = Segment(64, 0, torch.arange(64), whole=576)
    tokens = TokenLayout.from_segments([[visual, Segment(3)], [Segment(5)]])
    assert VisionZip().start(tokens, shape).scoring_flops() == [2 * 853632, 0]


@pytest.mark.parametrize("count", range(1, 8))
def test_every_count_is_met_with_different_patches(count) -> None:
    for ratio in (0, 5 / 32, 0.5, 0.9):
        made = VisionZip(contextual_ratio=ratio).choose(image_of_eight(), 0, count)
        assert made.features.shape == (count, 2)
        assert len(set(made.patch.tolist())) == count
        assert made.patch[0] == 8


def test_half_precision_stays_and_ties_go_to_the_lower_index() -> None:
    flat = features(torch.ones(9, 2).half(), torch.zeros(2, 10, 4).half(), torch.zeros(2, 4).half())
    made = VisionZip().choose(flat, 0, 7)
    assert made.features.dtype == torch.float16
    assert made.patch.tolist() == [9, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("ratio", [-0.1, 1, float("nan")])
def test_a_share_that_leaves_no_cls_token_is_refused(ratio) -> None:
    with pytest.raises(
        ValueError, match=r"contextual_ratio must be (from 0 to below 1|a finite number)"
    ):
        pruning.build("visionzip", contextual_ratio=ratio)
