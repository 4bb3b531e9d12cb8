"""HiRED on a single view: the CLS row of the last layer that ran, summed over heads."""

from __future__ import annotations

import pytest
import torch

from llava import pruning

from .tower_features import features, ranked

# Sums over the heads: 12/16, 5/16, 8/16, 3/16.
TWO_HEADS = [[1.0, 1, 2, 3, 1], [2.0, 10, 1, 2, 1]]


def kept(method: str, target: int, made) -> list[int]:
    (reduced,) = pruning.build(method, target_token_num=target).reduce(made, ((1,),))
    assert torch.equal(reduced.features, made.patches[0, reduced.patch])
    return reduced.patch.tolist()


def test_heads_are_summed_after_the_softmax() -> None:
    assert [kept("hired", t, features(TWO_HEADS)) for t in (1, 2, 3)] == [[0], [0, 2], [0, 1, 2]]


def test_spatial_order_and_ties() -> None:
    assert kept("hired", 3, ranked([4, 0, 2, 1, 3])) == [0, 2, 4]
    assert kept("hired", 3, features([[1.0, 2, 5, 2, 5, 2]])) == [0, 1, 3]


@pytest.mark.parametrize("target", [1, 7, 19])
def test_a_single_view_is_ranked_as_fastervlm_ranks_it(target) -> None:
    weights = 0.1 + torch.rand(4, 21, generator=torch.Generator().manual_seed(target))
    made = features(weights.tolist())
    assert kept("hired", target, made) == kept("fastervlm", target, made)


def test_all_patches_at_or_above_their_number() -> None:
    assert pruning.build("hired", target_token_num=4).reduce(features(TWO_HEADS), ((1,),)) is None


def test_the_ranking_layer_is_probed_and_the_one_that_divides_among_tiles() -> None:
    assert pruning.build("hired").tower_layers(23) == (0, 22)
    assert pruning.build("hired").tower_layers(1) == (0,)
