"""DART: what stays of made-up keys and features, and the published counts."""

from __future__ import annotations

import pytest
import torch

from llava.pruning.base import Observation
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.dart import DART

from .common import FixedAhead, entering, figures, kept, layout, vicuna


@pytest.mark.parametrize(
    ("target", "row"),
    [
        (192, (219.8, 44.3, 115.2, 196)),
        (128, (159.8, 35.1, 83.8, 132)),
        (64, (99.8, 25.9, 52.3, 68)),
    ],
)
def test_published_comparison(target: int, row: tuple[float, ...]) -> None:
    assert figures(DART(target_token_num=target)) == pytest.approx(row, abs=0.0501)


def test_counts() -> None:
    assert entering(DART(target_token_num=100))[2] == 4 + 8 * 12
    assert entering(DART(target_token_num=7))[2] == 4
    assert entering(DART(target_token_num=575)) == [576] * 2 + [4 + 8 * 71] * 30
    assert entering(DART(target_token_num=576)) == [576] * 32
    strict = [entering(DART(target_token_num=t, budget_mode="strict"))[2] for t in (192, 128, 64)]
    assert strict == [166, 98, 30]
    assert entering(DART(target_token_num=20, image_pivots=2, text_pivots=3))[2] == 2 + 5 * 4


def see(tokens: TokenLayout, norms: list[list[float]], features: list[list[list[float]]]):
    """Keys of two heads with these L1 norms in all, and normed outputs."""
    half = torch.tensor(norms)[:, None, :, None] / 2
    keys = torch.cat([half, -half], 1)
    normed = torch.tensor(features)
    return Observation(0, tokens, normed, keys=keys, ahead=FixedAhead(normed=normed))


def plane(*degrees: float) -> list[list[float]]:
    """Features of different lengths at these angles: only the angle may matter."""
    angles = torch.tensor(degrees).deg2rad()
    lengths = torch.arange(1, len(degrees) + 1)[:, None]
    return (torch.stack([angles.cos(), angles.sin()], 1) * lengths).tolist()


def run_of(tokens: TokenLayout, keep_strict: int, **settings):
    """A run on two layers that keeps `keep_strict` of every sample; entering: (n + keep) / 2."""
    target = (max(tokens.n_visual) + keep_strict) // 2
    settings = {"pivot_order": "norm", **settings}
    pruner = DART(target_token_num=target, depth=1, budget_mode="strict", **settings)
    return pruner.start(tokens, vicuna(2))


def test_each_pivot_takes_what_is_least_like_it() -> None:
    # One token of text, 7 visual tokens, 2 of text; one pivot of each kind.
    tokens = layout(7, text=2)
    run = run_of(tokens, 5, image_pivots=1, text_pivots=1)
    norms = [[99.0, 1, 2, 9, 3, 1, 1, 1, 5, 4]]
    # Pivots: visual 2 at 0 degrees, then the text token at 90 degrees (norm 5).
    features = [plane(0, 180, 10, 0, 60, 170, 270, 20, 90, 0)]
    # Visual 2 takes 0 (180) and 4 (170). The text pivot takes 5 (270), which is farthest from 90,
    # then 1 (10 degrees, 80 away) and not 6 (20 degrees, 70 away).
    assert kept(tokens, run.after_layer(see(tokens, norms, features))) == [[0, 1, 2, 4, 5]]
    assert run.positions == "original"


def test_pivots_choose_in_the_order_of_their_set() -> None:
    """The same: pivots in columns 3 and 8. In a set of up to four numbers these have the places 3
    and 8 mod 8 = 0, so the text pivot comes first. It takes 5 and 0 (90 degrees away; 1 and 4 are
    80), and of the rest visual 2 takes 4 (170) and 3 (60)."""
    tokens = layout(7, text=2)
    run = run_of(tokens, 5, image_pivots=1, text_pivots=1, pivot_order="set")
    norms = [[99.0, 1, 2, 9, 3, 1, 1, 1, 5, 4]]
    features = [plane(0, 180, 10, 0, 60, 170, 270, 20, 90, 0)]
    assert kept(tokens, run.after_layer(see(tokens, norms, features))) == [[0, 2, 3, 4, 5]]
    assert DART().pivot_order == "set"
    # What counts are places in the prompt: padding on the left moves no order.
    both = layout(9, 7, text=2)
    norms = [[99.0, *range(1, 12)], [0.0, 0.0, *norms[0]]]
    features = [plane(*[0.0] * 12), [[0.0, 1.0]] * 2 + features[0]]
    run = DART(target_token_num=4, depth=1, image_pivots=1, text_pivots=1).start(both, vicuna(2))
    assert kept(both, run.after_layer(see(both, norms, features)))[1] == [0, 2, 3, 4, 5]


def test_an_odd_token_goes_to_the_first_pivot() -> None:
    tokens = layout(8, text=2)
    norms = [[99.0, 1, 2, 9, 3, 1, 1, 1, 1, 5, 4]]
    features = [plane(0, 180, 10, 0, 60, 172, 190, 20, 20, 90, 0)]

    def left(keep: int) -> list[list[int]]:
        run = run_of(tokens, keep, image_pivots=1, text_pivots=1)
        return kept(tokens, run.after_layer(see(tokens, norms, features)))

    # Visual 2 at 0 degrees takes two of three, 0 (180) and 4 (172); the text pivot at 90 takes 5.
    assert left(4) == [[0, 2, 4, 5]]
    assert left(2) == [[0, 2]]


def test_fewer_text_tokens_than_pivots() -> None:
    """One text token behind the image and two pivots wanted: the same number of tokens stays."""
    tokens = layout(7, text=1)
    run = run_of(tokens, 5, image_pivots=1, text_pivots=2)
    norms = [[99.0, 1, 2, 9, 3, 1, 1, 1, 5]]
    features = [plane(0, 180, 10, 0, 60, 170, 270, 20, 90)]
    assert kept(tokens, run.after_layer(see(tokens, norms, features))) == [[0, 1, 2, 4, 5]]
    assert run.scoring_flops() == [2 * 2 * 7 * 4096 + 8 * 4096]


def test_text_before_the_image_is_no_pivot_and_ties_go_to_the_lower_index() -> None:
    tokens = layout(4, text=1)
    run = run_of(tokens, 2, image_pivots=1, text_pivots=1)
    norms = [[99.0, 3, 3, 3, 3, 1]]
    # All norms tie: visual 0 at 0 degrees is the pivot. It takes 2 at 180 degrees.
    features = [plane(90, 0, 45, 180, 170, 0)]
    assert kept(tokens, run.after_layer(see(tokens, norms, features))) == [[0, 2]]


def test_a_batch_gives_what_its_samples_give_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes, text = (30, 0, 12, 25, 9), 3
    tokens = layout(*sizes, text=text)
    norms = torch.rand(5, tokens.n, generator=generator)
    features = torch.randn(5, tokens.n, 8, generator=generator)
    pruner = DART(target_token_num=11, depth=1)
    together = kept(
        tokens,
        pruner.start(tokens, vicuna(3)).after_layer(see(tokens, norms.tolist(), features.tolist())),
    )
    # 4 + 8 * 1; of 12 all stay, and 9 are no more than the target.
    assert [len(patches) for patches in together] == [12, 0, 12, 12, 9]
    for i in (0, 3):
        alone = layout(sizes[i], text=text)
        own = see(
            alone, norms[i : i + 1, -alone.n :].tolist(), features[i : i + 1, -alone.n :].tolist()
        )
        assert kept(alone, pruner.start(alone, vicuna(3)).after_layer(own)) == [together[i]]


def test_samples_with_unlike_pivots_choose_as_they_do_alone() -> None:
    """Text shorter than its pivots, an image that keeps fewer tokens than it has pivots, and one
    that keeps all: columns that a sample does not have are never chosen."""
    generator = torch.Generator().manual_seed(5)
    runs = [(30, 1), (6, 3), (24, 7), (3, 2), (0, 2)]
    tokens = TokenLayout.from_segments(
        [
            [Segment(1), *([Segment(n, 0, torch.arange(n))] if n else []), Segment(text)]
            for n, text in runs
        ]
    )
    norms = torch.rand(5, tokens.n, generator=generator)
    features = torch.randn(5, tokens.n, 8, generator=generator)

    def left(tokens: TokenLayout, rows: slice) -> list[list[int]]:
        own = see(tokens, norms[rows, -tokens.n :].tolist(), features[rows, -tokens.n :].tolist())
        run = DART(target_fraction=0.6, depth=1, budget_mode="strict").start(tokens, vicuna(2))
        return kept(tokens, run.after_layer(own))

    together = left(tokens, slice(5))
    assert [len(patches) for patches in together] == [6, 2, 4, 1, 0]
    for i, (n, text) in enumerate(runs[:4]):
        alone = layout(n, text=text)
        assert left(alone, slice(i, i + 1)) == [together[i]]


def test_flops_of_the_comparison() -> None:
    """4 + 4 pivots: 8 N d products, and a sum over the keys of visual tokens and text behind."""
    tokens = layout(576, text=35)
    run = DART(target_token_num=64, depth=1).start(tokens, vicuna())
    generator = torch.Generator().manual_seed(0)
    norms = torch.rand(1, tokens.n, generator=generator).tolist()
    features = torch.randn(1, tokens.n, 4, generator=generator).tolist()
    (patches,) = kept(tokens, run.after_layer(see(tokens, norms, features)))
    assert len(patches) == 68
    assert run.scoring_flops() == [2 * 8 * 576 * 4096 + (576 + 35) * 4096]
