"""What is where in a batch of sequences, and how a selection is carried out."""

from __future__ import annotations

import random

import pytest
import torch

from llava.pruning.layout import NEWLINE, TEXT, Segment, TokenLayout
from llava.pruning.selection import Merge, Selection, apply, take
from tests.closeness import assert_close

T = TEXT


def two_images_and_text() -> TokenLayout:
    """text 2, image of 3 patches, text 2, image of 2 patches, text 1; and 4 tokens of text."""
    first = Segment(3, 0, torch.arange(3), torch.tensor([0.1, 0.2, 0.3]))
    second = Segment(2, 1, torch.arange(2), torch.tensor([0.4, 0.5]), torch.tensor([True, False]))
    return TokenLayout.from_segments(
        [[Segment(2), first, Segment(2), second, Segment(1)], [Segment(4)]]
    )


def test_columns_of_several_images_beside_a_shorter_text() -> None:
    layout = two_images_and_text()
    pad = [T] * 6
    assert layout.image.tolist() == [[T, T, 0, 0, 0, T, T, 1, 1, T], [*pad, T, T, T, T]]
    assert layout.patch.tolist() == [[T, T, 0, 1, 2, T, T, 3, 4, T], [*pad, T, T, T, T]]
    assert layout.position.tolist() == [list(range(10)), [0] * 6 + [0, 1, 2, 3]]
    assert layout.valid.tolist() == [[True] * 10, [False] * 6 + [True] * 4]
    assert layout.letterbox.nonzero().tolist() == [[0, 7]]
    expected = torch.tensor([0, 0, 0.1, 0.2, 0.3, 0, 0, 0.4, 0.5, 0])
    assert torch.equal(layout.cls, torch.stack([expected, torch.zeros(10)]).float())
    assert layout.is_visual.sum().item() == 5
    assert (layout.batch, layout.n, layout.padded) == (2, 10, True)


def test_counts_of_several_images_beside_a_shorter_text() -> None:
    layout = two_images_and_text()
    assert layout.lengths == (10, 4)
    assert layout.n_visual == (5, 0)
    assert layout.tail == (1, 0)


def test_patch_ids_count_on_behind_the_highest_of_the_image_before() -> None:
    gaps = Segment(2, 0, torch.tensor([1, 7]))
    layout = TokenLayout.from_segments([[gaps, Segment(2, 1, torch.tensor([0, 3])), Segment(1)]])
    assert layout.patch.tolist() == [[1, 7, 8, 11, T]]
    assert layout.tail == (1,)
    assert not layout.padded


def test_cls_scores_are_all_or_nothing() -> None:
    with_cls = Segment(2, 0, torch.arange(2), torch.ones(2))
    without = Segment(2, 0, torch.arange(2))
    assert TokenLayout.from_segments([[with_cls], [with_cls]]).cls is not None
    assert TokenLayout.from_segments([[with_cls], [without]]).cls is None
    assert TokenLayout.from_segments([[Segment(3)]]).cls is None
    assert TokenLayout.from_segments([[with_cls]]).letterbox is None


def test_text_only_reads_the_attention_mask() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    layout = TokenLayout.text_only(mask)
    assert layout.position.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert layout.lengths == (2, 4)
    assert layout.n_visual == layout.tail == (0, 0)
    assert not layout.is_visual.any()
    assert torch.equal(layout.valid, mask.bool())


def test_repeat_keeps_copies_of_a_sample_together() -> None:
    layout = two_images_and_text()
    assert layout.repeat(1) is layout
    twice = layout.repeat(2)
    assert twice.lengths == (10, 10, 4, 4)
    assert twice.n_visual == (5, 5, 0, 0)
    assert twice.tail == (1, 1, 0, 0)
    for name in ("image", "position", "patch", "valid", "cls", "letterbox"):
        before, after = getattr(layout, name), getattr(twice, name)
        assert torch.equal(after, torch.stack([before[0], before[0], before[1], before[1]]))


def test_select_moves_every_tensor_and_takes_the_new_counts() -> None:
    layout = two_images_and_text()
    index = torch.tensor([[0, 1, 3, 5, 6, 8, 9], [3, 4, 5, 6, 7, 8, 9]])
    after = layout.select(Selection(index, (7, 4), (2, 0)))
    assert after.image.tolist() == [[T, T, 0, T, T, 1, T], [T] * 7]
    assert after.patch[0].tolist() == [T, T, 1, T, T, 4, T]
    assert after.position.tolist() == [[0, 1, 3, 5, 6, 8, 9], [0, 0, 0, 0, 1, 2, 3]]
    assert after.cls[0].tolist() == pytest.approx([0, 0, 0.2, 0, 0, 0.5, 0])
    assert not after.letterbox.any()
    assert torch.equal(after.valid, torch.arange(7)[None] >= torch.tensor([[0], [3]]))
    assert (after.lengths, after.n_visual, after.tail) == ((7, 4), (2, 0), (1, 0))


def test_a_sample_that_loses_its_last_visual_token_has_no_tail() -> None:
    layout = TokenLayout.from_segments(
        [[Segment(1), Segment(2, 0, torch.arange(2)), Segment(3)], [Segment(4)]]
    )
    assert layout.tail == (3, 0)
    kept = torch.tensor([[0, 3, 4, 5], [2, 3, 4, 5]])
    after = layout.select(Selection(kept, (4, 4), (0, 0)))
    assert (after.n_visual, after.tail) == ((0, 0), (0, 0))


def test_a_filling_column_is_padding_whatever_it_was() -> None:
    layout = two_images_and_text()
    index = torch.tensor([[0, 0, 7, 9], [9, 9, 8, 9]])
    after = layout.select(Selection(index, (3, 2), (1, 0)))
    assert after.valid.tolist() == [[False, True, True, True], [False, False, True, True]]
    assert after.image.tolist() == [[T, T, 1, T], [T] * 4]
    assert after.patch.tolist() == [[T, T, 3, T], [T] * 4]


def test_a_layout_is_an_index_until_somebody_asks() -> None:
    layout = two_images_and_text()
    first = layout.select(
        Selection(torch.tensor([[0, 1, 3, 8, 9], [0, 6, 7, 8, 9]]), (5, 4), (2, 0))
    )
    after = first.select(Selection(torch.tensor([[0, 1, 3, 4], [1, 2, 3, 4]]), (4, 4), (1, 0)))
    looked_up = {"columns", "valid", "image", "patch", "position", "cls", "letterbox", "tile"}
    for seen in (first, after):
        assert not looked_up & vars(seen).keys()
        assert seen.tokens is layout.tokens
    assert after.patch.tolist() == [[T, T, 4, T], [T] * 4]
    assert looked_up & vars(after).keys() == {"patch", "columns"}
    assert looked_up & vars(first).keys() == {"columns"}


def test_fields_after_three_selections_are_gathered_three_times() -> None:
    tile = torch.tensor([0, 0, 1, 1, NEWLINE])
    box = torch.tensor([True, False, False, True, False])
    first = Segment(5, 0, torch.arange(5), torch.rand(5), box, tile=tile)
    plain = Segment(7, 0, torch.arange(7), torch.rand(7))
    layout = TokenLayout.from_segments(
        [[Segment(2), first, Segment(1)], [plain, Segment(3)], [Segment(4)]]
    )
    names = ("image", "patch", "position", "valid", "cls", "letterbox", "tile", "rank_bias")
    expected = {name: getattr(layout, name) for name in names}
    rng = random.Random(0)
    for lengths in ((7, 8, 4), (5, 8, 4), (5, 3, 4)):
        n = max(lengths)
        rows = []
        for length, have in zip(lengths, layout.lengths):
            columns = sorted(rng.sample(range(layout.n - have, layout.n), length))
            rows.append([rng.randrange(layout.n) for _ in range(n - length)] + columns)
        index = torch.tensor(rows)
        layout = layout.select(Selection(index, lengths, (1, 1, 0)))
        expected = {name: value.gather(1, index) for name, value in expected.items()}
    there = layout.valid
    for name, value in expected.items():
        assert torch.equal(getattr(layout, name)[there], value[there]), name
    for name, filling in (("image", T), ("patch", T), ("valid", False), ("rank_bias", -torch.inf)):
        assert (getattr(layout, name)[~there] == filling).all(), name
    assert there.sum(1).tolist() == [5, 3, 4]


def test_take_gathers_rows_of_each_sample() -> None:
    hidden = torch.randn(3, 7, 4)
    index = torch.tensor([[0, 6, 6], [3, 2, 1], [5, 5, 0]])
    expected = hidden.gather(1, index[..., None].expand(-1, -1, 4))
    assert torch.equal(take(hidden, index), expected)
    assert torch.equal(take(hidden[1:2], index[1:2]), expected[1:2])


def merging() -> Selection:
    """Of 6 columns, sample 0 merges {1, 2} and {3}; sample 1 merges {2, 3, 4} only."""
    merge = Merge(
        source=torch.tensor([[1, 2, 3], [2, 3, 4]]),
        pools=(3, 3),
        cluster=torch.tensor([[0, 0, 1], [0, 0, 0]]),
        index=torch.tensor([[0, 6, 7, 5], [0, 6, 4, 5]]),
        clusters=2,
    )
    index = torch.tensor([[0, 1, 3, 5], [0, 2, 4, 5]])
    return Selection(index, (4, 4), (2, 2), merge)


def test_apply_averages_the_members_of_each_cluster() -> None:
    hidden = torch.randn(2, 6, 3)
    out = apply(merging(), hidden)
    assert_close(out[0, 1], hidden[0, 1:3].mean(0))
    assert_close(out[0, 2], hidden[0, 3])
    assert_close(out[1, 1], hidden[1, 2:5].mean(0))
    for sample, column, source in ((0, 0, 0), (0, 3, 5), (1, 0, 0), (1, 2, 4), (1, 3, 5)):
        assert torch.equal(out[sample, column], hidden[sample, source])


def test_apply_averages_half_precision_in_float32() -> None:
    hidden = torch.zeros(2, 6, 1, dtype=torch.float16)
    hidden[1, 2:5, 0] = torch.tensor([60000.0, 60000.0, 3.0])
    out = apply(merging(), hidden)
    assert out.dtype == torch.float16
    assert out[1, 1, 0] == torch.tensor(120003 / 3).half()


def test_apply_without_merging_only_gathers() -> None:
    hidden = torch.randn(2, 6, 3)
    index = torch.tensor([[0, 4], [2, 3]])
    assert torch.equal(apply(Selection(index, (2, 2), (0, 0)), hidden), take(hidden, index))


def test_to_the_same_device_is_the_same_layout() -> None:
    layout = two_images_and_text()
    assert layout.to(layout.image.device) is layout
