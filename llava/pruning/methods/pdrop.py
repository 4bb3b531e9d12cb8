"""PyramidDrop: a few cuts in the decoder, each by the next layer's attention of the last token.

Paper: "PyramidDrop", CVPR 2025, arXiv 2410.17247. Reference implementation:
Cooperx521/PyramidDrop at 6444f30. After each depth d of `stages` (layers that have run) the visual
tokens with the highest score stay:

    s_i = mean over heads of softmax(q_last K^T / sqrt(head_dim))_i,  q and K of the *next* layer
    after stage s stay n_s = int(N lambda^s) tokens of the N that there were at first

The softmax is over all keys, in float32. The query is the last instruction token, which at
inference is the prompt's last token. Positions are counted anew after each cut.

Budgets. The original stages are 8, 16, 24 with ratios 0.5, 0.25, 0.125 (lambda = 0.5): 576, 288,
144, 72 tokens, 270 a layer. Eight full layers of 32 alone are 144 tokens a layer, so 192, 128 and
64 are made with stages 2, 8, 16 and a smaller lambda, as the authors advise (their issues 10, 29):
lambda 0.56, 0.421 and 0.193 leave 322/180/101, 242/102/42 and 111/21/4. These stages are the
default. lambda is solved for T: of all lambdas the one whose tokens *entering* a layer, which is
what PyramidDrop counts, are nearest to T. "published" stops there; "strict" goes on to spend
single tokens until no stage takes another (see `staged`). `ratios`, one a stage, replaces T.

`newlines` of tiled pictures are candidates, as in the reference, which counts them as image tokens;
"last" has them leave before any patch (see `staged`).

Deviations: at least one token stays, where int(N lambda^s) may be 0. Only inference: the reference
also trains. It prunes the first image of a prompt only; here all images are one pool. A sample with
no more tokens than T keeps all. Equal scores go to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..base import Observation
from ..checks import demand, demand_depths
from ..cost import DecoderShape
from ..layout import TokenLayout
from ..registry import register
from ..staged import Cut, StagedPruner, StagedRun, Stages


@register
@dataclass(frozen=True, kw_only=True)
class PDrop(StagedPruner):
    """Settings of PyramidDrop.

    stages: depths of the cuts, in layers that have run.
    ratios: share of the original tokens that each cut leaves, instead of the budget; None to solve.
    positions: rotary positions "compact" (reference) or "original".

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "pdrop"
    depths: ClassVar[tuple[str, ...]] = ("stages",)

    stages: tuple[int, ...] = (2, 8, 16)
    ratios: tuple[float, ...] | None = None
    positions: Literal["compact", "original"] = "compact"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand_depths(self, "stages")
        if self.ratios is None:
            return
        ratios = tuple(self.ratios)
        falling = list(ratios) == sorted(ratios, reverse=True)
        stages = len(self.stages)
        ok = len(ratios) == stages and falling and all(0 < r <= 1 for r in ratios)
        expected = f"{stages} shares in (0, 1], one a stage and none above the one before"
        demand(self, "ratios", ok, expected)
        object.__setattr__(self, "ratios", ratios)

    @property
    def cut_depths(self) -> tuple[int, ...]:
        return self.stages

    def cuts(self, n_visual: int, shape: DecoderShape) -> tuple[Cut, ...]:
        if self.ratios is not None:
            ratios = dict(zip(self.stages, self.ratios))
            stages = Stages(n_visual, shape.layers, tuple(ratios))
            return stages.cuts([int(n_visual * ratio) for ratio in ratios.values()])
        if self.target_token_num >= n_visual:
            return ()
        powers = {depth: power for power, depth in enumerate(self.stages, start=1)}
        stages = Stages(n_visual, shape.layers, tuple(powers))
        keeps = stages.fit(
            lambda share: [int(n_visual * share**power) for power in powers.values()],
            self.target_token_num,
            "entering",
            spend=self.strict,
        )
        return stages.cuts(keeps)

    def start(self, layout: TokenLayout, shape: DecoderShape) -> PDropRun:
        return PDropRun(self, layout, shape, self.positions)


class PDropRun(StagedRun):
    """One prefill."""

    needs_output = True

    def scores(self, observation: Observation, keep: Sequence[int]) -> Tensor:
        return observation.looked_ahead().rows(1)[:, :, -1].mean(1)
