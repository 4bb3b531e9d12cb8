"""Attention rows of every family that they are computed for, against its eager backend's matrix;
those of vision-language models are in `tests.hf.test_rows`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from llava.model.language_model.attention import watch_attention
from llava.pruning.attention import (
    ROW_LAYERS,
    LayersAhead,
    Projections,
    Watch,
    attention_rows,
    causal_mask,
    check_rows,
    has_rows,
    visible,
)
from llava.pruning.cache import PrunedCache
from llava.pruning.layout import TokenLayout
from tests.closeness import assert_close
from tests.hf import zoo

BATCH, N, COUNT, HEADS = 2, 12, 5, 4
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 40,
    "pad_token_id": 0,
}
#: What the families have beside the sizes: what a default would leave without effect.
EXTRA = {
    "granite": {"attention_multiplier": 0.4},
    "mixtral": {"num_local_experts": 2},
    "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
}


def backbone(family: str, **extra) -> nn.Module:
    """A random model of that family in float64, no parameter of which is 0 or 1."""
    config = AutoConfig.for_model(family, **SIZES, **EXTRA.get(family, {}), **extra)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModel.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3, 0.6)
    watch_attention(model.layers)
    return model


@pytest.mark.usefixtures("wide_softmax")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", sorted(ROW_LAYERS.keys() - zoo.ZOO.keys()))
@torch.no_grad()
def test_rows_equal_the_eager_matrix(family: str, padded: bool) -> None:
    model = backbone(family)
    hidden = torch.randn(BATCH, N, 32, dtype=torch.double)
    valid = torch.ones(BATCH, N, dtype=torch.bool)
    valid[1, :4] = not padded
    layout = TokenLayout.text_only(valid)
    rope = model.rotary_emb(hidden, layout.position)
    valid = valid if padded else None
    mask, cache, watch = causal_mask("eager", valid, N, N, hidden), PrunedCache(), Watch()

    def matrix(layer: nn.Module, **options) -> Tensor:
        normed = layer.input_layernorm(hidden)
        return layer.self_attn(normed, rope, attention_mask=mask, **options)[1][:, :, -COUNT:]

    first, second = model.layers
    expected = matrix(first, past_key_values=cache, watch=watch)
    seen = visible(valid, COUNT, N, hidden.device) if padded else None
    scaling = first.self_attn.scaling
    rows = attention_rows(watch.queries[:, :, -COUNT:], cache.held(0), scaling, seen)
    assert rows.shape == (BATCH, HEADS, COUNT, N) and rows.dtype == torch.double
    torch.testing.assert_close(rows, expected, atol=1e-9, rtol=0)
    # The same before the layer has run, from its weights alone.
    before = Projections(first, hidden, rope)
    assert_close(before.queries(COUNT), watch.queries[:, :, -COUNT:])
    assert_close(before.keys(), cache.held(0))
    assert_close(before.values(), cache.layers[0].values)
    ahead = LayersAhead(model, 0, hidden, layout, rope).rows(COUNT)
    torch.testing.assert_close(ahead, matrix(second), atol=1e-9, rtol=0)
    # The rows say something: they are neither even nor those of the other layer.
    assert rows.amax(-1).max() > 2 / N and (rows - ahead).abs().max() > 0.01


@pytest.mark.parametrize(
    ("family", "extra", "name"),
    [
        ("gemma2", {}, "Gemma2Attention"),  # capped logits
        ("phi3", {}, "Phi3Attention"),  # one projection
        ("olmo2", {}, "Olmo2Attention"),  # a norm over all heads
        ("cohere", {}, "CohereAttention"),  # another rotation
        ("smollm3", {}, "SmolLM3Attention"),  # layers without a rotation
        ("gpt_oss", {"num_local_experts": 2}, "GptOssAttention"),  # sinks
        ("stablelm", {}, "StableLmAttention"),  # a rotation of a part
    ],
)
def test_another_family_is_refused_by_name(family: str, extra: dict, name: str) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(family, **SIZES, **extra))
    layer, layout = model.layers[0], TokenLayout.text_only(torch.ones(1, 3))
    assert not has_rows(layer.self_attn, 3)
    with pytest.raises(ValueError, match=name):
        check_rows(layer.self_attn, 3)
    x = torch.zeros(1, 3, 32)
    with pytest.raises(ValueError, match=name):
        Projections(layer, x, (x, x))
    with pytest.raises(ValueError, match=name):
        LayersAhead(model, -1, x, layout, (x, x)).rows(2)


def test_an_attention_of_the_same_name_is_refused() -> None:
    class LlamaAttention(nn.Module):
        pass

    with pytest.raises(ValueError, match=r"test_backbones\.LlamaAttention"):
        check_rows(LlamaAttention(), 3)


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("mistral", {"sliding_window": N - 1}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": N - 1, "max_window_layers": 0}),
    ],
)
def test_a_window_that_hides_tokens_is_refused(family: str, extra: dict) -> None:
    attention = backbone(family, **extra).layers[0].self_attn
    check_rows(attention, N - 1)
    assert has_rows(attention, N - 1) and not has_rows(attention, N)
    with pytest.raises(ValueError, match=r"over 12 tokens.* sees 11 \(sliding_window\)"):
        check_rows(attention, N)
