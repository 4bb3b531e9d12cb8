"""A ragged, left-padded batch gives what its samples give alone; float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llava import hf, pruning
from tests.closeness import assert_close

from . import methods, zoo
from .masked import recorded
from .test_oracle import samples


def alone(name: str, batch: dict[str, Any], index: int, pictures: list[int]) -> dict[str, Any]:
    """One sample of a batch of `samples`, without padding. pictures: of each sample."""
    valid = batch["attention_mask"][index].bool()
    first = sum(pictures[:index])
    part: dict[str, Any] = {}
    for key, value in batch.items():
        if value.shape == batch["attention_mask"].shape:
            part[key] = value[index : index + 1, valid]
        elif name in ("idefics3", "smolvlm"):
            part[key] = value[index : index + 1, : 3 * pictures[index]]
        elif "video" in key or key == "second_per_grid_ts":
            if index == 1:
                part[key] = value
        elif "qwen" in name and key == "pixel_values":
            part[key] = value[64 * first : 64 * (first + pictures[index])]
        else:
            part[key] = value[first : first + pictures[index]]
    return part


@pytest.mark.usefixtures("first_for_few")
@pytest.mark.parametrize(("method", "merging"), [("autoprune", True), ("sparsevlm", True)])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_batch_equals_its_samples(name: str, method: str, merging: bool) -> None:
    model, prompts = zoo.shared(name), samples(name)
    batch, pruner = zoo.inputs(name, prompts), methods.pruner(method, merging)
    together, entering = logits_of(model, batch, pruner)
    for i in range(len(prompts)):
        part = alone(name, batch, i, [prompt.count("i") for prompt in prompts])
        logits, counts = logits_of(model, part, pruner)
        assert counts[0] == entering[i] and counts[0][-1] < counts[0][0]
        for step, expected in zip(together, logits, strict=True):
            assert_close(step[i], expected[0])


def logits_of(
    model: Any, batch: dict[str, Any], pruner: pruning.Pruner
) -> tuple[list[torch.Tensor], list[list[int]]]:
    """The last token's logits of a prefill and of five steps, and what entered each layer."""
    cache = hf.cache(model, pruner)
    # The same tokens for a sample alone: 10, 11, 12, ...
    ids = batch["input_ids"]
    with recorded(model) as logits:
        model.generate(
            **batch,
            past_key_values=cache,
            max_new_tokens=6,
            prefix_allowed_tokens_fn=lambda sample, row: [10],
        )
    assert len(ids) == len(cache.trace.samples)
    return logits, [sample.entering for sample in cache.trace.samples]
