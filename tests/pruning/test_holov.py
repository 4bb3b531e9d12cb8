"""HoloV: scores of runs, shares and picks worked out by hand."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.holov import HoloV, allocate, run_lengths, run_score

from .common import kept, vicuna


def test_runs_are_as_long_as_can_be_and_never_empty() -> None:
    assert run_lengths(576, 16) == [36] * 16
    assert run_lengths(10, 4) == [3, 3, 2, 2]
    assert run_lengths(3, 16) == [1, 1, 1]


def test_the_score_of_a_run() -> None:
    """Cosines, diagonal 0: rows 0 0 1, 0 0 0, 1 0 0. Means 1/2, 0, 1/2. Sums of squares: of row 0
    1/4 + 1/4 + 1/4, of row 1 0, of row 2 as row 0; over 2, 3/8, 0, 3/8, and 1/4 on average.

    The attention is 20 on average after scaling, and so is the scaled variance.
    """
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    attention = torch.tensor([0.01, 0.02, 0.03])
    expected = 20 + 0.5 * 20 * 0.25 / (0.25 + 1e-6)
    assert float(run_score(attention, features, 0.5)) == pytest.approx(expected, rel=1e-6)
    assert float(run_score(attention, features, 0.0)) == pytest.approx(20, rel=1e-6)
    assert float(run_score(attention[:1], features[:1], 0.5)) == pytest.approx(10, rel=1e-6)
    # Alike tokens have the diagonal's 0 among ones: row sums 2, means 1, variances 1/2.
    alike = float(run_score(attention, features[[0, 0, 0]], 0.5))
    assert alike == pytest.approx(20 + 10 * 0.5 / (0.5 + 1e-6), rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "sizes", "total", "counts"),
    [
        ([1.0, 1, 1, 1], [9] * 4, 8, [2, 2, 2, 2]),
        ([1.0, 3, 2, 2], [9] * 4, 9, [1, 4, 2, 2]),  # 1.1, 3.4, 2.25, 2.25: one is left over
        ([1.0, 3, 2, 2], [9] * 4, 11, [1, 5, 3, 2]),  # 1.4, 4.1, 2.75, 2.75: two are
        ([1.0, 7, 0, 0], [4] * 4, 8, [2, 4, 1, 1]),  # 1, 7: three more than the second has
        ([0.0, 0, 0], [2, 2, 2], 5, [2, 2, 1]),
        ([5.0, 1], [3, 3], 6, [3, 3]),
        ([5.0, 1], [3, 3], 0, [0, 0]),
    ],
)
def test_how_the_tokens_are_shared_out(scores, sizes, total, counts) -> None:
    assert allocate(scores, sizes, total) == counts


def image(attention: list[float], index: int = 0) -> Segment:
    return Segment(len(attention), index, torch.arange(len(attention)), torch.tensor(attention))


def test_attention_picks_inside_a_run_in_spatial_order() -> None:
    """Two runs of four; with the variance left out they share as 10 to 2."""
    tokens = TokenLayout.from_segments(
        [
            [Segment(1), image([0.1, 0.4, 0.2, 0.3, 0.1, 0.0, 0.1, 0.0]), Segment(2)],
            [Segment(1), image([0.3, 0.1, 0.2]), Segment(2)],
        ]
    )
    torch.manual_seed(0)
    embeds = torch.randn(2, tokens.n, 4)
    run = HoloV(target_token_num=4, crops=2, variance_weight=0.0).start(tokens, vicuna(4))
    # 3.3 and 0.7 of 4, the one left over to the first run, which then has no more.
    assert kept(tokens, run.at_entry(tokens, embeds)) == [[0, 1, 2, 3], [0, 1, 2]]
    assert run.scoring_flops() == [2 * (16 + 16) * 4, 0]
    run = HoloV(target_token_num=3, crops=2, variance_weight=0.0).start(tokens, vicuna(4))
    assert kept(tokens, run.at_entry(tokens, embeds))[0] == [1, 2, 3]
    # 5/12 of 6 is 2 of the first run: of 0.1 0.4 0.2 0.3 the highest stay, in order.
    run = HoloV(target_token_num=5, crops=2, variance_weight=0.0).start(tokens, vicuna(4))
    assert kept(tokens, run.at_entry(tokens, embeds))[0] == [0, 1, 2, 3, 4]


def test_the_variance_moves_shares() -> None:
    """Equal attention; the features of the first run are alike, of the second they differ."""
    tokens = TokenLayout.from_segments([[Segment(1), image([0.1] * 8), Segment(1)]])
    embeds = torch.zeros(1, tokens.n, 4)
    embeds[0, 1:5] = torch.ones(4)
    embeds[0, 5:9] = torch.eye(4)
    counts = {}
    for weight in (0.0, 1e3):
        run = HoloV(target_token_num=5, crops=2, variance_weight=weight).start(tokens, vicuna(4))
        (patches,) = kept(tokens, run.at_entry(tokens, embeds))
        counts[weight] = sum(patch < 4 for patch in patches)
    # Orthogonal features have no variance at all, those alike have the 0 of the diagonal.
    assert counts == {0.0: 3, 1e3: 4}


def test_settings_that_make_no_sense_are_refused() -> None:
    for field, value in (("crops", 0), ("variance_weight", -0.1)):
        with pytest.raises(ValueError, match=f"^{field} must be .*, got "):
            pruning.build("holov", **{field: value})
