"""AutoPrune: complexity-adaptive pruning with a budget-normalised logistic retention curve.

Paper: "Each Complexity Deserves a Pruning Policy", NeurIPS 2025, arXiv 2509.23931, sections 3.3,
3.4. Reference implementation: AutoLab-SAI-SJTU/AutoPrune at e4a9918 (the published numbers come
from it). The two differ; every difference is a field of `AutoPrune`, and two presets set them (a
third, `balanced`, is neither's: what did best on the embedded model, see docs/findings.md):

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
25  solver of the budget            to_the_letter       yes              - (rounds down)

to_the_letter: a published budget of the logistic curve with counts rounded up is solved as in the
code. The scale is at most 20, so that an early inflection misses its budget (x0 = -4, k = 1.07,
T = 64 in 8 layers: 229 tokens of 512); a curve whose kept tokens, before scaling, sum to within one
token of the budget is used as it is (the code compares an estimate; that it leaves out what is
merged is our reading); and counts are rounded in single precision. Of this the published settings
see the rounding alone: in 3 of 2,412 schedules (201 slopes, both lengths, 32 and 40 layers) a count
moves by one. Without it every budget is met, as budgets (strict, FLOPs, KV bytes) and curves that
the code does not know always are.

Two more fields, the same in both presets, are the ablations of the paper's Table 4:
4a  indicator  mutual_information, mean_attention, cosine_similarity (see `indicators`), or static:
               nothing is measured, k = k0 and the inflection is x0 for every sample
4b  curve      logistic, linear, tanh, exponential (see `schedules`)
Four more fields, the same in both presets, are of neither the paper nor the code:
preselect_at  "layer_0": after layer 0, which all tokens run, by CLS and text attention; "entry":
               before it, by CLS attention alone. What layer 0 costs then goes to later layers.
preselect_candidates  how many times as many patches as pass a pre-selection at the entry compete
               by CLS attention; of these those pass that are least like one with a higher score
               (cosine of embeddings), so that no two tokens say the same. 1: the score alone
tower_scores   "received": the pre-selection ranks by the mean attention that patches receive from
               patches in place of the CLS token's, for towers that have no such token
prune_every    tokens leave after every n-th layer only, by `schedules` from the first layer of the
               curve on (mi_layer, or 1 where that is the pre-selection's); 1 is the paper. The
               pre-selection stands apart. Layers between the steps measure and drop nothing.
               What leaves at a step is recycled at that step.
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
index where it adds random noise (which decides the merged tokens where two clusters form); the cap
of 2.5 x target is meant there but disabled by the caller, so the default is no cap; a budget below
the cost of one token a layer is an error, where it spends more than the budget without a word.
The paper's equation 8 moves the inflection by +beta MI while the sentence after it says that high
MI moves it earlier: a negative `beta` gives the sentence. Its constants are not printed; the
`paper` preset takes the released ones and beta = gamma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...budget import CostBudgeted
from ...checks import demand


@dataclass(frozen=True, kw_only=True)
class AutoPruneSettings(CostBudgeted):
    """Settings of AutoPrune; the defaults are the released ones. See the module for each field.

    target_token_num: visual tokens per layer on average (tokens). How they are counted:
        budget_mode "published": leaving each layer, as the reference and several papers count;
        "strict": entering each layer, layer 0 with all its tokens included.
    Other budgets: see `CostBudgeted`.
    x0: depth (layers) at which half the tokens are gone, before adaptation.
    k0, gamma: slope k = k0 - gamma * indicator.
    prune_every: layers from one step to the next. No depth that scales with the decoder: the paper
        prunes after every layer however many there are, and what a longer period saves, the
        operators of the layers between, is counted in layers too.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "autoprune"
    depths: ClassVar[tuple[str, ...]] = ("x0",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
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
        "balanced": {
            "budget_mode": "strict",
            "positions": "original",
            "preselect_at": "entry",
            "preselect_ratio": 2.5,
            "preselect_candidates": 2.0,
            "indicator": "static",
            "x0": 8.0,
            "rank_rows": "last",
            "recycle_ratio": 0.0,
            "prune_last_layer": False,
        },
    }

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
    to_the_letter: bool = True
    rounding: Literal["ceil", "floor"] = "ceil"
    cap_ratio: float | None = None
    preselect_ratio: float | None = 2.5
    preselect_text: float = 0.3
    preselect_at: Literal["layer_0", "entry"] = "layer_0"
    preselect_candidates: float = 1.0
    letterbox_mask: bool = True
    border_mask: bool = False
    tile_scores: Literal["raw", "normalised"] = "raw"
    tower_scores: Literal["cls", "received"] = "cls"
    recycle_ratio: float = 0.3
    rank_rows: Literal["text", "last"] = "text"
    positions: Literal["compact", "original"] = "compact"
    prune_last_layer: bool = True
    prune_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, "mi_layer", self.mi_layer >= 0, "a layer index, 0 or more")
        demand(self, "prune_every", self.prune_every >= 1, "a number of layers, 1 or more")
        demand(self, "mi_eps", self.mi_eps >= 0, "0 or more")
        demand(self, "log_base", self.log_base > 1, "above 1")
        demand(self, "amplitude", self.amplitude > 0, "above 0")
        demand(self, "recycle_ratio", 0 <= self.recycle_ratio <= 1, "between 0 and 1")
        demand(self, "preselect_candidates", self.preselect_candidates >= 1, "at least 1")
        if self.preselect_candidates > 1 and self.cuts_layer_0:
            raise ValueError(
                f"preselect_candidates {self.preselect_candidates:g} compares the embeddings that "
                "enter layer 0: set preselect_at='entry', or preselect_candidates=1"
            )
        for field in ("cap_ratio", "preselect_ratio"):
            value = getattr(self, field)
            demand(self, field, value is None or value >= 1, "None or at least 1")

    @property
    def needs_cls(self) -> bool:
        return self.preselect_ratio is not None

    @property
    def cuts_layer_0(self) -> bool:
        """Whether the pre-selection follows layer 0."""
        return self.needs_cls and self.preselect_at == "layer_0"

    @property
    def cuts_entry(self) -> bool:
        """Whether the pre-selection comes before layer 0."""
        return self.needs_cls and self.preselect_at == "entry"
