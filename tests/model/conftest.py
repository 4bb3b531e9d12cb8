"""One model, in memory and in two folders, that every way of loading has to give back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llava.model import LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model

from .. import checkpoints, tiny
from ..answers import Answer, ask


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return checkpoints.write_original(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="session")
def hf(tmp_path_factory) -> Path:
    return checkpoints.write_hf(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="session")
def reference() -> LlavaLlamaForCausalLM:
    """The weights of the checkpoints, put into a model without any file."""
    model = tiny.model(layers=checkpoints.LAYERS)
    # Whether transformers has this level depends on its version.
    level = "vision_tower.vision_model."
    short = {k.replace(level, "vision_tower."): v for k, v in checkpoints.weights().items()}
    names = model.state_dict()
    assert len(names) == len(short)
    model.load_state_dict({k: short[k.replace(level, "vision_tower.")].float() for k in names})
    model.generation_config.eos_token_id = 2
    return model


@pytest.fixture(scope="session")
def expected(reference, original) -> Answer:
    """What `reference` answers; only the ids and pixels come from a loaded checkpoint."""
    tokenizer, _, processor, length = load_pretrained_model(original, device="cpu")
    result = ask((tokenizer, reference, processor, length))
    assert len(set(result.tokens)) > 4
    return result


@pytest.fixture
def wide_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' eager backend softmaxes in float32; here in the dtype of the scores."""

    def softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return scores.softmax(dim)

    monkeypatch.setattr(nn.functional, "softmax", softmax)
