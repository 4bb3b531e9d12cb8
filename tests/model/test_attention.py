"""Rows of attention against the full matrices of the eager backend."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama import modeling_llama

from llava.model.language_model import attention
from llava.model.language_model.attention import attention_rows, causal_mask, kept_queries
from llava.pruning.cache import PrunedCache
from tests import tiny
from tests.closeness import FLOAT32, assert_close


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_rows_equal_the_eager_matrix(kv_heads: int, padded: bool) -> None:
    model = tiny.model(2, attn="eager", kv_heads=kv_heads).model
    layer, n, count = model.layers[0], 12, 5
    hidden = torch.randn(2, n, 64, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, n, dtype=torch.bool)
    valid[1, :4] = not padded
    rope = model.rotary_emb(hidden, (valid.long().cumsum(1) - 1).clamp(min=0))
    mask = causal_mask("eager", valid if padded else None, n, n, hidden)
    cache = PrunedCache()
    with kept_queries(layer) as queries:
        _, weights = layer.self_attn(
            layer.input_layernorm(hidden), rope, attention_mask=mask, past_key_values=cache
        )
    rows = attention_rows(
        layer.self_attn, queries[0], rope, cache.layers[0].keys, count, valid if padded else None
    )
    assert rows.shape == (2, 4, count, n) and rows.dtype == torch.float32
    assert_close(rows, weights[:, :, -count:], FLOAT32)


@pytest.mark.parametrize("queries", [1, 3, 6])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_masks_of_all_backends_allow_the_same(queries: int, padded: bool) -> None:
    keys = 6
    like = torch.zeros(2, queries, 8)
    valid = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]).bool() if padded else None
    expected = torch.ones(2, 1, keys, keys).tril().bool()
    if padded:
        expected &= valid[:, None, None, :]
    expected = expected[:, :, -queries:] | torch.eye(keys).bool()[-queries:]
    eager = causal_mask("eager", valid, queries, keys, like)
    assert torch.equal((eager == 0).expand_as(expected), expected)
    sdpa = causal_mask("sdpa", valid, queries, keys, like)
    if sdpa is None:
        assert not padded and queries in (1, keys)
    else:
        assert torch.equal(sdpa.expand_as(expected), expected)
    flash = causal_mask("flash_attention_2", valid, queries, keys, like)
    assert flash is None if not padded else torch.equal(flash.bool(), valid)


def test_queries_are_kept_only_for_the_call_that_asked() -> None:
    layer = tiny.model(2).model.layers[0]
    x = torch.randn(1, 3, 64)
    with kept_queries(layer) as first:
        layer.self_attn.q_proj(x)
    layer.self_attn.q_proj(x)
    with kept_queries(layer) as second:
        layer.self_attn.q_proj(x)
        layer.self_attn.q_proj(x)
    assert (len(first), len(second)) == (1, 2)
    assert len(layer.self_attn.q_proj._forward_hooks) == 1
    assert attention._QUERIES.get() is None


def test_the_rotation_is_that_of_the_layer() -> None:
    """`attention_rows` rotates queries itself; transformers' function must not have changed."""
    q = torch.randn(1, 2, 3, 8)
    cos, sin = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    expected, _ = modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)
    mine = q * cos[:, None] + modeling_llama.rotate_half(q) * sin[:, None]
    assert torch.equal(mine, expected)
