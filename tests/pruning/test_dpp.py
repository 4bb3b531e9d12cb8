"""DPP: the greedy choice of largest volume, and what happens when nothing is left to span."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.nn.functional import normalize

from llava import pruning
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods import dpp
from llava.pruning.methods.divprune import farthest
from llava.pruning.methods.dpp import cosines, first_equal, largest_volume
from llava.pruning.methods.idselection import suppressed
from llava.pruning.methods.vispruner import least_alike

from .common import kept, vicuna


def test_the_choice_by_hand() -> None:
    """Left of (1, 0), (0, 1) and their middle, lengths aside: 1 each. The first is chosen, and of
    the middle 1/2 is left; after the second nothing."""
    points = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    assert largest_volume(cosines(points), 3).tolist() == [0, 2, 1]
    # A quality of 3 for the middle: it is first, 1/2 is left of either other, then nothing.
    quality = torch.tensor([1.0, 3.0, 1.0])
    kernel = quality[:, None] * cosines(points) * quality
    assert largest_volume(kernel, 3).tolist() == [1, 0, 2]


def test_each_step_adds_the_most_volume() -> None:
    """Against determinants, in float64."""
    torch.manual_seed(0)
    points = torch.randn(9, 12, dtype=torch.float64)
    quality = torch.rand(9, dtype=torch.float64)
    kernel = quality[:, None] * cosines(points) * quality
    order = largest_volume(kernel, 6).tolist()
    for step in range(6):
        volumes = {
            i: float(torch.det(kernel[[*order[:step], i]][:, [*order[:step], i]]))
            for i in set(range(9)) - set(order[:step])
        }
        assert order[step] == max(volumes, key=volumes.get)
    assert len(set(order)) == 6


@pytest.mark.parametrize(
    ("points", "order"),
    [
        (torch.eye(4), [0, 1, 2, 3]),
        (torch.ones(4, 4), [0, 1, 2, 3]),
        (torch.eye(2)[[0, 0, 1, 0, 1]], [0, 2, 1, 3, 4]),
        (torch.zeros(3, 2), [0, 1, 2]),
    ],
    ids=["orthogonal", "identical", "twins", "zeros"],
)
def test_ties_go_to_the_lower_index_and_nothing_is_chosen_twice(points, order) -> None:
    for count in range(len(order) + 1):
        assert largest_volume(cosines(points), count).tolist() == order[:count]


def with_equal_rows(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, list[int]]:
    """Points (n, 48), a third of them on the average the same, and the places of these."""
    torch.manual_seed(n)
    points = torch.randn(n, 48, dtype=dtype)
    places = torch.randperm(n)[: n // 3].sort().values
    points[places] = points[places[0]].clone()
    return points, places.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_equal_rows_go_by_their_index_whatever_a_processor_rounds(dtype, monkeypatch) -> None:
    """Products here are off in their last digits, another way for each row."""

    def rounded(values: torch.Tensor, dim: int) -> torch.Tensor:
        unit = normalize(values, dim=dim)
        return unit * (1 + 4 * torch.finfo(unit.dtype).eps * torch.randn_like(unit))

    monkeypatch.setattr(dpp, "normalize", rounded)
    for n in (40, 46, 69, 78, 84, 104):
        points, equal = with_equal_rows(n, dtype)
        cosine = cosines(points)
        assert all(torch.equal(cosine[i], cosine[equal[0]]) for i in equal)
        importance = torch.rand(n)
        importance[equal] = 0.5
        orders = {
            "divprune": farthest(points, n),
            "dpp": largest_volume(cosine, n).tolist(),
            "id-selection": suppressed(importance, points, n, 20.0),
        }
        for method, order in orders.items():
            assert [i for i in order if i in equal] == equal, method
        # Even places of the list are A, and 1 is nearest to its equal ones: the first of them goes.
        a, b, c = points[0], points[0] + 0.1 * points[1], -points[0]
        assert least_alike(torch.stack([a, b, a, c, a, c, points[2], c]), 7).tolist()[:2] == [2, 4]


def test_only_equal_rows_are_equal() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 48)
    near, moved = a.clone(), a.flip(0)
    near[7] *= 1 + torch.finfo(a.dtype).eps
    rows = torch.stack([b, near, a, moved, a, -a, b, moved])
    assert first_equal(rows).tolist() == [0, 1, 2, 3, 2, 5, 0, 3]
    # Other rows whose weighted sums are equal: 5^21 = 45585 x 3^21 + 1957444370.
    bits = torch.tensor([[0, 0, 0], [-1957444370, -45585, 1]], dtype=torch.int32)
    assert first_equal(bits.view(torch.float32)).tolist() == [0, 1]


def test_more_tokens_than_dimensions_stay_numbers_and_are_chosen_once_each() -> None:
    torch.manual_seed(0)
    kernel = cosines(torch.randn(60, 7).repeat(2, 1).bfloat16())
    assert sorted(largest_volume(kernel, 120).tolist()) == list(range(120))
    first = largest_volume(kernel, 7).tolist()
    subsets = [first, *combinations(range(7), 7)]
    assert all(float(torch.det(kernel[list(s)][:, list(s)])) > 0 for s in subsets)


def test_each_image_is_chosen_from_alone_and_counted() -> None:
    runs = [Segment(2), Segment(4, 0, torch.arange(4)), Segment(1), Segment(3, 1, torch.arange(3))]
    tokens = TokenLayout.from_segments([[*runs, Segment(1)]])
    embeds = torch.zeros(1, tokens.n, 2)
    embeds[0, 2:6] = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    embeds[0, 7:10] = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
    run = pruning.build("dpp", target_token_num=4).start(tokens, vicuna(4))
    # 2.3 and 1.7 of 4. Of the first image 0 and, at a right angle, 2; of the second 0 and 2, which
    # is farther from it than 1.
    assert kept(tokens, run.at_entry(tokens, embeds)) == [[0, 2, 4 + 0, 4 + 2]]
    assert run.scoring_flops() == [2 * (16 + 9) * 2]
