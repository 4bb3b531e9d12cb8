"""The indicators and text relevance against analytic cases, values by hand and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llava.pruning.indicators import (
    cosine_similarity,
    mean_attention,
    mutual_information,
    text_relevance,
)
from tests.closeness import assert_close


def attention(seed: int, batch: int, heads: int, rows: int, n: int) -> Tensor:
    """Random softmaxed rows (batch, heads, rows, n)."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(batch, heads, rows, n, generator=generator)).softmax(-1)


def everything(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Masks under which every row and every column counts."""
    batch, _, r, n = rows.shape
    return torch.ones(batch, r, dtype=torch.bool), torch.ones(batch, n, dtype=torch.bool)


def released_formula(block: list[list[float]], eps: float = 1e-6) -> float:
    """One head as in the reference: p_x = 1/N_t, p_xy = p_x B, p_y its column sums, log2."""
    p_x = 1 / len(block)
    total = 0.0
    for row in block:
        for j, value in enumerate(row):
            p_y = sum(p_x * other[j] for other in block)
            p_xy = p_x * value
            total += p_xy * math.log2(max(p_xy / (p_x * p_y + eps), eps))
    return total


def paper_formula(block: list[list[float]]) -> float:
    """One head by equations 3 and 4, rows made distributions, in nats."""
    n_t = len(block)
    p = [[value / sum(row) / n_t for value in row] for row in block]
    total = 0.0
    for row in p:
        for j, joint in enumerate(row):
            if joint > 0:
                total += joint * math.log(joint / (sum(other[j] for other in p) / n_t))
    return total


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_identical_rows_tell_nothing(scale: float) -> None:
    rows = attention(0, 1, 3, 1, 20).expand(1, 3, 7, 20) * scale
    value = mutual_information(rows, *everything(rows), normalise=True)
    assert_close(value, torch.zeros(1, 3))


@pytest.mark.parametrize("n_text", [2, 5, 16])
def test_one_hot_rows_on_distinct_columns(n_text: int) -> None:
    rows = torch.zeros(1, 1, n_text, 20)
    rows[0, 0, torch.arange(n_text), torch.arange(n_text) + 1] = 1.0
    masks = everything(rows)
    for base in (2.0, math.e, 10.0):
        value = mutual_information(rows, *masks, normalise=True, base=base).item()
        assert value == pytest.approx(math.log(n_text, base), rel=1e-5)


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.8])
def test_rows_that_are_slices_sum_to_their_mass(mass: float) -> None:
    rows = attention(1, 1, 4, 9, 30)
    masks = everything(rows)
    whole, part = mutual_information(rows, *masks), mutual_information(rows * mass, *masks)
    assert_close(part, mass * whole)
    renormalised = mutual_information(rows * mass, *masks, normalise=True)
    assert_close(renormalised, whole)


@pytest.mark.parametrize("mass", [0.1, 0.3, 1.0])
@pytest.mark.parametrize(("n_text", "n"), [(5, 12), (40, 30)])
def test_released_formula(mass: float, n_text: int, n: int) -> None:
    rows = attention(2, 2, 3, n_text, n) * mass
    value = mutual_information(rows, *everything(rows), eps=1e-6)
    expected = [[released_formula(head.tolist()) for head in sample] for sample in rows]
    assert_close(value, torch.tensor(expected))


def test_epsilon_turns_the_released_value_negative_on_many_columns() -> None:
    rows = torch.full((1, 1, 50, 2880), 0.3 / 2880)
    value = mutual_information(rows, *everything(rows), eps=1e-6).item()
    ratio = (0.3 / 2880 / 50) / (0.3 / 2880 / 50 + 1e-6)
    assert value == pytest.approx(0.3 * math.log2(ratio), abs=1e-4)
    assert value < -0.1


def test_paper_formula() -> None:
    rows = attention(3, 2, 3, 6, 15)
    rows[:, :, :, 4:6] = 0.0
    value = mutual_information(rows, *everything(rows), normalise=True, base=math.e)
    expected = [[paper_formula(head.tolist()) for head in sample] for sample in rows]
    assert_close(value, torch.tensor(expected))


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("normalise", [False, True])
def test_rows_of_zeros_tell_nothing(eps: float, normalise: bool) -> None:
    rows = torch.zeros(1, 2, 4, 8)
    value = mutual_information(rows, *everything(rows), eps=eps, normalise=normalise)
    assert torch.equal(value, torch.zeros(1, 2))


@given(st.integers(0, 1000), st.integers(0, 3), st.integers(0, 4), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_masked_rows_and_columns_change_nothing(
    seed: int, more_rows: int, more_columns: int, normalise: bool, eps: bool
) -> None:
    r, n = 5, 9
    rows = attention(seed, 1, 2, r, n)
    options = {"normalise": normalise, "eps": 1e-6 if eps else 0.0}
    expected = mutual_information(rows, *everything(rows), **options)
    wide = attention(seed + 1, 1, 2, r + more_rows, n + more_columns)
    wide[:, :, more_rows:, more_columns:] = rows
    row_mask = torch.arange(r + more_rows)[None] >= more_rows
    visual = torch.arange(n + more_columns)[None] >= more_columns
    actual = mutual_information(wide, row_mask, visual, **options)
    assert_close(actual, expected)
    relevance = text_relevance(wide, row_mask)[:, more_columns:]
    assert_close(relevance, text_relevance(rows, everything(rows)[0]))


def test_samples_of_a_batch_do_not_mix() -> None:
    rows = attention(4, 3, 2, 6, 10)
    row_mask = torch.arange(6)[None] >= torch.tensor([[0], [2], [5]])
    visual = torch.arange(10)[None] < torch.tensor([[10], [4], [7]])
    before = rows.clone()
    together = mutual_information(rows, row_mask, visual, eps=1e-6)
    assert torch.equal(rows, before)
    for i in range(3):
        block = rows[i][:, row_mask[i]][:, :, visual[i]]
        expected = [released_formula(head.tolist()) for head in block]
        assert_close(together[i], torch.tensor(expected))


def test_text_relevance_is_the_mean_over_heads_and_valid_rows() -> None:
    rows = attention(5, 2, 3, 4, 6)
    row_mask = torch.tensor([[True, True, True, True], [False, False, True, True]])
    value = text_relevance(rows, row_mask)
    for i, first in enumerate((0, 2)):
        for j in range(6):
            seen = [rows[i, h, r, j].item() for h in range(3) for r in range(first, 4)]
            assert value[i, j].item() == pytest.approx(sum(seen) / len(seen), rel=1e-5)


def test_text_relevance_without_a_valid_row_is_zero() -> None:
    rows = attention(6, 1, 2, 3, 5)
    assert torch.equal(text_relevance(rows, torch.zeros(1, 3, dtype=torch.bool)), torch.zeros(1, 5))


def test_mean_attention_by_hand() -> None:
    heads = [
        [[0.1, 0.2, 0.4, 0.3], [0.25, 0.25, 0.25, 0.25]],
        [[0.0, 1.0, 0.0, 0.0], [0.7, 0.0, 0.1, 0.2]],
    ]
    rows = torch.tensor([heads, heads])
    row_mask = torch.tensor([[True, True], [False, True]])
    visual = torch.tensor([[False, True, True, False]] * 2)
    # Masses on the image: 0.6 and 0.5 in the first head, 1 and 0.1 in the second.
    expected = torch.tensor([(0.6 + 0.5 + 1.0 + 0.1) / 4, (0.5 + 0.1) / 2])
    assert_close(mean_attention(rows, row_mask, visual), expected)


def test_mean_attention_does_not_depend_on_the_number_of_tokens() -> None:
    """Each visual token split into two of half its weight: the same bond, the same value."""
    rows = attention(7, 1, 3, 5, 12)
    _, visual = everything(rows)
    row_mask = torch.ones(1, 5, dtype=torch.bool)
    split = (0.4 * rows).repeat_interleave(2, -1) / 2
    both = torch.ones(1, 24, dtype=torch.bool)
    once = mean_attention(0.4 * rows, row_mask, visual)
    assert_close(once, torch.tensor([0.4]))
    assert_close(mean_attention(split, row_mask, both), once)


def test_mean_attention_at_its_ends() -> None:
    rows = attention(8, 1, 2, 4, 6)
    row_mask, every = everything(rows)
    assert mean_attention(rows, row_mask, every).item() == pytest.approx(1.0)
    assert mean_attention(rows, row_mask, ~every).item() == 0.0
    assert mean_attention(rows, ~row_mask, every).item() == 0.0


def test_cosine_similarity_by_hand() -> None:
    visual_states = [[1.0, 0.0], [0.0, 2.0]]
    text = [[3.0, 0.0], [0.0, -1.0], [1.0, 1.0]]
    hidden = torch.tensor([[[9.0, -9.0], *visual_states, *text]] * 2)
    visual = torch.tensor([[False, True, True, False, False, False]] * 2)
    row_mask = torch.tensor([[True, True, True], [False, True, True]])
    # Cosines: (1, 0), (0, -1), and the diagonal's root of 1/2 with both.
    root = math.sqrt(0.5)
    expected = torch.tensor([(1 - 1 + 2 * root) / 6, (-1 + 2 * root) / 4])
    assert_close(cosine_similarity(hidden, row_mask, visual), expected)
    lengths = torch.tensor([2.0, 5.0, 0.1, 7.0, 3.0, 100.0])[:, None]
    assert_close(cosine_similarity(hidden * lengths, row_mask, visual), expected)


def test_cosine_similarity_at_its_ends() -> None:
    same = torch.tensor([0.3, -2.0, 5.0]).expand(1, 5, 3).clone()
    visual = torch.tensor([[True, True, False, False, False]])
    row_mask = torch.ones(1, 3, dtype=torch.bool)
    assert cosine_similarity(same, row_mask, visual).item() == pytest.approx(1.0)
    same[:, 2:] *= -4
    assert cosine_similarity(same, row_mask, visual).item() == pytest.approx(-1.0)
    assert cosine_similarity(same, ~row_mask, visual).item() == 0.0
    same[:, :2] = 0.0
    assert cosine_similarity(same, row_mask, visual).item() == 0.0


def test_cosine_similarity_of_half_precision_is_taken_in_float32() -> None:
    """The squares of these states do not fit float16."""
    hidden = torch.tensor([[[6e4, 6e4], [6e4, 0.0], [6e4, 6e4]]], dtype=torch.float16)
    visual = torch.tensor([[True, True, False]])
    value = cosine_similarity(hidden, torch.ones(1, 1, dtype=torch.bool), visual)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-5)


def test_other_indicators_do_not_mix_the_samples_of_a_batch() -> None:
    rows = attention(9, 3, 2, 6, 10)
    hidden = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(9))
    row_mask = torch.arange(6)[None] >= torch.tensor([[0], [2], [5]])
    visual = torch.arange(10)[None] < torch.tensor([[4], [3], [2]])
    together = mean_attention(rows, row_mask, visual), cosine_similarity(hidden, row_mask, visual)
    for i in range(3):
        mass = rows[i][:, row_mask[i]][:, :, visual[i]].sum(-1).mean()
        assert_close(together[0][i], mass)
        text, image = hidden[i, -6:][row_mask[i]], hidden[i][visual[i]]
        pairs = torch.cosine_similarity(text[:, None], image[None], dim=-1).mean()
        assert_close(together[1][i], pairs)
