"""Tokens, FLOPs and KV bytes of traces that are written down by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.pruning.cost import DecoderShape, measure, prefill_flops
from llava.pruning.trace import SampleTrace

from .common import released, vicuna

TEXT = 70


def trace(entering: list[int], last: int | None = None, text: int = TEXT, **counts) -> SampleTrace:
    """A sample that loses tokens as listed; `last` tokens leave the last layer."""
    last = entering[-1] if last is None else last
    zeros = [0] * len(entering)
    return SampleTrace(
        n_visual=entering[0],
        n_text=text,
        entering=entering,
        leaving=[*entering[1:], last],
        rows=counts.get("rows", zeros),
        pools=counts.get("pools", zeros),
    )


def steps(*runs: tuple[int, int]) -> list[int]:
    """(tokens, layers) runs as a list of one number a layer."""
    return [tokens for tokens, layers in runs for _ in range(layers)]


# LLaVA-1.5-7B, 70 text tokens, at nominal 192, 128 and 64 visual tokens of 576.
TABLE = {
    "before the LLM": (
        [steps((t, 32)) for t in (192, 128, 64)],
        (192, 128, 64),
        (39.9, 30.1, 20.3),
        (100.7, 67.1, 33.6),
    ),
    "pdrop": (
        [
            steps((576, 2), (322, 6), (180, 8), (101, 16)),
            steps((576, 2), (242, 6), (102, 8), (42, 16)),
            steps((576, 2), (111, 6), (21, 8), (4, 16)),
        ],
        (191.9, 127.9, 64.1),
        (40.0, 30.2, 20.5),
        (100.6, 67.0, 33.6),
    ),
    "fastv": (
        [steps((576, 2), (keep, 30)) for keep in (166, 98, 30)],
        (191.6, 127.9, 64.1),
        (39.9, 30.2, 20.4),
        (100.5, 67.0, 33.6),
    ),
    "fastv as copied": (
        [steps((576, 2), (keep, 30)) for keep in (180, 114, 48)],
        (204.8, 142.9, 81.0),
        (42.0, 32.5, 23.0),
        (107.3, 74.9, 42.5),
    ),
    "fastv keep = T": (
        [steps((576, 2), (keep, 30)) for keep in (192, 128, 64)],
        (216, 156, 96),
        (43.7, 34.5, 25.3),
        (113.2, 81.8, 50.3),
    ),
    "autoprune k = 0.2": (
        [list(released(t, 0.2).entering) for t in (192, 128, 64)],
        (209.5, 145.6, 81.8),
        (42.8, 32.9, 23.1),
        (109.8, 76.3, 42.9),
    ),
    "autoprune k = 0": (
        [list(released(t, 0.0).entering) for t in (192, 128, 64)],
        (203.9, 142.6, 80.3),
        (41.8, 32.4, 22.9),
        (106.9, 74.7, 42.1),
    ),
}


@pytest.mark.parametrize("method", TABLE)
def test_published_comparison(method: str) -> None:
    shape = vicuna()
    for entering, average, share, megabytes in zip(*TABLE[method]):
        cost = measure(trace(entering), shape)
        # Not the trace's own: tokens that were dropped before layer 0 count in the dense model.
        dense = prefill_flops([576] * 32, TEXT, shape)
        visual = cost.kv_bytes - shape.kv_bytes(TEXT * 32)
        assert cost.tokens_entering == pytest.approx(average, abs=0.0501)
        assert 100 * cost.prefill_flops / dense == pytest.approx(share, abs=0.0501)
        assert visual / 1e6 == pytest.approx(megabytes, abs=0.0501)


@pytest.mark.parametrize(
    ("k", "last"), [(0.2, {192: 20, 128: 14, 64: 8}), (0.0, {192: 182, 128: 122, 64: 61})]
)
def test_tokens_in_the_last_layer(k: float, last: dict[int, int]) -> None:
    assert {tokens: released(tokens, k).entering[-1] for tokens in last} == last


def test_dense_model_of_the_comparison() -> None:
    cost = measure(trace([576] * 32), vicuna())
    assert cost.prefill_flops == cost.dense_prefill_flops == cost.computed_flops
    assert cost.prefill_flops / 2 == pytest.approx(4.29e12, rel=2e-3)
    assert (cost.dense_kv_bytes - vicuna().kv_bytes(TEXT * 32)) / 1e6 == pytest.approx(
        302, abs=0.05
    )
    assert cost.kv_bytes == cost.dense_kv_bytes


def test_closed_form_of_a_layer() -> None:
    shape, n, d, m = vicuna(), 646, 4096, 11008
    assert shape.layer_flops(n, n) == 2 * (4 * n * d * d + 2 * n * n * d + 3 * n * d * m)


def test_closed_form_with_grouped_keys_and_wide_heads() -> None:
    shape = DecoderShape(2, 10, heads=4, kv_heads=2, head_dim=3, intermediate=7, kv_dtype_bytes=4)
    n, keys = 5, 9
    queries_and_output = 2 * n * 10 * (4 * 3)
    keys_and_values = 2 * n * 10 * (2 * 3)
    attention = 2 * n * keys * (4 * 3)
    mlp = 3 * n * 10 * 7
    expected = 2 * (queries_and_output + keys_and_values + attention + mlp)
    assert shape.layer_flops(n, keys) == expected
    assert shape.kv_bytes(11) == 11 * 2 * (2 * 3) * 4


def test_every_figure_of_a_small_trace() -> None:
    shape = DecoderShape(3, 8, heads=2, kv_heads=2, head_dim=4, intermediate=12)
    sample = trace([10, 6, 3], last=2, text=4, rows=[4, 0, 2], pools=[0, 3, 1])
    cost = measure(sample, shape, new_tokens=3)
    assert cost.tokens_entering == pytest.approx(19 / 3)
    assert cost.tokens_leaving == pytest.approx(11 / 3)
    assert cost.prefill_flops == sum(shape.layer_flops(n, n) for n in (14, 10, 7))
    assert cost.dense_prefill_flops == 3 * shape.layer_flops(14, 14)
    # Each measured row: its query projection (8 x 8) and a score of width 8 for each key.
    assert cost.scoring_flops == 2 * (4 * (8 * 8 + 8 * 14) + 2 * (8 * 8 + 8 * 7))
    # Pairwise distances and the means of the pooled tokens.
    assert cost.merging_flops == 2 * 8 * ((9 + 3) + (1 + 1))
    assert cost.kv_bytes == 2 * 8 * 2 * (19 + 12)
    assert cost.dense_kv_bytes == 2 * 8 * 2 * 42
    # As landed in every layer, but the measured rows have their queries from the layer itself.
    scores = 2 * (4 * 8 * 14 + 2 * 8 * 7)
    assert cost.computed_flops == cost.prefill_flops + scores + cost.merging_flops
    assert cost.to_dict()["kv_bytes"] == cost.kv_bytes


#: d_q 8, d_kv 4, width 10, MLP 6 wide. Multiply-accumulates of a token: queries, keys, values and
#: output 2 x 10 x (8 + 4) = 240, MLP 3 x 10 x 6 = 180; of a query and a key: 2 x 8 = 16.
GROUPED = DecoderShape(2, 10, heads=4, kv_heads=2, head_dim=2, intermediate=6)


def test_a_layer_decided_first_by_hand() -> None:
    """14 tokens enter the first layer and 5 run through it; 5 enter the second and one runs."""
    sample = trace([10, 1], text=4, rows=[3, 0], pools=[2, 0])
    sample = replace(sample, ran=[5, 1], projected=[14, 5], scoring=1000)
    first = 14 * 2 * 10 * 4 + 5 * (240 + 180) + 5 * 14 * 16
    queries_and_scores = 3 * (10 * 8 + 14 * 8)
    second = 5 * 2 * 10 * 4 + 1 * (240 + 180) + 1 * 5 * 16
    merging = 2 * 10 * (4 + 2)
    cost = measure(sample, GROUPED)
    assert cost.computed_flops == 2 * (first + queries_and_scores + second) + 1000 + merging
    # The published counting does not ask what ran.
    assert replace(cost, computed_flops=0) == replace(
        measure(replace(sample, ran=[], projected=[]), GROUPED), computed_flops=0
    )
    assert cost.prefill_flops == 2 * (14 * 420 + 14 * 14 * 16 + 5 * 420 + 5 * 5 * 16)


def test_rows_of_the_next_layer_by_hand() -> None:
    """Their keys and queries are projected for them alone: of 14 tokens and of 3."""
    sample = replace(trace([10, 1], text=4), ahead=[3, 0])
    more = 2 * (14 * 10 * 4 + 3 * 10 * 8 + 3 * 14 * 8)
    cost = measure(sample, GROUPED)
    assert cost.computed_flops == cost.prefill_flops + more
    assert cost.scoring_flops == more


def test_deciding_first_saves_what_the_leaving_tokens_would_have_run() -> None:
    """To run for all that entered, with nothing projected before, is the old order."""
    sample = trace([10, 4], text=4, rows=[4, 0])
    old = measure(sample, GROUPED)
    assert measure(replace(sample, ran=[14, 8], projected=[0, 0]), GROUPED) == old
    new = measure(replace(sample, ran=[8, 8], projected=[14, 0]), GROUPED)
    # 6 tokens less go through the layer; the keys and values of 14 and 4 queries are made besides.
    saved = 6 * (240 + 180) + 6 * 14 * 16 - 14 * 2 * 10 * 4 - 4 * 10 * 8
    assert old.computed_flops - new.computed_flops == 2 * saved


@pytest.mark.parametrize("field", ["ran", "projected", "ahead"])
def test_a_list_that_lacks_a_layer_is_refused(field: str) -> None:
    with pytest.raises(ValueError):
        measure(replace(trace([10, 4]), **{field: [1]}), GROUPED)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 9), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_decode_counts_every_step(counts: list[int], text: int, new_tokens: int) -> None:
    entering = sorted(counts, reverse=True)
    shape = DecoderShape(len(entering), 8, heads=4, kv_heads=2, head_dim=2, intermediate=12)
    cost = measure(trace(entering, text=text), shape, new_tokens=new_tokens)
    pruned = dense = 0
    # The first new token comes out of the prefill and the last is never fed back.
    for step in range(1, new_tokens):
        for held in entering:
            pruned += shape.layer_flops(1, held + text + step)
            dense += shape.layer_flops(1, entering[0] + text + step)
    assert cost.decode_flops == pruned
    assert cost.dense_decode_flops == dense


def test_shape_of_a_config() -> None:
    fields = {
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    plain = DecoderShape.from_config(SimpleNamespace(**fields))
    assert plain == DecoderShape(6, 64, 4, 4, 16, 96, kv_dtype_bytes=4)
    grouped = SimpleNamespace(**fields, num_key_value_heads=2, head_dim=20, dtype="bfloat16")
    assert DecoderShape.from_config(grouped) == DecoderShape(6, 64, 4, 2, 20, 96, 2)
    assert DecoderShape.from_config(grouped, kv_dtype_bytes=1).kv_dtype_bytes == 1


def test_rotary_base_of_a_config() -> None:
    """transformers 5 has it in `rope_parameters`, older configs have it themselves."""
    fields = {
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    own = SimpleNamespace(**fields, rope_theta=5e5)
    nested = SimpleNamespace(**fields, rope_parameters={"rope_theta": 1e6}, rope_theta=5e5)
    scaled = SimpleNamespace(**fields, rope_parameters={"rope_type": "linear", "factor": 2.0})
    found = [DecoderShape.from_config(c).rope_theta for c in (own, nested, scaled)]
    assert found == [5e5, 1e6, 10000.0]
