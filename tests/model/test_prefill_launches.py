"""What a prefill asks of a device: operators, and copies between it and the host.

These are counts and not times. At batch 1 a fast GPU spends a prefill on them. 32 layers of width
64; 576 visual tokens between 35 and 60 tokens of text, in a batch with three more each.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaModel

from llava import pruning
from llava.analysis.launches import Counts, count
from llava.model import LlavaConfig, LlavaLlamaModel
from llava.pruning.cache import PrunedCache
from llava.pruning.layout import Segment, TokenLayout

LAYERS, WIDTH, VISUAL = 32, 64, 576


@pytest.fixture(scope="module")
def model() -> LlavaLlamaModel:
    config = LlavaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=8192,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return LlavaLlamaModel(config).eval()


def prompts(batch: int) -> tuple[TokenLayout, torch.Tensor]:
    torch.manual_seed(batch)
    patches, cls = torch.arange(VISUAL), torch.rand(batch, VISUAL) / VISUAL
    layout = TokenLayout.from_segments(
        [
            [Segment(35), Segment(VISUAL, 0, patches, cls[i]), Segment(60 + 3 * i)]
            for i in range(batch)
        ]
    )
    return layout, torch.randn(batch, layout.n, WIDTH)


#: Settings, and at most so many operators and copies at batch 1 and at 8.
LIMITS = [
    ({"method": "autoprune"}, (1900, 3), (2400, 4)),
    ({"method": "autoprune", "preset": "paper"}, (1750, 3), (2100, 4)),
    ({"method": "autoprune", "positions": "original", "recycle_ratio": 0.0}, (1800, 3), None),
    ({"method": "autoprune", "prune_every": 4}, (1500, 3), None),
    ({"method": "autoprune", "preset": "balanced"}, (1500, 0), (1900, 0)),
    ({"method": "zipvl"}, (2000, 40), (2400, 45)),
    ({"method": "sparsevlm"}, (1550, 3), None),
    ({"method": "pdrop"}, (1400, 3), None),
    ({"method": "dart"}, (1380, 3), None),
    ({"method": "fastv"}, (1330, 3), None),
]


@pytest.mark.parametrize("batch", [1, 8])
@torch.inference_mode()
def test_an_unpruned_prefill_asks_for_no_more_than_transformers(model, batch) -> None:
    layout, embeds = prompts(batch)
    config = LlavaConfig(**{**model.config.to_dict(), "num_hidden_layers": 0})
    stock = LlamaModel(config).eval()
    stock.layers, stock.norm, stock.config.num_hidden_layers = model.layers, model.norm, LAYERS
    mask = None if batch == 1 else layout.valid.long()

    def own() -> None:
        model(inputs_embeds=embeds, past_key_values=PrunedCache(None, layout))

    def theirs() -> None:
        stock(inputs_embeds=embeds, attention_mask=mask, use_cache=True)

    own()
    theirs()
    ours, expected = count(own), count(theirs)
    assert expected.operators > 1200 and ours.operators <= expected.operators
    assert ours.waits <= max(expected.waits, 1)


def prefill(model: LlavaLlamaModel, pruner: pruning.Pruner, batch: int) -> Callable[[], object]:
    """A prefill of prompts; it looks at what was pruned."""
    layout, embeds = prompts(batch)

    def run() -> None:
        cache = PrunedCache(pruner, layout)
        model(inputs_embeds=embeds, past_key_values=cache)
        for counts in cache.trace.samples:
            assert 40 < sum(counts.leaving) / LAYERS < 100

    return run


@pytest.mark.parametrize(("settings", "alone", "together"), LIMITS, ids=str)
@torch.inference_mode()
def test_a_pruned_prefill_asks_for_little(model, settings, alone, together) -> None:
    pruner = pruning.build(**settings, target_token_num=64)
    for batch, limits in ((1, alone), (8, together)):
        if limits is None:
            continue
        run = prefill(model, pruner, batch)
        run()
        counts = count(run)
        assert counts.operators <= limits[0], (batch, counts)
        assert counts.waits <= limits[1], (batch, counts)


def test_operators_and_copies_are_counted() -> None:
    values = torch.arange(4.0)

    def run() -> None:
        doubled = values.view(2, 2).t() * 2  # one operator
        torch.tensor([])
        doubled.add_(torch.tensor([1.0]))  # one, and a copy
        doubled.sum().item()  # one, and one that reads
        doubled[doubled > 1].tolist()  # two, whose output has no known size, and a list

    assert count(run) == Counts(operators=6, waits=4)
    assert torch.tensor.__name__ == "tensor"
