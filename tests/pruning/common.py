"""Decoder shapes, schedules, layouts and made-up attention that the tests of this folder share."""

from __future__ import annotations

import torch

from llava.pruning.base import Observation
from llava.pruning.cost import DecoderShape, measure
from llava.pruning.layout import TEXT, Segment, TokenLayout
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.autoprune.budget import budget, solve_plan
from llava.pruning.schedules import Plan
from llava.pruning.selection import Selection
from llava.pruning.staged import StagedPruner
from llava.pruning.trace import SampleTrace


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


def entering(pruner: StagedPruner, n: int = 576, layers: int = 32) -> list[int]:
    """Visual tokens entering each layer of a sample with `n` of them."""
    counts = [n] * layers
    for cut in pruner.cuts(n, vicuna(layers)):
        rest = layers - cut.layer - 1
        counts[cut.layer + 1 :] = [cut.keep + cut.clusters] * rest
    return counts


def leaving_average(pruner: StagedPruner, n: int = 576, layers: int = 32) -> float:
    """Visual tokens leaving a layer, on average."""
    counts = entering(pruner, n, layers)
    return (sum(counts[1:]) + counts[-1]) / layers


def figures(pruner: StagedPruner) -> tuple[float, float, float, int]:
    """576 visual and 70 text tokens on Vicuna 7B: tokens entering a layer on average, % of the
    dense prefill's FLOPs, MB of visual keys and values, tokens in the last layer; to one digit."""
    counts = entering(pruner)
    sample = SampleTrace(576, 70, counts, [*counts[1:], counts[-1]], [0] * 32, [0] * 32)
    cost = measure(sample, vicuna())
    share = 100 * cost.prefill_flops / cost.dense_prefill_flops
    visual = cost.kv_bytes - vicuna().kv_bytes(70 * 32)
    return (cost.tokens_entering, share, visual / 1e6, counts[-1])


class FixedAhead:
    """What `Observation.ahead` gives, written down: rows of the next layer, the output normed."""

    def __init__(self, rows: torch.Tensor | None = None, normed: torch.Tensor | None = None):
        self._rows, self._normed = rows, normed

    def rows(self, count: int) -> torch.Tensor:
        return self._rows[:, :, -count:]

    def final_norm(self) -> torch.Tensor:
        return self._normed

    next_norm = final_norm


def kept(layout: TokenLayout, selection: Selection | None) -> list[list[int]]:
    """Patches of each sample that are left."""
    after = layout if selection is None else layout.select(selection)
    return [[p for p in row if p != TEXT] for row in after.patch.tolist()]
