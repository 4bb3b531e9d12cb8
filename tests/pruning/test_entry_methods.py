"""No image, random and uniform grid: which tokens they keep of made-up layouts."""

from __future__ import annotations

import argparse
import math
from itertools import pairwise

import pytest
import torch

from llava import pruning
from llava.pruning.arguments import add_pruning_arguments, pruner_from_args
from llava.pruning.entry import find_images
from llava.pruning.images import divide
from llava.pruning.layout import TEXT, Segment, TokenLayout
from llava.pruning.methods.no_image import NoImage
from llava.pruning.methods.random import Random
from llava.pruning.methods.uniform_grid import UniformGrid, centres, lattice

from .common import vicuna

BUDGETED = ["random", "uniform-grid"]


def sample(*visual: int, text: int = 3) -> list[Segment]:
    """A token of text, images of so many tokens with a token of text behind each, `text` more."""
    runs = [Segment(1)]
    for image, n in enumerate(visual):
        runs += [Segment(n, image, torch.arange(n)), Segment(1)]
    return [*runs, Segment(text)]


def blank(layout: TokenLayout) -> torch.Tensor:
    """Embeddings for methods that do not look at them."""
    return torch.zeros(*layout.image.shape, 8)


def kept(pruner: pruning.Pruner, *samples: list[Segment]) -> list[list[int]]:
    """Patches of each sample that enter layer 0; text must be as it was."""
    layout = TokenLayout.from_segments(list(samples))
    selection = pruner.start(layout, vicuna(4)).at_entry(layout, blank(layout))
    after = layout if selection is None else layout.select(selection)
    found = []
    for i in range(layout.batch):
        before, now = (
            [int(p) for p, t, v in zip(x.position[i], x.image[i], x.valid[i]) if v and t == TEXT]
            for x in (layout, after)
        )
        assert now == before
        found.append([p for p in after.patch[i].tolist() if p != TEXT])
        assert len(found[-1]) == after.n_visual[i]
        assert after.lengths[i] == after.n_visual[i] + len(now)
    return found


@pytest.mark.parametrize("method", BUDGETED)
@pytest.mark.parametrize("target", [1, 2, 15, 16, 24, 25])
def test_exactly_the_target_is_kept_in_order(method, target) -> None:
    (patches,) = kept(pruning.build(method, target_token_num=target), sample(25))
    assert len(patches) == target
    assert patches == sorted(set(patches)) and set(patches) <= set(range(25))


@pytest.mark.parametrize("method", BUDGETED)
def test_a_target_at_or_above_the_tokens_keeps_all(method) -> None:
    small, large, none = sample(9), sample(25), sample()
    pruner = pruning.build(method, target_token_num=9)
    assert [len(p) for p in kept(pruner, small, large, none)] == [9, 9, 0]
    layout = TokenLayout.from_segments([small, sample(4, 4)])
    assert pruner.start(layout, vicuna(4)).at_entry(layout, blank(layout)) is None


def test_no_image_keeps_nothing() -> None:
    assert kept(NoImage(), sample(16), sample(9, 4), sample()) == [[], [], []]
    text = TokenLayout.from_segments([sample(), sample()])
    assert NoImage().start(text, vicuna(4)).at_entry(text, blank(text)) is None


def test_no_image_needs_text() -> None:
    bare = TokenLayout.from_segments([sample(4), [Segment(4, 0, torch.arange(4))]])
    with pytest.raises(ValueError, match=r"no-image needs text beside the image, got .* 4 visual"):
        NoImage().start(bare, vicuna(4))


@pytest.mark.parametrize(
    ("total", "sizes", "shares"),
    [
        (10, [16, 16], [5, 5]),
        (7, [16, 16], [4, 3]),  # 3.5 and 3.5: the first image gets the odd one
        (10, [9, 4, 4], [5, 3, 2]),  # 5.29, 2.35, 2.35
        (5, [10, 1], [5, 0]),  # 4.55, 0.45
        (1, [5, 5, 5], [1, 0, 0]),
        (14, [10, 5], [9, 5]),  # 9.33, 4.67
        (15, [10, 5], [10, 5]),
        (99, [10, 5], [10, 5]),
        (3, [], []),
    ],
)
def test_images_share_in_proportion_by_largest_remainder(total, sizes, shares) -> None:
    assert divide(total, sizes) == shares


@pytest.mark.parametrize("method", BUDGETED)
def test_several_images_share_the_target_of_their_sample(method) -> None:
    (patches,) = kept(pruning.build(method, target_token_num=10), sample(16, 4))
    assert [sum(p < 16 for p in patches), sum(p >= 16 for p in patches)] == [8, 2]


@pytest.mark.parametrize("method", BUDGETED)
def test_a_batch_gives_what_its_samples_give_alone(method) -> None:
    samples = [sample(16), sample(), sample(9, 16), sample(12, text=8)]
    pruner = pruning.build(method, target_token_num=6)
    assert kept(pruner, *samples) == [kept(pruner, alone)[0] for alone in samples]


def test_random_depends_on_seed_and_size_alone() -> None:
    def patches(seed: int, n: int = 100) -> list[int]:
        return kept(Random(target_token_num=20, seed=seed), sample(n))[0]

    torch.manual_seed(5)
    first, state = patches(0), torch.get_rng_state()
    torch.manual_seed(6)
    assert patches(0) == first
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were used up"
    assert len({tuple(patches(seed)) for seed in range(20)}) == 20
    # Every fifth token on average: a mean far from the middle would be no fair draw.
    means = [sum(patches(seed)) / 20 for seed in range(50)]
    assert sum(means) / 50 == pytest.approx(49.5, abs=4)
    assert kept(Random(target_token_num=40), sample(36, 36))[0][:20] == [
        p - 36 for p in kept(Random(target_token_num=40), sample(36, 36))[0][20:]
    ]


def test_fewer_random_tokens_are_among_more() -> None:
    few, many = (set(kept(Random(target_token_num=t), sample(64))[0]) for t in (8, 40))
    assert few < many


@pytest.mark.parametrize(
    ("side", "count", "expected"),
    [
        (4, 1, [10]),
        (4, 2, [9, 11]),  # sqrt(2) rounds to one band: row 2
        (4, 3, [6, 13, 15]),  # two bands: one token, then two
        (4, 4, [5, 7, 13, 15]),
        (4, 6, [4, 6, 7, 12, 14, 15]),  # columns at 0.67, 2, 3.33
        (4, 16, list(range(16))),
        (3, 8, [0, 2, 3, 4, 5, 6, 7, 8]),  # columns of the first band at 0.75, 2.25
        (24, 64, [24 * r + c for r in range(1, 24, 3) for c in range(1, 24, 3)]),
        (1, 1, [0]),
        (4, 0, []),
    ],
)
def test_lattice_by_hand(side, count, expected) -> None:
    assert lattice(side, count) == expected


@pytest.mark.parametrize("side", [1, 2, 5, 16, 24])
def test_lattice_is_exact_and_covers_the_grid(side) -> None:
    """In bands and cells of equal size, and nowhere far from a kept patch."""
    for count in range(1, side * side + 1, 7 if side > 16 else 1):
        chosen = lattice(side, count)
        assert len(set(chosen)) == count and chosen == sorted(chosen)
        assert set(chosen) <= set(range(side * side))
        columns: dict[int, list[int]] = {}
        for patch in chosen:
            columns.setdefault(patch // side, []).append(patch % side)
        sizes = [len(row) for row in columns.values()]
        assert max(sizes) - min(sizes) <= 1
        for line in (list(columns), *columns.values()):
            steps = [b - a for a, b in pairwise(line)]
            assert not steps or max(steps) - min(steps) <= 1
        # Half a cell: the rows are at least floor(sqrt(count)), and so are the tokens in each.
        reach = math.ceil(side / (2 * math.isqrt(count)))
        for line in (list(columns), *columns.values()):
            assert all(min(abs(place - at) for at in line) <= reach for place in range(side))


def test_tokens_that_are_no_square_grid_are_taken_at_even_steps() -> None:
    assert kept(UniformGrid(target_token_num=4), sample(12))[0] == [1, 4, 7, 10]
    # Nine patches that the vision tower chose of sixteen are no grid of 3 x 3.
    some = Segment(9, 0, torch.tensor([0, 1, 2, 5, 7, 8, 11, 14, 15]))
    whole = [Segment(1), Segment(9, 0, torch.arange(9)), Segment(1)]
    assert kept(UniformGrid(target_token_num=3), [Segment(1), some, Segment(1)]) == [[1, 7, 14]]
    assert kept(UniformGrid(target_token_num=3), whole) == [lattice(3, 3)]
    assert lattice(3, 3) != centres(9, 3)


def test_the_grid_of_a_later_image_is_seen() -> None:
    layout = TokenLayout.from_segments([sample(9, 16, 12), sample(4)])
    sides = [[image.side for image in images] for images in find_images(layout)]
    assert sides == [[3, 4, None], [2]]
    (patches,) = kept(UniformGrid(target_token_num=5), sample(4, 16))
    assert patches == [3, *(4 + p for p in lattice(4, 4))]


def test_mixed_tokens_are_no_grid() -> None:
    """Sixteen tokens that mix all patches of their view are no 4 x 4, whatever their number."""
    view = Segment(16, 0, torch.arange(16), mixed=True)
    layout = TokenLayout.from_segments([[Segment(1), view, Segment(1)]])
    assert layout.mixed and [image.side for image in find_images(layout)[0]] == [None]
    assert layout.repeat(2).mixed and layout.to(torch.device("cpu")).mixed


@pytest.mark.parametrize("method", BUDGETED)
def test_both_budget_modes_keep_the_same(method) -> None:
    published, strict = (
        pruning.build(method, target_token_num=5, budget_mode=mode)
        for mode in ("published", "strict")
    )
    assert kept(published, sample(16)) == kept(strict, sample(16))


@pytest.mark.parametrize("method", BUDGETED)
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target_token_num", 0, "target_token_num must be a whole number, 1 or more, got 0"),
        ("target_token_num", 6.5, "target_token_num must be a whole number"),
        ("target_token_num", math.nan, "target_token_num must be a finite number"),
        ("target_token_num", math.inf, "target_token_num must be a finite number"),
        ("budget_mode", "loose", "budget_mode must be one of published, strict, got 'loose'"),
        ("positions", "dense", "positions must be one of compact, original, got 'dense'"),
    ],
)
def test_values_that_make_no_sense_are_refused(method, field, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.build(method, **{field: value})


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5])
def test_a_seed_is_a_whole_number(seed) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number"):
        Random(seed=seed)


def parse(*flags: str) -> pruning.Pruner:
    parser = argparse.ArgumentParser()
    add_pruning_arguments(parser)
    return pruner_from_args(parser.parse_args(flags))


def test_flags() -> None:
    assert parse("--method", "random", "--target-token-num", "32", "--set", "seed=1") == Random(
        target_token_num=32, seed=1
    )
    assert parse("--method", "random", "--set", "positions=original").positions == "original"
    grid = parse("--method", "uniform-grid", "--budget-mode", "strict", "--x0", "14.9")
    assert grid == UniformGrid(budget_mode="strict")
    assert parse("--method", "no-image", "--target-token-num", "64") == NoImage()
    with pytest.raises(ValueError, match="seed must be int, got 'x'"):
        parse("--method", "random", "--set", "seed=x")
    with pytest.raises(ValueError, match="unknown setting of method uniform-grid 'seed'"):
        parse("--method", "uniform-grid", "--set", "seed=1")
    with pytest.raises(ValueError, match="method random has no presets"):
        parse("--method", "random", "--preset", "paper")
