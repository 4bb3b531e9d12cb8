"""Rows of attention against the full matrices of the eager backend, masks, and queries shown."""

from __future__ import annotations

import pytest
import torch

from llava.model.language_model.backends import check_backend
from llava.pruning.attention import (
    Projections,
    Watch,
    as_mask,
    attention_rows,
    causal_mask,
    seen_by,
    visible,
)
from llava.pruning.cache import PrunedCache
from llava.pruning.layout import TokenLayout
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
    valid = valid if padded else None
    mask, cache, watch = causal_mask("eager", valid, n, n, hidden), PrunedCache(), Watch()
    _, weights = layer.self_attn(
        layer.input_layernorm(hidden),
        rope,
        attention_mask=mask,
        past_key_values=cache,
        watch=watch,
    )
    seen = visible(valid, count, n, hidden.device) if padded else None
    scaling = layer.self_attn.scaling
    rows = attention_rows(watch.queries[:, :, -count:], cache.held(0), scaling, seen)
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


@pytest.mark.parametrize("padded", [False, True])
def test_a_part_of_the_tokens_sees_what_stands_before_each(padded: bool) -> None:
    valid = torch.tensor([[False, False, True, True, True, True], [True] * 6])
    layout = TokenLayout.text_only(valid if padded else torch.ones(2, 6))
    index = torch.tensor([[0, 3, 5], [1, 2, 5]])
    rows = visible(layout.valid if padded else None, 6, 6, index.device).expand(2, -1, -1, -1)
    expected = torch.stack([rows[i][:, columns] for i, columns in enumerate(index)])
    seen = seen_by(index, layout)
    assert torch.equal(seen, expected)
    assert seen.any(-1).all(), "no row is empty, a filling token's neither"
    like = torch.zeros(2, 3, 8, dtype=torch.half)
    numbers = as_mask("eager", seen, like)
    assert numbers.dtype == torch.half and numbers.isfinite().all()
    assert torch.equal(numbers == 0, seen)
    for backend in ("sdpa", "flash_attention_2"):
        assert torch.equal(as_mask(backend, seen, like), seen)


@torch.no_grad()
def test_only_the_call_that_asks_is_shown_queries() -> None:
    layer = tiny.model(2).model.layers[0]
    hidden, rope = torch.randn(1, 3, 64), (torch.ones(1, 3, 16), torch.zeros(1, 3, 16))
    first, second = Watch(), Watch()
    plain, shown, again = (
        layer(hidden * scale, position_embeddings=rope, attention_mask=None, **asks)
        for scale, asks in ((1, {}), (1, {"watch": first}), (-1, {"watch": second}))
    )
    assert torch.equal(plain, shown) and not torch.equal(plain, again)
    assert torch.equal(first.queries, -second.queries)
    unrotated = layer.self_attn.q_proj(layer.input_layernorm(hidden)).view(1, 3, 4, 16)
    assert torch.equal(first.queries, unrotated.transpose(1, 2))
    assert not any(module._forward_hooks for module in layer.modules())
    assert not any(isinstance(value, Watch) for m in layer.modules() for value in vars(m).values())


@torch.no_grad()
def test_projections_are_those_of_the_layer() -> None:
    """What is rotated here is what the layer itself rotates and caches."""
    model = tiny.model(2, kv_heads=2).model
    layer, hidden = model.layers[1], torch.randn(2, 9, 64)
    rope = model.rotary_emb(hidden, torch.arange(9)[None] * 3)
    cache, watch = PrunedCache(), Watch()
    layer.self_attn.layer_idx = 0
    layer(hidden, position_embeddings=rope, past_key_values=cache, watch=watch)
    ahead = Projections(layer, hidden, rope)
    assert_close(ahead.queries(9), watch.queries, FLOAT32)
    assert_close(ahead.queries(4), watch.queries[:, :, -4:], FLOAT32)
    assert_close(ahead.keys(), cache.layers[0].keys, FLOAT32)
    assert torch.equal(ahead.values(), cache.layers[0].values)


def test_an_attention_whose_mask_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of sdpa, eager, flash_attention_2, got 'fl"):
        check_backend("flex_attention")
