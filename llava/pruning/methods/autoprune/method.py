"""AutoPrune: complexity-adaptive pruning with a budget-normalised logistic retention curve.

Paper: "Each Complexity Deserves a Pruning Policy", NeurIPS 2025, arXiv 2509.23931, sections 3.3,
3.4. Reference implementation: AutoLab-SAI-SJTU/AutoPrune at e4a9918 (the published numbers come
from it). The two differ; every difference is a field of `AutoPrune`, and two presets set them:

    difference                      field               "released"       "paper"
 1  pre-selection after layer 0     preselect_ratio     2.5 x target     none
      its text term                 preselect_text      0.3              -
 2  letterbox patches score 0       letterbox_mask      yes              no
 3  layer of the mutual information mi_layer            1                1 ("early"; not printed)
 4  rows made distributions         normalise_rows      no               yes
 5  heads; logarithm; epsilon       mi_heads, log_base, sum, 2, 1e-6     mean, e, 0
                                    mi_eps                               (heads, base not printed)
 6  slope never below 0             clamp_slope         yes              no (eq. 8)
 7  inflection                      inflection, beta    x0 + k           x0 + beta MI (eq. 8)
 8  numerator of the curve          amplitude           0.75             1 (N_init)
 9  divided by its area (eq. 6, 7)  analytic_area       no               yes
10  rounding                        rounding            ceil of (B-1)f   floor of N f
11  tokens counted                  budget_mode         leaving a layer  leaving a layer
12  cap on a layer                  cap_ratio           none (see below) none
13  what equal budgets mean         budget_mode         "published"      "published"
14  FLOPs or KV budget              target_flops,       none             none
                                    target_kv
15  recycling of dropped tokens     recycle_ratio       0.3              0
16  rows that rank the tokens       rank_rows           all text rows    all text rows
17  rows of the mutual information  mi_rows             all text rows    all text rows
18  positions after a drop          positions           compact          original
19  drop after the last layer       prune_last_layer    yes (no effect)  no
20  cost of the scoring             recycle_ratio       clusters         O(heads N_t N_v)
21  settings per task               x0, k0, gamma       14.9, 0.4, 0.2   the same (not printed)
22  upper bound of visual tokens    visual_token_num, an argument of `generate`, not of the method
23  CLS attention of LLaVA-1.6's    tile_scores         raw: of a tile's   raw (no pre-selection)
    tiles                                               own softmax
24  black border of their canvas    border_mask         no: ranked like   no
                                                        the picture

Two more fields, the same in both presets, are the ablations of the paper's Table 4:
4a  indicator  mutual_information, mean_attention, cosine_similarity (see `indicators`), or static:
               nothing is measured, k = k0 and the inflection is x0 for every sample
4b  curve      logistic, linear, tanh, exponential (see `schedules`)
gamma and beta are per unit of the indicator. mi_layer and mi_rows apply to every indicator;
normalise_rows, mi_heads, mi_eps and log_base to the mutual information alone. Whatever the
indicator, mi_layer is the first layer of the curve, and the pre-selection weighs its text term by
the mutual information (preselect_text = 0 leaves the term out).

Tiled pictures (LLaVA-1.6): the reference merges them by `spatial`, without newlines, which is an
option of the loader here. Where there are newlines they are counted as visual tokens, leave before
any patch does, and take no part in an indicator. tile_scores "normalised" divides the CLS attention
by its sum over the tile; "raw" compares that of different tiles as it is. `spatial` and `flat` keep
the border of the canvas: it is ranked like the picture, as the reference does with its empty mask,
or scores 0 in the pre-selection with border_mask. `spatial_unpad` has cut it off.

"Text rows" are the tokens after the sample's last image: a token before it cannot see it.

Where visual tokens mix all patches of their image (`TokenLayout.mixed`: Senna), there is no CLS
attention and no letterbox: the pre-selection then ranks them by the mean text attention alone, of
which the weight preselect_text changes nothing.

Deviations from the released code, none of which changes a recorded number: ties are broken by
index where it adds random noise; the schedule's early return for a curve that already fits is not
there; the count is rounded in double precision where it multiplies in single precision; the scale
may exceed 20, where it stops and misses the budget of a curve with an early inflection; the cap of
2.5 x target is meant there but disabled by the caller, so the default is no cap; a budget below
the cost of one token a layer is an error, where it spends more than the budget without a word.
The paper's equation 8 moves the inflection by +beta MI while the sentence after it says that high
MI moves it earlier: a negative `beta` gives the sentence. Its constants are not printed; the
`paper` preset takes the released ones and beta = gamma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...base import Observation, PrunerRun
from ...budget import CostBudgeted
from ...checks import demand, demand_text_behind
from ...cost import DecoderShape
from ...indicators import text_relevance
from ...layout import Selection, TokenLayout
from ...schedules import Plan
from ...selectors import keep_top
from .budget import budget, solve_plan
from .complexity import indicator, information, text_rows


@dataclass(frozen=True, kw_only=True)
class AutoPrune(CostBudgeted):
    """Settings of AutoPrune; the defaults are the released ones. See the module for each field.

    target_token_num: visual tokens per layer on average (tokens). How they are counted:
        budget_mode "published": leaving each layer, as the reference and several papers count;
        "strict": entering each layer, layer 0 with all its tokens included.
    Other budgets: see `CostBudgeted`.
    x0: depth (layers) at which half the tokens are gone, before adaptation.
    k0, gamma: slope k = k0 - gamma * indicator.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "autoprune"
    depths: ClassVar[tuple[str, ...]] = ("x0",)

    indicator: Literal["mutual_information", "mean_attention", "cosine_similarity", "static"] = (
        "mutual_information"
    )
    curve: Literal["logistic", "linear", "tanh", "exponential"] = "logistic"
    x0: float = 14.9
    k0: float = 0.4
    gamma: float = 0.2
    beta: float = 0.2
    inflection: Literal["slope", "beta"] = "slope"
    clamp_slope: bool = True
    mi_layer: int = 1
    mi_rows: Literal["text", "last"] = "text"
    mi_heads: Literal["sum", "mean"] = "sum"
    mi_eps: float = 1e-6
    log_base: float = 2.0
    normalise_rows: bool = False
    amplitude: float = 0.75
    analytic_area: bool = False
    rounding: Literal["ceil", "floor"] = "ceil"
    cap_ratio: float | None = None
    preselect_ratio: float | None = 2.5
    preselect_text: float = 0.3
    letterbox_mask: bool = True
    border_mask: bool = False
    tile_scores: Literal["raw", "normalised"] = "raw"
    recycle_ratio: float = 0.3
    rank_rows: Literal["text", "last"] = "text"
    positions: Literal["compact", "original"] = "compact"
    prune_last_layer: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, "mi_layer", self.mi_layer >= 0, "a layer index, 0 or more")
        demand(self, "mi_eps", self.mi_eps >= 0, "0 or more")
        demand(self, "log_base", self.log_base > 1, "above 1")
        demand(self, "amplitude", self.amplitude > 0, "above 0")
        demand(self, "recycle_ratio", 0 <= self.recycle_ratio <= 1, "between 0 and 1")
        for field in ("cap_ratio", "preselect_ratio"):
            value = getattr(self, field)
            demand(self, field, value is None or value >= 1, "None or at least 1")

    @property
    def needs_cls(self) -> bool:
        return self.preselect_ratio is not None

    def start(self, layout: TokenLayout, shape: DecoderShape) -> AutoPruneRun:
        return AutoPruneRun(self, layout, shape)


#: What each preset changes against the defaults, which are the released settings.
PRESETS: dict[str, dict[str, Any]] = {
    "released": {},
    "paper": {
        "preselect_ratio": None,
        "letterbox_mask": False,
        "normalise_rows": True,
        "mi_heads": "mean",
        "log_base": math.e,
        "mi_eps": 0.0,
        "clamp_slope": False,
        "inflection": "beta",
        "amplitude": 1.0,
        "analytic_area": True,
        "rounding": "floor",
        "recycle_ratio": 0.0,
        "positions": "original",
        "prune_last_layer": False,
    },
}


class AutoPruneRun(PrunerRun):
    """State of one prefill: the schedules, once the indicator is known."""

    def __init__(self, config: AutoPrune, layout: TokenLayout, shape: DecoderShape) -> None:
        self.config, self.shape = config, shape
        self.positions = config.positions
        if config.mi_layer >= shape.layers:
            raise ValueError(f"mi_layer {config.mi_layer} of a decoder of {shape.layers} layers")
        demand_text_behind(config.method, layout)
        self.n_text = [n - v for n, v in zip(layout.lengths, layout.n_visual)]
        self.own = [config.resolved(sizes) for sizes in layout.sizes]
        self.targets = config.targets_in_images(layout.sizes)
        self.budgets = [
            budget(own, shape, visual, text) if visual else None
            for own, visual, text in zip(self.own, layout.n_visual, self.n_text)
        ]
        # A sample is left alone when it has no visual tokens or fewer than it may keep.
        self.active = [
            b is not None and b.tokens < v for b, v in zip(self.budgets, layout.n_visual)
        ]
        if any(self.active) and config.needs_cls and layout.cls is None and not layout.mixed:
            raise ValueError(
                "the pre-selection ranks patches by the vision tower's CLS attention, which this "
                "model does not give; set preselect_ratio to none (--set preselect_ratio=none)"
            )
        self.plans: list[Plan | None] = []
        self.measured: list[dict[str, float]] = []
        if config.indicator == "static" and any(self.active):
            self._schedule([0.0] * layout.batch)

    def rows(self, layer: int, layout: TokenLayout) -> int:
        return max(layout.tail) if any(self.needed_by(layer, layout)) else 0

    def needed_by(self, layer: int, layout: TokenLayout) -> list[bool]:
        if layer == 0 and self.config.needs_cls:
            return self.active
        if not self.plans:
            return [active and layer == self.config.mi_layer for active in self.active]
        return [p is not None and p.keep[layer] < p.entering[layer] for p in self.plans]

    def after_layer(self, observation: Observation) -> Selection | None:
        layer, layout = observation.layer, observation.layout
        if observation.rows is None:
            return None
        if layer == self.config.mi_layer and not self.plans:
            # Waits for the device: the only place that has to.
            self._schedule(indicator(self.config, observation).tolist())
        if layer == 0 and self.config.needs_cls:
            keep = [
                min(b.start, v) if on else v
                for b, v, on in zip(self.budgets, layout.n_visual, self.active)
            ]
            scores = self._first_scores(observation)
            return keep_top(layout, scores, keep, targets=self.targets)
        if layer < self.config.mi_layer:
            return None
        pairs = list(zip(self.plans, layout.n_visual))
        keep = [n if p is None else p.keep[layer] for p, n in pairs]
        pools = [0 if p is None else p.pools[layer] for p, _ in pairs]
        clusters = [0 if p is None else p.clusters[layer] for p, _ in pairs]
        rows, mask = text_rows(observation, self.config.rank_rows)
        return keep_top(
            layout,
            text_relevance(rows, mask),
            keep,
            pools=pools,
            clusters=clusters,
            features=observation.hidden,
            targets=self.targets,
        )

    def _first_scores(self, observation: Observation) -> Tensor:
        """CLS attention + 0.3 M0 x text attention, M0 = MI of layer 0 over heads / N_t.

        Text attention alone where the tokens have no CLS attention.
        """
        layout, config = observation.layout, self.config
        if layout.mixed:
            return text_relevance(observation.rows, observation.row_mask)
        scores = layout.cls
        if config.tile_scores == "normalised" and layout.tile is not None:
            scores = normalised_in_tiles(layout)
        masked = config.letterbox_mask if layout.tile is None else config.border_mask
        if masked and layout.letterbox is not None:
            scores = scores.masked_fill(layout.letterbox, 0.0)
        n_text = observation.row_mask.sum(-1).clamp(min=1)
        weight = config.preselect_text * information(config, observation) / n_text
        return scores + weight[:, None] * text_relevance(observation.rows, observation.row_mask)

    def _schedule(self, measured: Sequence[float]) -> None:
        """Solve every sample's schedule for its value of the indicator; 0 where static."""
        config = self.config
        static = config.indicator == "static"
        name = {"mutual_information": "mi"}.get(config.indicator, config.indicator)
        for i, value in enumerate(measured):
            if not self.active[i]:
                self.plans.append(None)
                self.measured.append({})
                continue
            k = config.k0 - config.gamma * value
            k = max(k, 0.0) if config.clamp_slope else k
            shift = k if config.inflection == "slope" else config.beta * value
            x0 = config.x0 if static else config.x0 + shift
            plan = solve_plan(self.own[i], self.shape, self.budgets[i], k, x0)
            self.plans.append(plan)
            known = {} if static else {name: value}
            self.measured.append({**known, "k": k, "x0": x0, "scale": plan.scale})

    def complexity(self) -> list[dict[str, float]]:
        return self.measured


def normalised_in_tiles(layout: TokenLayout) -> Tensor:
    """The CLS attention (batch, n) of tiled pictures, divided by its sum over each tile."""
    most = max((max(own) for own in layout.sizes if own), default=1)
    scores = layout.cls * layout.is_patch
    # One number for each tile of each image; text and newlines add nothing wherever they go.
    group = (layout.image.clamp(min=0) * most + layout.tile.clamp(min=0)).long()
    images = max(map(len, layout.sizes))
    sums = scores.new_zeros(layout.batch, max(images, 1) * most).scatter_add_(1, group, scores)
    return scores / sums.gather(1, group).clamp(min=torch.finfo(scores.dtype).tiny)
