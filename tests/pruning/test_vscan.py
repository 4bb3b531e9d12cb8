"""VScan by hand: the two stages' counts, windows, rankings, the merge into kept tokens."""

from __future__ import annotations

import math

import pytest
import torch

from llava import pruning
from llava.pruning.base import Observation
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.vscan import VScan, pack_ranks, unpack_ranks, window_of
from llava.pruning.selection import apply
from tests.closeness import assert_close

from .common import FixedAhead, layout, vicuna


@pytest.mark.parametrize(
    ("target", "visual", "layers", "depth", "stages"),
    [
        (64, 576, 32, 16, (96, 32)),
        (128, 576, 32, 16, (192, 64)),
        (192, 576, 32, 16, (288, 96)),
        (64, 576, 40, 20, (96, 32)),
        (65, 576, 32, 16, (97, 33)),
        (400, 576, 32, 16, (576, 224)),  # there are no 600
        (64, 576, 32, 8, (97, 53)),  # 8 x 97 + 24 x 53 = 32 x 64
        (8, 576, 31, 16, (8, 8)),  # the next split is 23 and -8
        (1, 576, 32, 16, (1, 1)),
        (576, 576, 32, 16, (576, 576)),
        (64, 0, 32, 16, (0, 0)),
    ],
)
def test_counts_by_hand(target, visual, layers, depth, stages) -> None:
    assert VScan(target_token_num=target, layer=depth).stages(visual, layers) == stages


def test_the_average_is_exact_for_every_depth_and_target() -> None:
    for layers in (2, 6, 7, 24, 32, 40):
        for depth in range(1, layers, 1 + layers // 7):
            for target in (1, 2, 7, 33, 64, 90):
                for ratio in (1, 1.3, 1.5, 4):
                    pruner = VScan(target_token_num=target, layer=depth, first_ratio=ratio)
                    first, second = pruner.stages(100, layers)
                    assert depth * first + (layers - depth) * second == layers * target
                    assert 1 <= second <= target <= first <= 100


def test_windows_by_hand() -> None:
    assert window_of(16, 2).view(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    published = window_of(576, 4).view(24, 24)
    assert published.unique(return_counts=True)[1].tolist() == [36] * 16
    assert (published[6:12, 18:24] == 7).all() and published[5, 17] == 2
    # No whole number of patches: 5 rows are 0 0 0 1 1, as 2 y / 5 says; and no more than patches.
    assert window_of(25, 2).view(5, 5)[:, 0].tolist() == [0, 0, 0, 2, 2]
    assert window_of(4, 4).tolist() == [0, 1, 2, 3]


def test_rankings_by_hand() -> None:
    local = torch.tensor([[0.1, 0.4, 0.9, 0.4], [0.5, 0.5, 0.5, 0.6]])
    overall = torch.tensor([[0.3, 0.1, 0.2, 0.9], [0.1, 0.1, 0.1, 0.1]])
    packed = pack_ranks(local, overall, torch.tensor([0, 0, 1, 1]))
    # Ranks in the windows: 1 0 0 1 and 0 1 1 0; in the image: 1 3 2 0 and 0 1 2 3.
    assert packed.tolist() == [[5, 3, 2, 4], [0, 5, 6, 3]]


@pytest.mark.parametrize(
    ("count", "kept"),
    [
        (8, [0, 1, 2, 3, 5, 6, 8, 10]),  # one of each window, 5 6 8 10; then 0 1 2 3
        (10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]),  # floor(5 / 4) = 1 again; the reference keeps 9
        (7, [0, 1, 2, 3, 4, 5, 6]),  # floor(3 / 4) = 0: all by the global attention
        (16, list(range(16))),
        (0, []),
    ],
)
def test_stage_one_by_hand(count, kept) -> None:
    local = torch.zeros(1, 16)
    local[0, [5, 6, 8, 10]] = 1.0
    packed = pack_ranks(local, -torch.arange(16.0)[None], window_of(16, 2))
    chosen, dropped = unpack_ranks(packed[0], count, 2)
    assert chosen.tolist() == kept
    assert dropped.tolist() == [i for i in range(16) if i not in kept]


def test_rankings_are_exact_for_the_largest_towers() -> None:
    """As float32, for 48 x 48 patches in windows of 144, and choose the counts exactly."""
    generator = torch.Generator().manual_seed(0)
    local, overall = torch.rand(2, 1, 2304, generator=generator)
    packed = pack_ranks(local, overall, window_of(2304, 4))[0]
    assert (packed.long() % 2304).sort().values.tolist() == list(range(2304))
    chosen, _ = unpack_ranks(packed, 999, 4)
    assert len(chosen) == 999
    window = window_of(2304, 4)
    by_hand = set()
    for w in range(16):
        own = (window == w).nonzero()[:, 0]
        by_hand |= set(own[local[0, own].argsort(descending=True)[:31]].tolist())
    rest = [i for i in overall[0].argsort(descending=True).tolist() if i not in by_hand]
    assert set(chosen.tolist()) == by_hand | set(rest[: 999 - 16 * 31])


def four_patches(*rank: int) -> list[Segment]:
    """Text, an image of 2 x 2 patches ranked so (one window each, so share 0), more text."""
    return [Segment(1), Segment(4, 0, torch.arange(4), torch.tensor(rank).float()), Segment(2)]


def test_dropped_tokens_join_the_most_similar_kept_one() -> None:
    # T = 2 in 2 layers, one each: T1 = 3, T2 = 1. Patch 1 is the last.
    run = VScan(target_token_num=2, layer=1).start(
        before := TokenLayout.from_segments([four_patches(2, 3, 0, 1), four_patches(0, 1, 2, 3)]),
        vicuna(2),
    )
    embeds = torch.tensor(
        [
            [[9.0, 9], [1, 0], [8, 1], [0, 1], [-1, 0], [5, 6], [7, 8]],
            [[9.0, 9], [0, 2], [1, 1], [2, 0], [0, 4], [5, 6], [7, 8]],
        ]
    )
    selection = run.at_entry(before, embeds)
    after = apply(selection, embeds)
    # 8, 1 joins 1, 0; in the second sample 0, 4 joins 0, 2.
    assert after[0].tolist() == [[9, 9], [4.5, 0.5], [0, 1], [-1, 0], [5, 6], [7, 8]]
    assert after[1].tolist() == [[9, 9], [0, 3], [1, 1], [2, 0], [5, 6], [7, 8]]
    assert before.select(selection).patch.tolist() == [[-1, 0, 2, 3, -1, -1], [-1, 0, 1, 2, -1, -1]]
    assert run.scoring_flops() == [2 * 2 * (3 + 1)] * 2, "3 pairs and a mean, of width 2"


def test_samples_that_keep_all_and_ragged_ones_are_left_as_they_are() -> None:
    pruner = VScan(target_token_num=2, layer=1)
    small = [Segment(1), Segment(1, 0, torch.arange(1), torch.zeros(1)), Segment(1)]
    tokens = TokenLayout.from_segments([four_patches(3, 2, 1, 0), small, [Segment(5)]])
    embeds = torch.randn(3, 7, 4)
    selection = pruner.start(tokens, vicuna(2)).at_entry(tokens, embeds)
    after = apply(selection, embeds)
    assert selection.n_visual == (3, 1, 0) and selection.lengths == (6, 3, 5)
    assert torch.equal(after[1, -3:], embeds[1, -3:]) and torch.equal(after[2, -5:], embeds[2, -5:])
    off = pruning.build("vscan", target_token_num=2, layer=1, merge=False).start(tokens, vicuna(2))
    kept = off.at_entry(tokens, embeds)
    assert kept.merge is None and torch.equal(kept.index, selection.index)
    assert off.scoring_flops() == [0, 0, 0]
    fits = layout(2, 1)
    assert pruner.start(fits, vicuna(2)).at_entry(fits, torch.randn(2, fits.n, 4)) is None


def test_images_divide_the_first_stage_and_join_only_their_own() -> None:
    images = [Segment(4, i, torch.arange(4), torch.tensor([0.0, 1, 2, 3])) for i in range(2)]
    tokens = TokenLayout.from_segments([[Segment(1), *images, Segment(2)]])
    run = VScan(target_token_num=2, layer=1).start(tokens, vicuna(2))
    embeds = torch.ones(1, 11, 2)
    # All of the first image point down but its kept patches 0 and 1, which the second's would join.
    embeds[0, [3, 4]] *= -1
    selection = run.at_entry(tokens, embeds)
    assert tokens.select(selection).patch.tolist() == [[-1, 0, 1, 4, -1, -1]]
    # Equal cosines: the lower index, 0, takes both: (1 - 1 - 1) / 3. The second image is all ones.
    expected = [1, -1 / 3, 1, 1, 1, 1]
    assert_close(apply(selection, embeds)[0, :, 0], torch.tensor(expected))


def test_the_second_stage_ranks_by_the_last_token_of_the_next_layer() -> None:
    tokens = layout(4)
    run = VScan(target_token_num=3, layer=2, first_ratio=1.34).start(tokens, vicuna(4))
    assert (run.first, run.second) == ([4], [2])
    rows = torch.zeros(1, 2, 1, 9)
    rows[0, 0, 0, 1:5] = torch.tensor([0.0, 0.3, 0.2, 0.1])
    rows[0, 1, 0, 1:5] = torch.tensor([0.5, 0.0, 0.0, 0.3])  # means .25 .15 .1 .2
    rows[..., 8] = 1.0  # text is not ranked
    seen = [Observation(i, tokens, torch.zeros(1, 9, 2), ahead=FixedAhead(rows)) for i in range(4)]
    assert [run.after_layer(seen[i]) for i in (0, 2, 3)] == [None] * 3
    after = tokens.select(run.after_layer(seen[1]))
    assert after.patch.tolist() == [[-1, 0, 3, -1, -1, -1, -1]]
    assert run.rows(1, tokens) == 0


def test_depths_move_with_the_decoder_and_the_tower() -> None:
    assert [VScan().scaled(32, n).layer for n in (40, 6, 2, 1)] == [20, 3, 1, 1]
    assert VScan().tower_layers(23) == (5, 22)
    assert VScan().tower_layers(11) == (2, 10)
    assert VScan().tower_layers(2) == (0, 1)
    assert VScan(local_layer=22).tower_layers(1) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_ratio": 0.9}, "first_ratio must be 1 or more, got 0.9"),
        ({"first_ratio": math.nan}, "first_ratio must be a finite number"),
        ({"layer": 0}, "layer must be 1 or more"),
        ({"local_layer": 23}, "local_layer must be from 0 to 22, got 23"),
        ({"windows": 0}, "windows must be 1 or more"),
        ({"positions": "dense"}, "positions must be one of compact, original"),
        ({"target_token_num": 0}, "target_token_num must be a whole number, 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.build("vscan", **settings)


def test_models_and_prompts_that_do_not_fit_are_refused() -> None:
    tokens = layout(4)
    with pytest.raises(
        ValueError, match="cuts after 16 layers, but this decoder has 6: give smaller layer"
    ):
        VScan(target_token_num=2).start(tokens, vicuna(6))
    pruner = VScan(target_token_num=2, layer=3)
    bare = TokenLayout.from_segments([[Segment(4, 0, torch.arange(4), torch.zeros(4))]])
    with pytest.raises(ValueError, match="needs text after the last image"):
        pruner.start(bare, vicuna(6))
    blind = TokenLayout.from_segments([[Segment(4, 0, torch.arange(4)), Segment(1)]])
    with pytest.raises(ValueError, match="needs the attention of the vision tower's CLS token"):
        pruner.start(blind, vicuna(6))
