"""Attention rows in stock models against the matrices of their eager backend, float64.

Windows, pictures seen as a whole and tokens already gone are in them, whether the rows come from
the attention, before the layer ran, or from the next layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from llava import hf
from llava.pruning import Observation, Pruner, PrunerRun, Selection, TokenLayout
from llava.pruning.selectors import keep_top
from tests.closeness import assert_close

from . import zoo
from .masked import alive_columns, full_length

COUNT = 6


class Look(PrunerRun):
    """Drops the tokens with odd numbers before the decoder, and keeps the rows of all layers."""

    def __init__(self, first: bool) -> None:
        self.first = first
        self.seen: list[Tensor] = []
        self.ahead: list[Tensor] = []

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        counts = [(n + 1) // 2 for n in layout.n_visual]
        return keep_top(layout, 1.0 - layout.patch % 2, counts)

    def rows(self, layer: int, layout: TokenLayout) -> int:
        return COUNT

    def leaving(self, layer: int, layout: TokenLayout) -> list[int] | None:
        return list(layout.lengths) if self.first else None

    def after_layer(self, observation: Observation) -> None:
        self.seen.append(observation.measured()[0])
        if not self.first and observation.layer + 1 < zoo.LAYERS:
            self.ahead.append(observation.looked_ahead().rows(COUNT))


@dataclass(frozen=True, kw_only=True)
class Looking(Pruner):
    method: ClassVar[str] = "looking"
    runs: tuple[Look, ...] = ()

    def start(self, layout: TokenLayout, shape: Any) -> PrunerRun:
        return self.runs[0]


@pytest.fixture
def wide_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' eager backend softmaxes in float32; here in the dtype of the scores."""

    def softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return scores.softmax(dim)

    monkeypatch.setattr(nn.functional, "softmax", softmax)


@pytest.mark.usefixtures("wide_softmax", "first_for_few")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma"])
@torch.no_grad()
def test_rows_equal_the_eager_matrix(name: str, first: bool) -> None:
    model = zoo.model(name, attn="eager")
    batch = zoo.inputs(name, ["iq", "iiqt"] if name == "paligemma" else ["tiq", "titiqt"])
    look = Look(first)
    cache = hf.cache(model, Looking(runs=(look,)))
    model(**batch, past_key_values=cache)
    alive = alive_columns(batch, cache.trace)
    matrices = full_length(model, batch, alive, attentions=True)
    assert len(matrices) == len(look.seen) == zoo.LAYERS
    n = batch["input_ids"].shape[1]
    for layer, (rows, matrix) in enumerate(zip(look.seen, matrices)):
        ahead = look.ahead[layer - 1 : layer] if layer else []
        for i, columns in enumerate(alive[layer]):
            left = (columns & batch["attention_mask"][i].bool()).nonzero()[:, 0]
            expected = matrix[i][:, n - COUNT :, left]
            assert expected.amax(-1).max() > 2 / len(left)
            for measured in [rows, *ahead]:
                assert_close(measured[i][:, :, -len(left) :], expected)
    assert len(look.ahead) == (0 if first else zoo.LAYERS - 1)
