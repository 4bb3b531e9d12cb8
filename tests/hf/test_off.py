"""With nothing to prune a stock model computes, bit for bit, what it computes without hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from llava import hf

from . import zoo

KINDS = [
    (torch.float64, "sdpa"),
    (torch.float32, "sdpa"),
    (torch.float32, "eager"),
    (torch.bfloat16, "sdpa"),
]


def generated(model: Any, batch: dict[str, Any], **options: Any) -> tuple[torch.Tensor, ...]:
    output = model.generate(
        **batch, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **options
    )
    return output.sequences, torch.stack(output.logits)


@pytest.mark.parametrize(("dtype", "attn"), KINDS, ids=str)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_nothing_to_prune_is_bitwise_stock(name: str, dtype: torch.dtype, attn: str) -> None:
    model = zoo.model(name, dtype, attn)
    samples = ["iq", "iiqt"] if name == "paligemma" else ["tiq", "titiqt"]
    batch = zoo.inputs(name, samples, dtype)
    # Stock Gemma 3 decodes from layers that hold a window; ours hold everything.
    options = (lambda: {"past_key_values": DynamicCache()}) if name == "gemma3" else dict
    expected = generated(model, batch, **options())
    with torch.no_grad():
        whole = model(**batch).logits
    with hf.pruning(model, "none") as pruned:
        assert all(map(torch.equal, generated(model, batch), expected))
        tokens = zoo.ZOO[name].tokens
        assert [s.leaving for s in pruned.trace.samples] == [
            [tokens] * zoo.LAYERS,
            [2 * tokens] * zoo.LAYERS,
        ]
        with torch.no_grad():
            valid = batch["attention_mask"].bool()
            assert torch.equal(model(**batch).logits[valid], whole[valid])
    assert all(map(torch.equal, generated(model, batch, **options()), expected))
