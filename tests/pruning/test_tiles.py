"""Budgets and choices for tiled pictures and several images, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llava import pruning
from llava.pruning.images import share_out
from llava.pruning.layout import NEWLINE, Segment, TokenLayout
from llava.pruning.methods.autoprune.preselection import normalised_in_tiles, novel_first
from llava.pruning.methods.hired import HiRED, tiles_of_patches
from llava.pruning.selectors import keep_top
from llava.pruning.vision import Probe

from .common import kept
from .tower_features import features


def tiled(*tiles: list[int], cls=None) -> TokenLayout:
    """A sample of one token of text, an image for each list of tiles, and two of text."""
    images = []
    for i, own in enumerate(tiles):
        n = len(own)
        scores = torch.zeros(n) if cls is None else torch.tensor(cls[i])
        images.append(Segment(n, i, torch.arange(n), scores, tile=torch.tensor(own)))
    return TokenLayout.from_segments([[Segment(1), *images, Segment(2)]])


ROWS = [0, 0, 1, 1, NEWLINE, 2, 2, NEWLINE]


class TestNewlines:
    def test_they_rank_below_every_patch_whatever_their_score(self):
        layout = tiled(ROWS)
        scores = torch.tensor([[0.0, 1, 2, 3, 4, 99, 6, -5, 99, 0, 0]])
        assert kept(layout, keep_top(layout, scores, [4])) == [[1, 2, 3, 5]]
        assert kept(layout, keep_top(layout, scores, [6])) == [[0, 1, 2, 3, 5, 6]]
        # The first of them fill up what is left.
        assert kept(layout, keep_top(layout, scores, [7])) == [[0, 1, 2, 3, 4, 5, 6]]

    def test_they_rank_by_their_scores_where_they_are_candidates(self):
        layout = tiled(ROWS)
        scores = torch.tensor([[0.0, 1, 2, 3, 4, 99, 6, -5, 99, 0, 0]])
        assert kept(layout, keep_top(layout, scores, [3], newlines="candidates")) == [[4, 5, 7]]
        assert layout.candidates("candidates").sum() == 8 and layout.candidates("last").sum() == 6
        # The best of the others, patches 2 and 3, are merged, also when the layer runs before.
        wish = {"pools": [2], "clusters": [1], "newlines": "candidates"}
        selection = keep_top(layout, scores, [3], features=torch.zeros(1, 11, 2), **wish)
        assert selection.merge.source.tolist() == [[4, 3]]
        later = keep_top(layout, scores, [3], positions="original", **wish)
        left = layout.select(later)
        assert kept(left, later.then(left, torch.zeros(1, left.n, 2))) == [[3, 4, 5, 7]]

    def test_the_layout_tells_them_from_patches(self):
        layout = tiled(ROWS)
        assert layout.is_newline[0].nonzero()[:, 0].tolist() == [5, 8]
        assert layout.is_patch.sum() == 6 and layout.is_visual.sum() == 8
        plain = TokenLayout.from_segments([[Segment(3, 0, torch.arange(3)), Segment(1)]])
        assert plain.is_newline is None and plain.is_patch.sum() == 3


class TestPerImage:
    def test_each_image_keeps_its_own_best(self):
        layout = tiled([0] * 4, [0] * 4)
        # The first image scores higher throughout.
        scores = torch.tensor([[0.0, 9, 8, 7, 6, 1, 2, 3, 4, 0, 0]])
        assert kept(layout, keep_top(layout, scores, [4])) == [[0, 1, 2, 3]]
        assert kept(layout, keep_top(layout, scores, [4], targets=[[2, 2]])) == [[0, 1, 6, 7]]
        assert kept(layout, keep_top(layout, scores, [4], targets=[[3, 1]])) == [[0, 1, 2, 7]]

    def test_what_is_merged_is_the_best_of_the_rest(self):
        layout = tiled([0] * 4, [0] * 4)
        scores = torch.tensor([[0.0, 9, 8, 7, 6, 1, 2, 3, 4, 0, 0]])
        selection = keep_top(
            layout, scores, [2], pools=[2], clusters=[1],
            features=torch.zeros(1, 11, 2), targets=[[1, 1]],
        )  # fmt: skip
        # Patches 0 and 7 stay; 1 and 2, the best of the others, become one behind their image.
        assert kept(layout, selection) == [[0, 1, 7]]
        assert selection.merge.source.tolist() == [[2, 3]]

    @pytest.mark.parametrize(
        ("total", "weights", "caps", "parts"),
        [
            (6, [1, 1], [9, 9], [3, 3]),
            (6, [2, 1], [9, 9], [4, 2]),
            (6, [1, 1], [2, 9], [2, 4]),
            (9, [4, 4, 1], [2, 9, 9], [2, 6, 1]),
            (7, [0, 0], [9, 2], [5, 2]),
            (99, [1, 5], [3, 4], [3, 4]),
            (0, [1, 5], [3, 4], [0, 0]),
            (3, [1], [0], [0]),
        ],
    )
    def test_shares(self, total, weights, caps, parts):
        assert share_out(total, weights, caps) == parts

    def test_budgets_become_numbers(self):
        fastv = pruning.build("fastv", target_token_num=20)
        assert fastv.resolved([68, 26]) is fastv
        each = replace(fastv, budget_per="image")
        assert each.resolved([68, 26]).target_token_num == 40
        assert each.resolved([68, 10]).target_token_num == 30
        share = replace(fastv, target_fraction=0.25)
        assert share.resolved([68, 26]).target_token_num == 24
        assert share.resolved([1]).target_token_num == 1
        both = replace(share, budget_per="image")
        # 17 of 68, and 6.5, to the even number, of 26.
        assert both.image_targets([68, 26]) == [17, 6]
        assert both.resolved([68, 26]).target_token_num == 23

    @pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
    def test_a_share_beyond_all(self, share):
        for method in ("autoprune", "fastv", "topv", "zipvl", "fastervlm", "random"):
            with pytest.raises(
                ValueError, match=r"target_fraction must be a (fraction in|finite number)"
            ):
                pruning.build(method, target_fraction=share)

    @pytest.mark.parametrize("more", [{"target_fraction": 0.5}, {"budget_per": "image"}])
    def test_a_budget_of_the_prompt_in_flops_goes_with_neither(self, more):
        with pytest.raises(ValueError, match="budgets of a whole prompt"):
            pruning.build("autoprune", target_flops=0.5, **more)


def test_scores_normalised_in_tiles():
    """1 + 3 in tile 0, 2 in tile 1 of the first image, 5 + 5 in tile 0 of the second."""
    layout = tiled([0, 0, 1, NEWLINE], [0, 0], cls=[[1.0, 3, 2, 7], [5.0, 5]])
    found = normalised_in_tiles(layout)[0]
    assert found.tolist() == [0, 0.25, 0.75, 1, 0, 0.5, 0.5, 0, 0]


def test_a_newline_is_never_new():
    """The newline is like nothing else; the second patch, like the first, stays before it."""
    layout = tiled([0, 0, NEWLINE], cls=[[0.5, 0.4, 0.9]])
    embeds = torch.zeros(1, layout.n, 2)
    embeds[0, layout.is_patch[0]] = torch.tensor([1.0, 0.0])
    embeds[0, layout.is_newline[0]] = torch.tensor([-1.0, 0.0])
    scores = novel_first(layout, layout.cls, embeds, [3])
    selection = keep_top(layout, scores, [2])
    assert layout.select(selection).is_patch.sum() == 2


class TestHiRED:
    def seen(self, views: int, first: list[float], grids):
        """Views of 16 patches with even attention, but layer 0 of the overview looks at `first`."""
        made = features(*[[[1.0] * 17]] * views)
        keys = torch.tensor([[[[1.0, *first]]]] + [[[[1.0] * 17]]] * (views - 1)).log()
        early = Probe(torch.ones(views, 1, 1), keys.transpose(2, 3))
        return replace(made, probes={**made.probes, 0: early}, grids=grids)

    def counts(self, made, groups=((5,),), **settings) -> list[int]:
        whole = {"regions": "tiles", "shares": "whole", "border": "kept"}
        return [len(view.patch) for view in HiRED(**{**whole, **settings}).reduce(made, groups)]

    def test_which_tile_a_patch_of_the_overview_is_in(self):
        quadrants = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
        assert tiles_of_patches(16, (2, 2), "tiles").tolist() == quadrants
        bands = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
        assert tiles_of_patches(16, (2, 2), "bands").tolist() == bands
        # Two tiles side by side are the left and the right half.
        assert tiles_of_patches(16, (1, 2), "tiles").tolist() == [0, 0, 1, 1] * 4

    def test_tiles_share_what_the_overview_leaves(self):
        """Layer 0 looks at patches 0 to 7, the upper half: four in each of the tiles 0 and 1."""
        made = self.seen(5, [9.0] * 8 + [1.0] * 8, ((2, 2),))
        # 20: half to the overview, and 5 to each of the two.
        assert self.counts(made, target_token_num=20) == [10, 5, 5, 0, 0]
        # In bands the first two rows are tiles 0 and 1 as well, one each.
        assert self.counts(made, target_token_num=20, regions="bands") == [10, 5, 5, 0, 0]
        # alpha 0.75: 15; the best 4 of layer 0 are patches 0 to 3, two in each tile.
        assert self.counts(made, target_token_num=20, alpha=0.75) == [15, 3, 2, 0, 0]

    def test_bands_differ_where_the_picture_is_one_sided(self):
        made = self.seen(5, [9.0, 9, 1, 1] * 4, ((2, 2),))
        assert self.counts(made, target_token_num=20) == [10, 5, 0, 5, 0]
        assert self.counts(made, target_token_num=20, regions="bands") == [10, 3, 3, 2, 2]

    def test_what_a_tile_cannot_take_goes_to_the_others(self):
        made = self.seen(5, [9.0] * 8 + [1.0] * 8, ((2, 2),))
        # 70 of 80: 16 to the overview (35 is more than it has), 54 to tiles of 16 each.
        assert self.counts(made, target_token_num=70) == [16, 16, 16, 11, 11]
        assert HiRED(target_token_num=80).reduce(made, ((5,),)) is None

    def test_truncated_shares_lose_what_is_left_over(self):
        made = self.seen(5, [9.0, 9, 1, 1] * 4, ((2, 2),))
        truncated = {"regions": "bands", "shares": "truncated"}
        # Half of 20 to the overview; the tiles' 2.5 each are 2.
        assert self.counts(made, target_token_num=20, **truncated) == [10, 2, 2, 2, 2]
        # 35 of 70 to the overview, which has 16; 54 by four are 13.5.
        assert self.counts(made, target_token_num=70, **truncated) == [16, 13, 13, 13, 13]
        made = self.seen(5, [9.0] * 8 + [1.0] * 8, ((2, 2),))
        # Two tiles would get 27 each.
        assert self.counts(made, target_token_num=70, **truncated) == [16, 16, 16, 0, 0]
        # No patch of the overview is counted with alpha 1, so what it cannot take is shared evenly.
        assert self.counts(made, target_token_num=30, alpha=1.0, **truncated) == [16, 3, 3, 3, 3]

    def test_pictures_divide_the_budget_by_their_views(self):
        made = self.seen(8, [9.0] * 8 + [1.0] * 8, ((2, 2), (1, 2)))
        # 32 over 5 and 3 views are 20 and 12; the second looks everywhere alike: patches 0 to 7.
        found = self.counts(made, ((5, 3),), target_token_num=32)
        assert found == [10, 5, 5, 0, 0, 6, 3, 3]
        found = self.counts(made, ((5, 3),), target_token_num=12, budget_per="image")
        assert found == [6, 3, 3, 0, 0, 6, 3, 3]

    @pytest.mark.parametrize("alpha", [-0.1, 1.1])
    def test_alpha_is_a_share(self, alpha):
        with pytest.raises(ValueError, match="alpha must be from 0 to 1"):
            HiRED(alpha=alpha)
