"""Stock LLaVA under hooks against this package's own LLaVA on the same weights."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llava import hf, pruning
from llava.constants import IMAGE_TOKEN_INDEX
from llava.pruning.cache import PrunedCache
from tests import tiny

ORIGINAL = {"positions": "original"}
COMPACT = {"positions": "compact"}
#: Without a look at the vision tower, which hooks do not have.
AUTOPRUNE = {"target_token_num": 8, "x0": 3.0, "preselect_ratio": None}
RUNS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("autoprune", {**AUTOPRUNE, **ORIGINAL}),
    ("autoprune", {**AUTOPRUNE, **COMPACT}),
    ("autoprune", {**AUTOPRUNE, **COMPACT, "recycle_ratio": 0.0}),
    ("autoprune", {**AUTOPRUNE, **ORIGINAL, "prune_last_layer": False}),
    ("fastv", {"target_token_num": 7, "depth": 2, **ORIGINAL}),
    ("fastv", {"target_token_num": 7, "depth": 2, **COMPACT}),
    ("pdrop", {"target_token_num": 8, "stages": (1, 2, 4), **ORIGINAL}),
    ("sparsevlm", {"target_token_num": 9, "stages": (1, 3, 4), **ORIGINAL}),
    ("sparsevlm", {"target_token_num": 9, "stages": (1, 3, 4), **COMPACT}),
    ("dart", {"target_token_num": 13, **ORIGINAL}),
    ("divprune", {"target_token_num": 9, **ORIGINAL}),
    ("zipvl", {"target_token_num": 7, **ORIGINAL}),
]
TOKENS = 16


def stock_inputs(prompts: list[Tensor], pixels: Tensor) -> dict[str, Tensor]:
    """The prompts as stock LLaVA takes them, with a placeholder for each visual token."""
    rows = []
    for prompt in prompts:
        parts = [
            torch.full((TOKENS,), tiny.STOCK_IMAGE_ID) if i == IMAGE_TOKEN_INDEX else i[None]
            for i in prompt
        ]
        rows.append(torch.cat(parts))
    ids, mask = tiny.batch(rows)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    ours = tiny.model(0)
    return ours, tiny.stock(ours)


@pytest.mark.parametrize(("method", "settings"), RUNS, ids=str)
def test_logits_are_those_of_the_own_model(models, method: str, settings: dict[str, Any]) -> None:
    """Four ragged prompts, one of them with two pictures: bitwise."""
    ours, stock = models
    prompts = [tiny.prompt(i, before=i, after=4 + i, images=1 + i // 3) for i in range(4)]
    ids, mask = tiny.batch(prompts)
    pixels, pruner = tiny.pixels(3, 5), pruning.build(method, **settings)
    common = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    expected = ours.generate(ids, images=pixels, attention_mask=mask, pruner=pruner, **common)
    with hf.pruning(stock, pruner) as pruned:
        output = stock.generate(**stock_inputs(prompts, pixels), **common)
    assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))
    counts = [sample.entering for sample in expected.past_key_values.trace.samples]
    assert [sample.entering for sample in pruned.trace.samples] == counts
    assert len({len(set(sample)) for sample in counts}) and (method == "none" or counts[3][-1] < 32)


class Operators(TorchDispatchMode):
    """Counts what asks the device for work, views left out."""

    VIEWS: ClassVar[frozenset[str]] = frozenset(
        {
            *("view", "reshape", "transpose", "t", "unsqueeze", "expand", "slice", "select"),
            *("permute", "alias", "detach", "_unsafe_view", "unflatten", "squeeze", "split"),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(n for name, n in self.counts.items() if name not in self.VIEWS)


@pytest.mark.parametrize("batch", [1, 4])
@torch.inference_mode()
def test_hooks_ask_for_few_operators_more(batch: int) -> None:
    ours = tiny.model(0, layers=24)
    stock = tiny.stock(ours)
    prompts = [tiny.prompt(i, before=4, after=9 + i) for i in range(batch)]
    pixels = tiny.pixels(0, batch)
    embedded = ours.embed_prompt(*tiny.batch(prompts), pixels)
    inputs = stock_inputs(prompts, pixels)
    if batch == 1:
        del inputs["attention_mask"]
    for method, settings in (RUNS[1], RUNS[2], RUNS[5], RUNS[8], RUNS[12]):
        pruner = pruning.build(method, **settings)
        for _ in range(2):  # the first makes what is kept
            with Operators() as patched:
                cache = PrunedCache(pruner, embedded.layout)
                ours.model(inputs_embeds=embedded.embeds, past_key_values=cache)
            hooked = _operators_of_the_decoder(stock, inputs, pruner)
        assert 0 < patched.total < hooked <= 1.05 * patched.total


def _operators_of_the_decoder(model: Any, inputs: dict[str, Any], pruner: pruning.Pruner) -> int:
    decoder, counting = model.get_decoder(), Operators()
    cache = hf.cache(model, pruner)
    handles = [
        decoder.register_forward_pre_hook(lambda *call: counting.__enter__() and None),
        decoder.register_forward_hook(lambda *call: counting.__exit__(None, None, None)),
    ]
    model(**inputs, past_key_values=cache)
    for handle in handles:
        handle.remove()
    return counting.total
