"""ToMe: how many tokens each layer merges, which, and into what."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from llava.pruning.cost import TowerShape
from llava.pruning.methods.tome import Merging, ToMe, schedule
from tests.closeness import assert_close

from .common import layout, vicuna


@pytest.mark.parametrize(
    ("target", "low", "high"),
    [(192, (16, 7), (17, 16)), (128, (19, 12), (20, 11)), (64, (22, 17), (23, 6))],
)
def test_the_published_budgets_on_llava(target, low, high) -> None:
    removed = schedule(576, target, 23)
    assert removed == [low[0]] * low[1] + [high[0]] * high[1]
    assert sum(removed) == 576 - target


@pytest.mark.parametrize("layers", [1, 2, 7, 12, 23, 24, 40])
def test_every_possible_target_is_met_in_any_number_of_layers(layers) -> None:
    possible = 0
    for target in range(577):
        try:
            removed = schedule(576, target, layers)
        except ValueError as error:
            assert f"into {target} in {layers} layers" in str(error)
            assert not possible, "a larger target cannot be harder"
            continue
        possible += 1
        left = 577
        for r in removed:
            assert 0 <= r <= (left - 1) // 2
            left -= r
        assert left == 1 + target and max(removed) - min(removed) <= 1
    assert possible


@pytest.mark.parametrize(
    ("patches", "layers", "floor"),
    [
        (576, 23, 24),  # 23 x 24 removed; 48 patches enter the last layer
        (576, 1, 288),
        (16, 2, 6),  # 5 and 5: 11 patches enter the second, of which 5 can merge
        (15, 1, 8),
    ],
)
def test_the_floor_is_named_and_reached(patches, layers, floor) -> None:
    assert sum(schedule(patches, floor, layers)) == patches - floor
    for target in (floor - 1, 0):
        with pytest.raises(ValueError, match=f"into {target} in .* layers.*: {floor} is the least"):
            schedule(patches, target, layers)


# Token 0 is CLS. A: CLS and patches 1, 3, 5; B: patches 0, 2, 4. Highest products of A: patch 1
# has 1 with 0, patch 3 has 0.8 with 2, patch 5 has 0.8 with 4.
KEYS = torch.tensor([[1.0, 0], [1, 0], [2, 0], [0, 1], [3, 4], [-1, 0], [-4, 3]]).double()
HIDDEN = torch.tensor([[1000.0], [1], [3], [10], [20], [100], [300]]).double()


def keys(rows: torch.Tensor) -> torch.Tensor:
    """Two heads whose mean the rows are: (1, 2, t, 2)."""
    off = torch.tensor([5.0, -7])
    return torch.stack([rows + off, rows - off])[None]


def values(hidden: torch.Tensor) -> list[float]:
    return hidden[0, :, 0].tolist()


def test_one_layer_by_hand() -> None:
    expected = {
        0: ([1000, 1, 3, 10, 20, 100, 300], [0, 1, 2, 3, 4, 5]),
        # 1 joins 0; what is left of A is CLS, 3 and 5, and B comes behind them.
        1: ([1000, 20, 300, 2, 10, 100], [3, 5, 0, 2, 4]),
        # 3 and 5 are level: the first merges.
        2: ([1000, 300, 2, 15, 100], [5, 0, 2, 4]),
        # Everything that can merge; CLS is most alike to patch 0 and stays.
        3: ([1000, 2, 15, 200], [0, 2, 4]),
    }
    for r, (hidden, patch) in expected.items():
        run = Merging([r], True)
        assert values(run.after_attention(0, HIDDEN[None], keys(KEYS))) == hidden
        assert run.patch().tolist() == [patch]


def test_sizes_weigh_means_and_attention_of_the_next_layer() -> None:
    run = Merging([2, 1], True)
    assert run.bias() is None
    hidden = run.after_attention(0, HIDDEN[None], keys(KEYS))
    # CLS, patch 5, patches 0 + 1, patches 2 + 3, patch 4.
    assert_close(run.bias().exp(), torch.tensor([[[[1.0, 1, 2, 2, 1]]]]))
    # Now A is CLS, 0 and 4, B is 5 and 2. Patch 4 points where 2 does, 0 between the two of B.
    second = torch.tensor([[0.0, 1], [1, 0], [1, 1], [0, 2], [0, 1]])
    hidden = run.after_attention(1, hidden, keys(second))
    # 15 stands for two patches, 100 for one: (2 x 15 + 100) / 3.
    assert_close(hidden[0, :, 0], torch.tensor([1000, 2, 300, 130 / 3]))
    assert run.patch().tolist() == [[0, 5, 2]]
    assert_close(run.bias().exp(), torch.tensor([[[[1.0, 2, 1, 3]]]]))


def test_several_join_the_same_token() -> None:
    same = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0], [0, 1], [-1, 0], [0, 1]])
    run = Merging([3], True)
    # Patches 1, 3 and 5 all point where 0 does: (1 + 3 + 20 + 300) / 4.
    assert values(run.after_attention(0, HIDDEN[None], keys(same))) == [1000, 81, 10, 100]
    assert_close(run.bias().exp(), torch.tensor([[[[1.0, 4, 1, 1]]]]))


def test_of_equal_partners_the_first_is_taken() -> None:
    run = Merging([3], True)
    hidden = run.after_attention(0, HIDDEN[None], keys(torch.ones(7, 2)))
    assert values(hidden) == [1000, 81, 10, 100]
    assert run.patch().tolist() == [[0, 2, 4]]


def test_without_proportional_attention_means_are_weighted_all_the_same() -> None:
    run = Merging([3, 1], False)
    hidden = run.after_attention(0, HIDDEN[None], keys(KEYS))
    assert run.bias() is None
    # CLS, 0 + 1, 2 + 3, 4 + 5; A is CLS and 2 + 3, B is 0 + 1 and 4 + 5.
    hidden = run.after_attention(1, hidden, keys(torch.ones(4, 2)))
    assert values(hidden) == [1000, (2 + 15) / 2, 200]
    assert run.bias() is None


def test_no_bias_before_anything_merged() -> None:
    run = Merging([0, 1], True)
    hidden = run.after_attention(0, HIDDEN[None], keys(KEYS))
    assert run.bias() is None and torch.equal(hidden, HIDDEN[None])
    run.after_attention(1, hidden, keys(KEYS))
    assert run.bias() is not None


def test_images_of_a_run_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 17, 8, generator=generator)
    key = torch.randn(3, 2, 17, 4, generator=generator)
    later = torch.randn(3, 2, 12, 4, generator=generator)
    together = Merging([5, 3], True)
    made = together.after_attention(1, together.after_attention(0, hidden, key), later)
    assert made.shape == (3, 9, 8)
    for i in range(3):
        run, own = Merging([5, 3], True), slice(i, i + 1)
        alone = run.after_attention(1, run.after_attention(0, hidden[own], key[own]), later[own])
        assert_close(made[own], alone)
        assert torch.equal(together.patch()[own], run.patch())
        assert torch.equal(together.bias()[own], run.bias())


def test_nothing_is_lost_in_merging() -> None:
    """Sizes sum to the tokens, and sizes times tokens to the sum of all that entered."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 65, 8, generator=generator)
    run, total = Merging([9, 9, 10], True), hidden.sum(1)
    for layer in range(3):
        key = torch.randn(2, 2, hidden.shape[1], 4, generator=generator)
        cls = hidden[:, 0]
        hidden = run.after_attention(layer, hidden, key)
        assert torch.equal(hidden[:, 0], cls)
    size = run.bias().exp()[:, 0, 0]
    assert hidden.shape == (2, 37, 8)
    assert_close(size.sum(1), torch.full((2,), 65.0))
    assert_close((size[..., None] * hidden).sum(1), total)
    assert all(len(set(patches)) == 36 for patches in run.patch().tolist())


def test_means_are_taken_in_float32() -> None:
    # In float16 the sum of the four would be infinite.
    big = torch.full((1, 7, 1), 60000.0, dtype=torch.float16)
    made = Merging([3], True).after_attention(0, big, keys(torch.ones(7, 2)).half())
    assert made.dtype == torch.float16 and values(made) == [60000.0] * 4


def test_images_that_keep_equally_many_share_a_run() -> None:
    pruner = ToMe(target_token_num=13)
    assert pruner.merges_in_tower and pruner.tower_layers(2) == ()
    runs = pruner.tower_runs(((1,), (1, 1), (), (1,)), 16, 2)
    assert len(runs) == 4 and runs[0] is runs[3]
    assert Counter(map(id, runs)).most_common(1)[0][1] == 2  # 13; 7 and 6; 13
    mixed = ToMe(target_token_num=20).tower_runs(((1,), (1, 1)), 16, 2)
    assert mixed[1] is mixed[2] is not mixed[0]
    assert ToMe(target_token_num=20).tower_runs(((1,), (1, 1)), 16, 2)[0] is not mixed[0]
    assert ToMe(target_token_num=16).tower_runs(((1,), (1,), ()), 16, 2) is None


def test_an_image_below_the_floor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"into 5 in 2 layers.*: 6 is the least"):
        ToMe(target_token_num=11).tower_runs(((1, 1),), 16, 2)
    # Two images, one token: the second would have none.
    with pytest.raises(ValueError, match="into 0 in 2 layers"):
        ToMe(target_token_num=1).tower_runs(((1, 1),), 1, 2)


def test_what_the_products_cost() -> None:
    # T = 12 of 16 in 2 layers: 17 tokens are 9 x 8 pairs, 15 are 8 x 7; keys are 32 / 4 wide.
    shape = replace(vicuna(), tower=TowerShape(layers=2, hidden=32, heads=4, patches=16))
    flops = ToMe(target_token_num=12).start(layout(16, 0, 32), shape).scoring_flops()
    # Two images keep 6 each: 5 and 5 go, 17 tokens are 72 pairs, 12 are 6 x 6.
    assert flops == [2 * (72 + 56) * 8, 0, 2 * 2 * (72 + 36) * 8]
    # 15 of 16: one goes in the second layer, and the first compares nothing.
    one = ToMe(target_token_num=15).start(layout(16), shape).scoring_flops()
    assert one == [2 * 72 * 8]
