"""VisPruner: the patches CLS attends to, and rounds that drop what is most alike."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llava import pruning
from llava.pruning.cost import TowerShape
from llava.pruning.methods.vispruner import VisPruner, least_alike

from .common import layout, vicuna
from .tower_features import features, ranked

# Even places are A, odd ones B. Highest cosines of A: 0.6 with 1, 0.8 with 1, 1 with 3.
SIX = torch.tensor([[3.0, -4], [1, 0], [4, -3], [0, 1], [0, 5], [-1, 0]]).double()


def kept(target: int, made, **settings) -> list[int]:
    (reduced,) = VisPruner(target_token_num=target, **settings).reduce(made, ((1,),))
    assert torch.equal(reduced.features, made.patches[0, reduced.patch])
    return reduced.patch.tolist()


def test_a_round_drops_the_most_alike_of_a_and_puts_b_behind_the_rest() -> None:
    assert least_alike(SIX, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert least_alike(SIX, 5).tolist() == [2, 0, 1, 3, 5]
    assert least_alike(SIX, 4).tolist() == [0, 1, 3, 5]


def test_rounds_by_hand() -> None:
    # Three go at once: all of A. Then A is 1 and 5, B is 3, both cosines 0: the first counts as
    # the higher. Of 5 and 3 the former is A.
    assert [least_alike(SIX, n).tolist() for n in (3, 2, 1, 0)] == [[1, 3, 5], [5, 3], [3], []]


def test_an_odd_list_has_one_more_in_a() -> None:
    # A: 0, 2, 4; B: 1, 3; the last of the list is dropped first.
    assert least_alike(SIX[:5], 4).tolist() == [2, 0, 1, 3]


def test_lengths_do_not_matter_to_a_cosine() -> None:
    long = SIX * torch.tensor([9.0, 0.1, 3, 7, 0.01, 5])[:, None]
    assert least_alike(long, 5).tolist() == [2, 0, 1, 3, 5]


def test_the_list_starts_in_the_order_of_attention() -> None:
    # Attention ranks 7, 3, then the others so that they stand as SIX does: 6, 0, 4, 1, 5, 2.
    patches = torch.zeros(8, 2)
    patches[[6, 0, 4, 1, 5, 2]] = SIX
    made = ranked([7, 3, 6, 0, 4, 1, 5, 2], patches)
    # T = 4: 7 and 3 by attention; of the list, places 3 and 5 stay, which are patches 1 and 2.
    assert kept(4, made) == [1, 2, 3, 7]
    # T = 5: int(2.5) = 2 by attention, places 1, 3, 5 stay: patches 0, 1, 2.
    assert kept(5, made) == [0, 1, 2, 3, 7]
    # 0.8 x 5 = 4 by attention: 7, 3, 6, 0. The list is 4, 1, 5, 2 and has to lose three: first
    # all of A, which is 4 and 5; then 1, for 2 alone is B.
    assert kept(5, made, important_ratio=0.8) == [0, 2, 3, 6, 7]


def by_the_description(vectors: list[list[float]], order: list[int], t: int, ratio: float):
    """The kept patches, with lists and one pair at a time."""

    def cosine(i: int, j: int) -> float:
        return math.fsum(x * y for x, y in zip(vectors[i], vectors[j])) / (
            math.hypot(*vectors[i]) * math.hypot(*vectors[j])
        )

    important = order[: int(t * ratio)]
    rest = order[len(important) :]
    while len(rest) > t - len(important):
        drop = min(8, len(rest) - (t - len(important)))
        a, b = rest[0::2], rest[1::2]
        a = sorted(a, key=lambda i: -max(cosine(i, j) for j in b))
        rest = a[drop:] + b
    return sorted(important + rest)


@pytest.mark.parametrize(("t", "ratio"), [(20, 0.5), (21, 0.5), (22, 0.5), (30, 0.75), (24, 0.0)])
def test_many_rounds_equal_the_description(t, ratio) -> None:
    generator = torch.Generator().manual_seed(t)
    patches = torch.randn(70, 5, generator=generator)
    order = torch.randperm(70, generator=generator).tolist()
    expected = by_the_description(patches.tolist(), order, t, ratio)
    assert len(expected) == t
    assert kept(t, ranked(order, patches), important_ratio=ratio) == expected


def test_every_target_is_met() -> None:
    """Odd lists crash in the original; so does a round that asks for more than A has."""
    made = ranked(list(range(30)))
    for target in range(1, 30):
        for ratio in (0.0, 0.5, 0.75, 1.0):
            assert len(set(kept(target, made, important_ratio=ratio))) == target


def test_attention_alone_is_fastervlm() -> None:
    made = ranked([4, 7, 0, 2, 6, 1, 3, 5])
    (other,) = pruning.build("fastervlm", target_token_num=3).reduce(made, ((1,),))
    assert kept(3, made, important_ratio=1.0) == other.patch.tolist() == [0, 4, 7]


def test_several_images_divide_the_target() -> None:
    made = features([[1.0, 1, 2, 3, 4]], [[1.0, 4, 3, 2, 1]])
    reduced = VisPruner(target_token_num=3).reduce(made, ((1, 1),))
    assert [len(own.patch) for own in reduced] == [2, 1]


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_a_ratio_is_a_share(ratio) -> None:
    with pytest.raises(ValueError, match=r"important_ratio must be (from 0 to 1|a finite number)"):
        VisPruner(important_ratio=ratio)


def test_what_the_cosines_cost() -> None:
    tower = TowerShape(layers=23, hidden=1024, heads=16, patches=576)
    shape = replace(vicuna(), tower=tower)
    # 544 patches with each other, 1024 wide, a multiply-accumulate is 2 FLOPs.
    run = VisPruner(target_token_num=64).start(layout(576, 0), shape)
    assert run.scoring_flops() == [2 * 544 * 544 * 1024, 0]
    # Two images of 32 each: 560 each are compared.
    two = VisPruner(target_token_num=64).start(layout(1152), shape)
    assert two.scoring_flops() == [2 * 2 * 560 * 560 * 1024]
    assert VisPruner(target_token_num=576).start(layout(576), shape).scoring_flops() == [0]
    assert VisPruner(important_ratio=1.0).start(layout(576), shape).scoring_flops() == [0]
    assert pruning.build("fastervlm").start(layout(576), shape).scoring_flops() == [0]
    assert VisPruner().start(layout(576), vicuna()).scoring_flops() == []
