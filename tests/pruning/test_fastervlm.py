"""FasterVLM: the CLS row of the last layer that ran, mean over heads."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.pruning.tower import view_counts

from .tower_features import LAYERS, features, ranked

# Sums 8 and 16: head 0 gives the patches 1/8, 2/8, 3/8, 1/8, head 1 10/16, 1/16, 2/16, 1/16.
TWO_HEADS = [[1.0, 1, 2, 3, 1], [2.0, 10, 1, 2, 1]]


def kept(target: int, made, groups=((1,),)) -> list[list[int]]:
    reduced = pruning.build("fastervlm", target_token_num=target).reduce(made, groups)
    for image, own in enumerate(reduced):
        assert torch.equal(own.features, made.patches[image, own.patch])
    return [own.patch.tolist() for own in reduced]


def test_heads_are_averaged_after_the_softmax() -> None:
    # Means: 12/32, 5/32, 8/32, 3/32. Head 0 alone would say patch 2 first.
    assert [kept(t, features(TWO_HEADS))[0] for t in (1, 2, 3)] == [[0], [0, 2], [0, 1, 2]]


def test_kept_patches_are_in_spatial_order_and_ties_go_to_the_lower() -> None:
    assert kept(3, ranked([4, 0, 2, 1, 3])) == [[0, 2, 4]]
    assert kept(3, features([[1.0, 2, 5, 2, 5, 2]])) == [[0, 1, 3]]
    assert kept(2, features([[1.0, 1, 1, 1, 1]])) == [[0, 1]]


def test_only_the_last_layer_that_ran_is_asked() -> None:
    assert pruning.build("fastervlm").tower_layers(23) == (22,)
    assert pruning.build("fastervlm").tower_layers(LAYERS) == (LAYERS - 1,)


def test_images_of_a_sample_divide_the_target() -> None:
    a, b, c = ([[1.0, 1, 2, 3, 4]], [[1.0, 4, 3, 2, 1]], [[1.0, 1, 9, 1, 8]])
    made = features(a, b, c)
    assert kept(3, made, ((1, 1), (), (1,))) == [[2, 3], [0], [0, 1, 3]]
    assert kept(1, made, ((1, 1, 1),)) == [[3], [], []]
    pruner = pruning.build("fastervlm", target_token_num=3)
    assert view_counts(pruner, 4, ((1, 1), (), (1,))) == [2, 1, 3]


@pytest.mark.parametrize("target", [4, 5, 576])
def test_a_target_at_or_above_the_patches_reduces_nothing(target) -> None:
    pruner = pruning.build("fastervlm", target_token_num=target)
    assert pruner.reduce(features(TWO_HEADS), ((1,),)) is None


def test_a_sample_with_room_keeps_all_beside_one_without() -> None:
    made = features([[1.0, 1, 2, 3, 4]], [[1.0, 4, 3, 2, 1]], [[1.0, 1, 9, 1, 8]])
    assert kept(4, made, ((1,), (1, 1))) == [[0, 1, 2, 3], [0, 1], [1, 3]]
