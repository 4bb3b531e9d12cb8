"""Keeping the best tokens, and merging the best of the dropped ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava.pruning import selectors
from llava.pruning.layout import TEXT, Segment, TokenLayout
from llava.pruning.selection import Selection, apply, take
from llava.pruning.selectors import keep_top
from tests.closeness import assert_close


def image(length: int, index: int = 0) -> Segment:
    return Segment(length, index, torch.arange(length))


def samples() -> list[list[Segment]]:
    """One image, two images with text between, text alone, one larger image."""
    return [
        [Segment(2), image(12), Segment(3)],
        [Segment(1), image(9), Segment(2), image(14, 1), Segment(2)],
        [Segment(6)],
        [image(30), Segment(4)],
    ]


def scores_for(layout: TokenLayout, seed: int = 0) -> Tensor:
    """Scores that belong to a sample's token wherever padding puts it."""
    rows = []
    for i, length in enumerate(layout.lengths):
        generator = torch.Generator().manual_seed(seed + length)
        own = torch.rand(length, generator=generator)
        rows.append(torch.cat([torch.full((layout.n - length,), 9.0), own]))
        assert layout.valid[i].sum() == length
    return torch.stack(rows)


def features_for(layout: TokenLayout, seed: int = 0, width: int = 5) -> Tensor:
    rows = []
    for length in layout.lengths:
        generator = torch.Generator().manual_seed(100 + seed + length)
        own = torch.randn(length, width, generator=generator)
        rows.append(torch.cat([torch.full((layout.n - length, width), 7.0), own]))
    return torch.stack(rows)


def kept_patches(layout: TokenLayout, selection: Selection, sample: int = 0) -> list[int]:
    return [p for p in layout.select(selection).patch[sample].tolist() if p != TEXT]


def test_the_best_are_kept_in_order_and_text_is_never_dropped() -> None:
    layout = TokenLayout.from_segments([[Segment(2), image(5), Segment(2)]])
    scores = torch.tensor([[0.0, 0.0, 0.3, 0.9, 0.1, 0.5, 0.8, 0.0, -5.0]])
    selection = keep_top(layout, scores, [3])
    assert selection.index.tolist() == [[0, 1, 3, 5, 6, 7, 8]]
    assert (selection.lengths, selection.n_visual) == ((7,), (3,))


def test_high_scores_of_text_do_not_count() -> None:
    layout = TokenLayout.from_segments(
        [[Segment(1), image(3), Segment(1), image(3, 1), Segment(1)]]
    )
    scores = torch.tensor([[9.0, 0.1, 0.2, 0.3, 9.0, 0.6, 0.5, 0.4, 9.0]])
    assert keep_top(layout, scores, [2]).index.tolist() == [[0, 4, 5, 6, 8]]


def test_ties_go_to_the_lower_index() -> None:
    layout = TokenLayout.from_segments([[image(600), Segment(1)]])
    scores = torch.zeros(1, 601)
    scores[0, 450:460] = 1.0
    assert kept_patches(layout, keep_top(layout, scores, [14])) == [0, 1, 2, 3, *range(450, 460)]


def test_negative_scores_rank_among_each_other() -> None:
    layout = TokenLayout.from_segments([[image(4), Segment(2)]])
    scores = torch.tensor([[-3.0, -1.0, -2.0, -4.0, 0.0, 0.0]])
    assert kept_patches(layout, keep_top(layout, scores, [2])) == [1, 2]


def test_all_visual_tokens_may_go() -> None:
    layout = TokenLayout.from_segments([[Segment(1), image(4), Segment(2)]])
    after = layout.select(keep_top(layout, torch.zeros(1, 7), [0]))
    assert after.image.tolist() == [[TEXT] * 3]
    assert (after.lengths, after.n_visual) == ((3,), (0,))


def test_a_ragged_batch_is_padded_on_the_left() -> None:
    layout = TokenLayout.from_segments(samples())
    keep = [10, 3, 0, 30]
    selection = keep_top(layout, scores_for(layout), keep)
    after = layout.select(selection)
    assert after.n_visual == (10, 3, 0, 30)
    assert after.lengths == (15, 8, 6, 34)
    assert after.n == 34
    for i, length in enumerate(after.lengths):
        assert after.valid[i].tolist() == [False] * (34 - length) + [True] * length
        own = after.image[i, 34 - length :]
        assert (own != TEXT).sum().item() == keep[i]
        positions = after.position[i, 34 - length :].tolist()
        assert positions == sorted(set(positions))
    assert after.image[3].tolist() == layout.image[3, layout.n - 34 :].tolist()


def test_a_batch_whose_samples_end_equally_long_has_no_padding() -> None:
    layout = TokenLayout.from_segments([[image(6), Segment(2)], [image(4), Segment(2)]])
    after = layout.select(keep_top(layout, scores_for(layout), [3, 3]))
    assert layout.padded and not after.padded
    assert after.valid.all()


def test_nothing_to_change_is_none() -> None:
    layout = TokenLayout.from_segments(samples())
    assert keep_top(layout, scores_for(layout), list(layout.n_visual)) is None
    assert keep_top(layout, scores_for(layout), [12, 23, 0, 29]) is not None


@pytest.mark.parametrize("keep", [[13, 0, 0, 0], [1, 1, 1, 1]])
def test_more_tokens_than_there_are_is_refused(keep: list[int]) -> None:
    layout = TokenLayout.from_segments(samples())
    with pytest.raises(ValueError, match="cannot keep"):
        keep_top(layout, scores_for(layout), keep)


def test_padding_is_text_and_never_comes_back() -> None:
    layout = TokenLayout.from_segments([[image(8), Segment(2)]] * 2)
    first = layout.select(keep_top(layout, torch.arange(10.0).expand(2, -1), [6, 3]))
    second = first.select(keep_top(first, torch.zeros(2, first.n), [5, 2]))
    for after in (first, second):
        assert (after.image[~after.valid] == TEXT).all()
        assert (after.patch[~after.valid] == TEXT).all()
        assert after.is_visual.sum(1).tolist() == list(after.n_visual)
    # All scores tie, so the first two of patches 5, 6, 7 stay.
    assert second.patch[1, second.valid[1]].tolist() == [5, 6, TEXT, TEXT]


def merged(layout: TokenLayout, keep, pools, clusters, seed: int = 0):
    selection = keep_top(
        layout,
        scores_for(layout, seed),
        keep,
        pools=pools,
        clusters=clusters,
        features=features_for(layout, seed),
    )
    return selection, layout.select(selection), apply(selection, features_for(layout, seed))


def ranked(layout: TokenLayout) -> Tensor:
    """Patches of the first of `samples` by score."""
    start = layout.n - layout.lengths[0] + 2
    return scores_for(layout)[0, start : start + 12].argsort(descending=True)


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("runs", [samples()[:1], samples()], ids=["one", "batch"])
def test_a_pool_of_one_token_moves_it(runs, positions, monkeypatch) -> None:
    """Nothing is averaged, so it moves as it is; and nothing is clustered."""
    monkeypatch.setattr(selectors, "density_peaks", None)
    layout = TokenLayout.from_segments(runs)
    one = [1, 1, 0, 1][: layout.batch]
    keep = [4, 8, 0, 10][: layout.batch]
    selection = keep_top(
        layout, scores_for(layout), keep, pools=one, clusters=one, positions=positions
    )
    assert selection.merge.index is None and selection.merge.cluster is None
    assert selection.then is None, "it need not wait for the layer"
    hidden = features_for(layout).half()
    assert torch.equal(apply(selection, hidden), take(hidden, selection.index))
    order = ranked(layout).tolist()
    expected = [*sorted(order[:4]), order[4]] if positions == "compact" else sorted(order[:5])
    assert kept_patches(layout, selection) == expected


@pytest.mark.parametrize("runs", [samples()[:1], samples()], ids=["one", "batch"])
def test_a_single_cluster_is_a_mean(runs, monkeypatch) -> None:
    """No distances are taken; the highest score is the centre."""
    monkeypatch.setattr(selectors, "density_peaks", None)
    layout = TokenLayout.from_segments(runs)
    keep, pools = [4, 8, 0, 10][: layout.batch], [5, 3, 0, 12][: layout.batch]
    clusters = [1, 1, 0, 1][: layout.batch]
    features = features_for(layout)
    selection = keep_top(
        layout, scores_for(layout), keep, pools=pools, clusters=clusters, features=features
    )
    assert selection.merge.cluster is None
    order = ranked(layout)
    pool = order[4:9] + layout.n - layout.lengths[0] + 2
    after = layout.select(selection)
    column = after.n - layout.tail[0] - 1
    assert after.patch[0, column] == order[4]
    assert_close(apply(selection, features)[0, column], features[0, pool].mean(0))


def test_what_is_merged_behind_a_layer_is_what_features_at_once_give() -> None:
    """Without features the pooled tokens stay; `then` merges them by what the layer returns."""
    layout = TokenLayout.from_segments(samples())
    scores, features = scores_for(layout), features_for(layout)
    counts = {"pools": [5, 12, 0, 15], "clusters": [1, 2, 0, 3]}
    for policy in ("compact", "original"):
        at_once = keep_top(
            layout, scores, [4, 8, 0, 10], **counts, features=features, positions=policy
        )
        first = keep_top(layout, scores, [4, 8, 0, 10], **counts, positions=policy)
        assert first.merge is None and first.n_visual == (9, 20, 0, 25)
        left, states = layout.select(first), apply(first, features)
        second = first.then(left, states)
        expected, after = layout.select(at_once), left.select(second)
        assert (after.lengths, after.n_visual) == (expected.lengths, expected.n_visual)
        for name in ("patch", "image", "position", "valid"):
            here, there = getattr(after, name), getattr(expected, name)
            assert torch.equal(here[after.valid], there[expected.valid]), name
        assert_close(apply(second, states)[after.valid], apply(at_once, features)[expected.valid])


def merged_columns(selection: Selection, layout: TokenLayout, sample: int = 0) -> list[int]:
    """Where the merged tokens of a sample stand afterwards, by their number."""
    merge = selection.merge
    if merge.index is None:
        return list(range(merge.place, merge.place + merge.clusters))
    numbers = merge.index[sample] - layout.n
    by_number = {number: column for column, number in enumerate(numbers.tolist()) if number >= 0}
    return [by_number[number] for number in sorted(by_number)]


def test_the_pool_is_the_best_of_the_dropped() -> None:
    layout = TokenLayout.from_segments(samples()[:1])
    selection, *_ = merged(layout, [4], [5], [2])
    order = scores_for(layout)[0, 2:14].argsort(descending=True) + 2
    assert sorted(selection.merge.source[0].tolist()) == sorted(order[4:9].tolist())
    assert selection.merge.pools == (5,)


def test_a_merged_token_is_the_mean_of_its_members() -> None:
    layout = TokenLayout.from_segments(samples()[:1])
    selection, after, out = merged(layout, [4], [7], [3])
    merge, features = selection.merge, features_for(layout)[0]
    assert after.n_visual == (7,)
    sizes, columns = [], merged_columns(selection, layout)
    for c in range(3):
        members = merge.source[0][merge.cluster[0] == c]
        sizes.append(len(members))
        assert_close(out[0, columns[c]], features[members].mean(0))
    assert min(sizes) >= 1
    assert sum(sizes) == 7
    weights = torch.tensor(sizes, dtype=torch.float32)[:, None]
    mass = (out[0, columns] * weights).sum(0)
    assert_close(mass, features[merge.source[0]].sum(0))


def test_merged_tokens_stand_behind_the_visual_tokens_and_before_the_text() -> None:
    layout = TokenLayout.from_segments(samples()[:1])
    selection, after, _ = merged(layout, [4], [7], [2])
    text, visual = [TEXT], [0]
    assert after.image[0].tolist() == text * 2 + visual * 6 + text * 3
    assert sorted(merged_columns(selection, layout)) == [6, 7]
    kept = after.patch[0, 2:6].tolist()
    assert kept == sorted(kept)
    centres = set(after.patch[0, 6:8].tolist())
    assert centres <= {p - 2 for p in selection.merge.source[0].tolist()}


@pytest.mark.parametrize("seed", range(6))
def test_a_merged_token_follows_the_image_of_its_centre(seed: int) -> None:
    layout = TokenLayout.from_segments([samples()[1]])
    selection, after, _ = merged(layout, [6], [12], [4], seed)
    first, second = (after.image[0] == i for i in (0, 1))
    runs = after.image[0].tolist()
    expected = [TEXT] + [0] * first.sum() + [TEXT] * 2 + [1] * second.sum() + [TEXT] * 2
    assert runs == expected
    columns = merged_columns(selection, layout)
    assert len(columns) == 4
    for column in columns:
        # Patches 0..8 are the first image's, 9..22 the second's.
        assert (after.patch[0, column] >= 9) == (runs[column] == 1)
        behind = [c for c in range(column + 1, after.n) if runs[c] == runs[column]]
        assert set(behind) <= set(columns)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("keep", "pools", "clusters"),
    [
        ([4, 8, 0, 10], [5, 12, 0, 15], [1, 2, 0, 3]),
        ([4, 22, 0, 10], [1, 1, 0, 1], [1, 1, 0, 1]),
        ([12, 5, 0, 29], [0, 11, 0, 1], [0, 2, 0, 1]),
        ([2, 23, 0, 30], [6, 0, 0, 0], [4, 0, 0, 0]),
    ],
)
def test_a_batch_gives_what_its_samples_give_alone(seed: int, keep, pools, clusters) -> None:
    together = TokenLayout.from_segments(samples())
    _, after, out = merged(together, keep, pools, clusters, seed)
    for i, runs in enumerate(samples()):
        alone = TokenLayout.from_segments([runs])
        length = alone.lengths[0]
        expected, features = alone, features_for(alone, seed)
        if keep[i] < alone.n_visual[0]:
            _, expected, features = merged(alone, keep[i : i + 1], [pools[i]], [clusters[i]], seed)
            length = expected.lengths[0]
        assert after.lengths[i] == length
        assert after.n_visual[i] == expected.n_visual[0]
        assert_close(out[i, after.n - length :], features[0])
        for name in ("image", "patch", "position", "valid"):
            own = getattr(after, name)[i, after.n - length :]
            assert torch.equal(own, getattr(expected, name)[0]), name
