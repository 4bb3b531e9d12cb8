"""`verify` of models that transformers loads by itself: right on every known architecture, and wrong
where a hook is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import pytest
import torch

from llava import pruning
from llava.analysis import checks
from llava.analysis.checks import OK, SKIPPED, WRONG, Checks
from llava.analysis.stock_subject import StockSubject
from llava.hf.inputs import StockDecoding, StockInputs
from llava.pruning import prefill

from ..hf import zoo
from ..hf.test_batches import alone

SETTINGS = {"target_token_num": 8, "x0": 2.0, "recycle_ratio": 0.0, "positions": "original"}
PRUNER = pruning.build("autoprune", **SETTINGS)


def subject(name: str) -> StockSubject:
    model = zoo.model(name, torch.float32)
    prompts = ["iq", "itq", "iqq"] if name == "paligemma" else ["tiq", "titq", "tiqq"]

    batch = zoo.inputs(name, prompts, torch.float32)

    def inputs(numbers: Sequence[int]) -> Mapping[str, Any]:
        return batch if len(numbers) > 1 else alone(name, batch, numbers[0], [1, 1, 1])

    return StockSubject(model, inputs, lambda tokens, **_: f"{len(tokens)} tokens", 3)


@torch.inference_mode()
def verdicts(name: str) -> dict[str, checks.Verdict]:
    return {v.name: v for v in Checks(subject(name), PRUNER, inf).run() if v.name != "times"}


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_architecture_is_right(name: str) -> None:
    shown = verdicts(name)
    assert {k: v for k, v in shown.items() if v.verdict == WRONG} == {}
    assert [k for k, v in shown.items() if v.verdict == SKIPPED] == ["flash_attention_2 = sdpa"]
    assert len(shown) == 7
    assert shown["unpruned logits = transformers'"].difference == 0
    assert f"{zoo.ZOO[name].tokens} tokens to" in shown["pruned = masked, original positions"].said
