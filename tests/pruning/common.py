"""Decoder shapes, schedules, layouts and made-up attention that the tests of this folder share."""

from __future__ import annotations

import torch

from llava.pruning.autoprune import AutoPrune
from llava.pruning.base import Observation
from llava.pruning.budgets import budget, solve_plan
from llava.pruning.cost import DecoderShape
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.schedules import Plan


def vicuna(layers: int = 32) -> DecoderShape:
    """Vicuna 7B; with 40 layers of the same width, which is all a schedule sees of 13B."""
    return DecoderShape(layers, 4096, 32, 32, 128, 11008)


def released(tokens: float, k: float, n: int = 576, layers: int = 32) -> Plan:
    """The released schedule at slope `k`: x0 = 14.9, inflection 14.9 + k, 70 text tokens."""
    config = AutoPrune(target_token_num=tokens)
    shape = vicuna(layers)
    return solve_plan(config, shape, budget(config, shape, n, 70), k, config.x0 + k)


def layout(*visual: int, text: int = 4) -> TokenLayout:
    """Samples with one image (none for 0 tokens) after one token of text and before `text`."""
    return TokenLayout.from_segments(
        [
            [
                Segment(1),
                *([Segment(n, 0, torch.arange(n), torch.rand(n))] if n else []),
                Segment(text),
            ]
            for n in visual
        ]
    )


def observe(run, tokens: TokenLayout, layer: int, sharpness: float = 1.0) -> Observation:
    """Random attention of the rows that the run asks for in `layer`."""
    generator = torch.Generator().manual_seed(layer)
    wanted = run.rows(layer, tokens)
    hidden = torch.randn(tokens.batch, tokens.n, 6, generator=generator)
    if not wanted:
        return Observation(layer, tokens, hidden)
    rows = torch.randn(tokens.batch, 2, wanted, tokens.n, generator=generator)
    rows = (sharpness * rows).masked_fill(~tokens.valid[:, None, None, :], -torch.inf).softmax(-1)
    tail = torch.tensor(tokens.tail)[:, None]
    return Observation(layer, tokens, hidden, rows, torch.arange(wanted) >= wanted - tail)


def walk(run, tokens: TokenLayout, layers: int, sharpness: float = 1.0) -> list[TokenLayout]:
    """Layouts entering each layer, and what leaves the last."""
    seen = [tokens]
    for layer in range(layers):
        selection = run.after_layer(observe(run, seen[-1], layer, sharpness))
        seen.append(seen[-1] if selection is None else seen[-1].select(selection))
    return seen
