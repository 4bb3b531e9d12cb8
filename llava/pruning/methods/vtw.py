"""VTW: all visual tokens leave the decoder at one layer; up to there nothing is dropped.

Paper: "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", AAAI 2025, arXiv 2405.05803. Reference implementation: lzhxmu/VTW at 34a4199. Layers
0 .. K - 1 run with every token, layers K .. L - 1 with the text alone: by then, the authors say,
what the picture shows has moved into the text behind it. Nothing is ranked, so this is the floor
below every method that chooses in the decoder.

The paper looks K up on a few samples, as the first layer at which the withdrawal changes the output
distribution by less than a KL divergence of a threshold, and uses K = 15 of 32 for LLaVA-1.5-7B.
Here K follows from the budget. N visual tokens in K of L layers are K N / L tokens entering a layer
on average, which is what the FLOPs of the paper count, so T tokens are

    K = T L / N to the nearest whole number, the lower of two as near, at most L

and the mean is within N / (2 L) of T: there is nothing smaller to give or take. Both ways of
counting mean the same. K = 15 of 32 is target_fraction = 15 / 32, and T = 64 of 576 is K = 4, which
is 72 tokens a layer. A T below N / L, one layer with all tokens, is refused.

Rotary positions stay ("original"), as in the reference; "compact" counts them anew where the tokens
have left, its other setting. Deviations: the image is found, not assumed at positions 35 .. 610;
all images of a prompt leave together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ..base import Observation, PrunerRun
from ..budget import Budgeted
from ..checks import BudgetError, demand_text_behind
from ..cost import DecoderShape
from ..layout import TokenLayout
from ..registry import register
from ..selection import Selection
from ..selectors import keep_top


@register
@dataclass(frozen=True, kw_only=True)
class VTW(Budgeted):
    """Settings of VTW, see the module.

    positions: rotary positions "original" (reference) or "compact".

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "vtw"

    positions: Literal["original", "compact"] = "original"

    def start(self, layout: TokenLayout, shape: DecoderShape) -> VTWRun:
        """Raises PromptError for an image that ends the prompt, BudgetError for a T too small."""
        return VTWRun(self, layout, shape)

    def depth(self, n_visual: int, layers: int) -> int:
        """K: how many of `layers` layers run with all `n_visual` tokens, at least 1, of a sample.

        Raises BudgetError for a target below one layer's worth.
        """
        worth = self.target_token_num * layers / n_visual
        if worth < 1:
            raise BudgetError(
                f"target_token_num {self.target_token_num:.6g} is below the floor of "
                f"{n_visual / layers:.6g} tokens entering a layer: that much cost {n_visual} "
                "visual tokens that leave after the first layer"
            )
        return min(math.ceil(worth - 0.5), layers)


class VTWRun(PrunerRun):
    """One prefill."""

    def __init__(self, config: VTW, layout: TokenLayout, shape: DecoderShape) -> None:
        self.positions, self.layers = config.positions, shape.layers
        demand_text_behind(config.method, layout)
        self.depths = [
            config.resolved(sizes).depth(n, shape.layers) if n else 0
            for sizes, n in zip(layout.sizes, layout.n_visual)
        ]

    def leaving(self, layer: int, layout: TokenLayout) -> list[int]:
        return [
            n if depth == layer + 1 < self.layers else 0
            for depth, n in zip(self.depths, layout.n_visual)
        ]

    def after_layer(self, observation: Observation) -> Selection | None:
        layer, layout = observation.layer, observation.layout
        leaving = self.leaving(layer, layout)
        keep = [n - gone for n, gone in zip(layout.n_visual, leaving)]
        blank = torch.zeros(layout.batch, layout.n, device=layout.device)
        return keep_top(layout, blank, keep) if any(leaving) else None
