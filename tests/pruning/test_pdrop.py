"""PyramidDrop: lambda solved for T, explicit ratios, and the score of the next layer's last row."""

from __future__ import annotations

import pytest
import torch

from llava.pruning.base import Observation
from llava.pruning.methods.pdrop import PDrop

from .common import FixedAhead, entering, figures, kept, layout, vicuna

STAGES = [(192, (322, 180, 101)), (128, (242, 102, 42)), (64, (111, 21, 4))]


def keeps(n: int = 576, layers: int = 32, **settings) -> tuple[int, ...]:
    return tuple(cut.keep for cut in PDrop(**settings).cuts(n, vicuna(layers)))


@pytest.mark.parametrize(("target", "counts"), STAGES)
def test_published_counts(target: int, counts: tuple[int, ...]) -> None:
    assert keeps(target_token_num=target) == counts
    first, second, third = counts
    expected = [576] * 2 + [first] * 6 + [second] * 8 + [third] * 16
    assert entering(PDrop(target_token_num=target)) == expected


@pytest.mark.parametrize(
    ("target", "row"),
    [
        (192, (191.9, 40.0, 100.6, 101)),
        (128, (127.9, 30.2, 67.0, 42)),
        (64, (64.1, 20.5, 33.6, 4)),
    ],
)
def test_published_comparison(target: int, row: tuple[float, ...]) -> None:
    assert figures(PDrop(target_token_num=target)) == pytest.approx(row, abs=0.0501)


def test_the_original_settings() -> None:
    original = PDrop(stages=(8, 16, 24), ratios=(0.5, 0.25, 0.125))
    assert entering(original) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    average, share, _, last = figures(original)
    assert (average, last) == (270, 72)
    assert share == pytest.approx(52, abs=0.5)


def test_original_stages_at_192() -> None:
    """lambda 0.254; 8 (576 + 146 + 37 + 9) = 32 * 192."""
    assert keeps(target_token_num=192, stages=(8, 16, 24)) == (146, 37, 9)


def test_strict_spends_what_rounding_left() -> None:
    # 322/180/101 are 6140 of 6144: a token in the stage of 6 layers is over by 2 instead of 4.
    assert keeps(target_token_num=192, budget_mode="strict") == (323, 180, 101)
    assert keeps(target_token_num=128, budget_mode="strict") == (243, 102, 42)
    # 111/21/4 are 2050 of 2048; 110/21/4 would be 2044.
    assert keeps(target_token_num=64, budget_mode="strict") == (111, 21, 4)


def test_at_least_one_token_stays_and_a_large_target_keeps_all() -> None:
    # 32 * 38 = 1216 = 1152 + 64: lambda^2 and lambda^3 are below one token.
    assert keeps(target_token_num=38)[1:] == (1, 1)
    assert keeps(ratios=(0.5, 0.01, 0.01), n=20) == (10, 1, 1)
    assert keeps(target_token_num=576) == keeps(target_token_num=600) == ()


def test_the_next_layers_last_row_decides() -> None:
    tokens = layout(4, 3, text=2)
    run = PDrop(ratios=(0.5,), stages=(2,)).start(tokens, vicuna(4))
    assert [run.rows(layer, tokens) for layer in range(4)] == [0] * 4
    assert run.positions == "compact"
    rows = torch.rand(2, 2, 3, 7)
    rows[0, :, -1] = torch.tensor([[9, 0.4, 0.1, 0.0, 0.5, 9, 9], [9, 0.1, 0.1, 0.6, 0.3, 9, 9]])
    rows[1, :, -1] = torch.tensor([9, 9, 0.2, 0.3, 0.1, 9, 9])
    seen = Observation(1, tokens, torch.zeros(2, 7, 2), ahead=FixedAhead(rows=rows))
    # Means of the heads 0.25, 0.1, 0.3, 0.4; the second sample has 3 tokens, of which 1 stays.
    assert kept(tokens, run.after_layer(seen)) == [[2, 3], [1]]
    assert run.after_layer(Observation(0, tokens, torch.zeros(2, 7, 2))) is None


def test_samples_that_keep_all_are_not_scored() -> None:
    tokens = layout(4, 0)
    run = PDrop(target_token_num=4).start(tokens, vicuna())
    for layer in range(32):
        assert run.after_layer(Observation(layer, tokens, torch.zeros(2, 9, 2))) is None
