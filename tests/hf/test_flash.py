"""flash attention under hooks gives what sdpa gives; its kernels are references, see
`tests.flash_kernels`."""

from __future__ import annotations

import pytest
import torch

from llava import hf
from tests import flash_kernels
from tests.closeness import FLOAT64, assert_close

from . import methods, zoo
from .masked import recorded
from .test_oracle import samples


@pytest.mark.usefixtures("first_for_few")
@pytest.mark.parametrize("method", ["autoprune", "pdrop", "random"])
@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_vl", "qwen3_vl", "mistral3"])
def test_a_padded_batch_equals_sdpa(name: str, method: str, monkeypatch) -> None:
    kernels = flash_kernels.install(monkeypatch)
    model, batch = zoo.shared(name), zoo.inputs(name, samples(name))
    pruner = methods.pruner(method, merging=method == "autoprune")
    answers = []
    for kernel in ("sdpa", "flash_attention_2"):
        config = model.get_decoder().config
        monkeypatch.setattr(config, "_attn_implementation_internal", kernel)
        cache = hf.cache(model, pruner)
        with recorded(model) as logits:
            model.generate(**batch, past_key_values=cache, max_new_tokens=3)
        answers.append(torch.stack(logits))
    assert kernels.runs["ragged"]
    assert_close(answers[1], answers[0], FLOAT64)


@torch.no_grad()
def test_a_window_over_what_is_left_is_refused(monkeypatch) -> None:
    flash_kernels.install(monkeypatch)
    model, batch = zoo.shared("gemma3"), zoo.inputs("gemma3", ["tiq"])
    config = model.get_decoder().config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"sliding window over the tokens that are left.*sdpa"):
        model(**batch, past_key_values=hf.cache(model, methods.pruner("fastv")))
