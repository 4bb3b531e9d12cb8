"""Decoder shapes and schedules that the tests of this folder share."""

from __future__ import annotations

from llava.pruning.autoprune import AutoPrune
from llava.pruning.budgets import budget, solve_plan
from llava.pruning.cost import DecoderShape
from llava.pruning.schedules import Plan


def vicuna(layers: int = 32) -> DecoderShape:
    """Vicuna 7B; with 40 layers of the same width, which is all a schedule sees of 13B."""
    return DecoderShape(layers, 4096, 32, 32, 128, 11008)


def released(tokens: float, k: float, n: int = 576, layers: int = 32) -> Plan:
    """The released schedule at slope `k`: x0 = 14.9, inflection 14.9 + k, 70 text tokens."""
    config = AutoPrune(target_token_num=tokens)
    shape = vicuna(layers)
    return solve_plan(config, shape, budget(config, shape, n, 70), k, config.x0 + k)
