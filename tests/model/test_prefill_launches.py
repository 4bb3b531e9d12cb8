"""What a prefill asks of a device: operators, and copies between it and the host.

These are counts and not times. At batch 1 a fast GPU spends a prefill on them. 32 layers of width
64; 576 visual tokens between 35 and 60 tokens of text, in a batch with three more each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaModel

from llava import pruning
from llava.model import LlavaConfig, LlavaLlamaModel
from llava.pruning.cache import PrunedCache
from llava.pruning.layout import Segment, TokenLayout

LAYERS, WIDTH, VISUAL = 32, 64, 576
#: What only looks at memory in another way.
# fmt: off
VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "detach_", "expand", "flatten",
    "lift_fresh", "narrow", "permute", "reshape", "select", "slice", "split", "squeeze",
    "t", "transpose", "unflatten", "unsqueeze", "view",
}
# fmt: on


class Operators(TorchDispatchMode):
    """Operators that do work, and how often the host reads a value or a size from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function._schema.name.partition("::")[2] not in VIEWS
        reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        self.reads += not reads.isdisjoint(function.tags)
        return function(*args, **(kwargs or {}))


def counted(run: Callable[[], object], patch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Operators, and copies to the host and from it, of one call."""
    copies = []

    def watch(inside: pytest.MonkeyPatch, owner: object, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            # transformers makes an empty tensor for every layer; there is nothing to copy.
            if not isinstance(result, torch.Tensor) or result.numel():
                copies.append(name)
            return result

        inside.setattr(owner, name, call)

    watched = [(torch, "tensor"), (torch, "as_tensor")]
    watched += [(torch.Tensor, name) for name in ("tolist", "cpu", "numpy")]
    with patch.context() as inside:
        for owner, name in watched:
            watch(inside, owner, name)
        with Operators() as seen:
            run()
    return seen.count, seen.reads + len(copies)


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
    ({"method": "zipvl"}, (2000, 40), (2400, 45)),
    ({"method": "sparsevlm"}, (1550, 3), None),
    ({"method": "pdrop"}, (1400, 3), None),
    ({"method": "dart"}, (1380, 3), None),
    ({"method": "fastv"}, (1330, 3), None),
]


@pytest.mark.parametrize("batch", [1, 8])
@torch.inference_mode()
def test_an_unpruned_prefill_asks_for_no_more_than_transformers(model, batch, monkeypatch) -> None:
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
    ours, expected = counted(own, monkeypatch), counted(theirs, monkeypatch)
    assert expected[0] > 1200 and ours[0] <= expected[0]
    assert ours[1] <= max(expected[1], 1)


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
def test_a_pruned_prefill_asks_for_little(model, settings, alone, together, monkeypatch) -> None:
    pruner = pruning.build(**settings, target_token_num=64)
    for batch, limits in ((1, alone), (8, together)):
        if limits is None:
            continue
        run = prefill(model, pruner, batch)
        run()
        operators, copies = counted(run, monkeypatch)
        assert operators <= limits[0], (batch, operators)
        assert copies <= limits[1], (batch, copies)


def test_operators_and_copies_are_counted(monkeypatch) -> None:
    values = torch.arange(4.0)

    def run() -> None:
        doubled = values.view(2, 2).t() * 2  # one operator
        torch.tensor([])
        doubled.add_(torch.tensor([1.0]))  # one, and a copy
        doubled.sum().item()  # one, and one that reads
        doubled[doubled > 1].tolist()  # two, whose output has no known size, and a list

    assert counted(run, monkeypatch) == (6, 4)
    assert torch.tensor.__name__ == "tensor"
