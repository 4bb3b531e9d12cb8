"""SparseVLM and SparseVLM+: three cuts in the decoder, by the attention of the text that looks.

Paper: "SparseVLM", ICML 2025, arXiv 2410.04417. Reference implementation: Gumpest/SparseVLMs,
branches v1.5 at b9619e6 and v2.0 at 72cd202 (SparseVLM+).

Raters, once a prompt, from the input embeddings V (visual) and X (text behind the last image):

    w = mean over visual tokens of softmax(V X^T) over the text tokens;   raters: w > mean(w)

`raters` "reference" are these; "all" is all text behind the last image, "last" the prompt's last
token. On the embedded model the reference's are one or two tokens of the template in every prompt,
and never a word of the question.

After each depth d of `stages` a token scores its attention from the raters, averaged over them and
the heads, and the best of them stay. The stages are 3, 7, 16 layers that have run; the reference
writes 2, 6, 15, the layer that has run last, counted from 0.

version "1.5": of the dropped tokens the best int(0.3 n) + 1 are merged into a tenth of them + 1
    clusters (see `selectors`), which follow the kept ones. Positions are compact.
version "plus":
    1. gravity correction: attention is divided by what all-ones queries and keys would give at the
    same positions, g(i, j) = 2 sum_f cos((p_i - p_j) theta_f) / sqrt(head_dim). As in the
    reference it is not clamped, and it may cross 0 far away.
    2. only the `top_heads` heads whose corrected attention from raters to the image is largest are
    averaged.
    3. nothing is merged, and positions stay as they were.

Budgets. T is published as tokens *leaving* a layer, and made by a list of tokens kept for each of
192, 128, 96, 64 of 576 (`LISTS`); each cut drops at least one token. The list is used as it is
for these T, 576 tokens, 32 layers and the default stages. Everywhere else the list whose T / 576 is
nearest to T / N (of equally near ones the larger) gives the shape: its numbers times the common
factor that brings the tokens leaving a layer nearest to T. "strict" scales the nearest list until T
tokens *enter* a layer and spends what is left (see `staged`). Merging makes the steps uneven, since
a token kept more can be a merged one less.

Deviations: version 1.0, whose number of tokens follows the rank of the attention matrix and not a
budget, is left out. The reference uses its lists for any number of tokens and layers. It has 14
heads fixed; here a decoder with no more heads than `top_heads` uses them all. Scaled rotary
embeddings are taken as unscaled by g. All text behind the last image rates when no token is above
the mean. Equal scores and densities go to the lower index, where the reference adds random noise to
the latter. All images are one pool. `newlines` of tiled pictures are visual tokens like others, as
in the reference ("candidates", see `staged`); "last" also keeps them out of w and of the sum that
chooses the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import Observation
from ..checks import demand, demand_count, demand_depths
from ..cost import DecoderShape
from ..indicators import text_relevance
from ..layout import Newlines, TokenLayout
from ..registry import register
from ..selection import Selection, precise, right_aligned
from ..staged import Cut, StagedPruner, StagedRun, Stages

#: Tokens kept at the three stages, for a target of 576 tokens and 32 layers.
LISTS: dict[str, dict[int, tuple[int, int, int]]] = {
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "plus": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
_LIST_TOKENS, _LIST_LAYERS, _LIST_STAGES = 576, 32, (3, 7, 16)
_RECYCLE = 0.3


@register
@dataclass(frozen=True, kw_only=True)
class SparseVLM(StagedPruner):
    """Settings of SparseVLM.

    version: "1.5" or "plus", see the module.
    stages: depths of the three cuts, in layers that have run.
    raters: the text tokens whose attention scores the visual ones, see the module.
    top_heads: of "plus": heads that are averaged; all of a decoder that has no more.
    positions: rotary positions "compact" or "original"; None for the version's own.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "sparsevlm"
    depths: ClassVar[tuple[str, ...]] = ("stages",)

    version: Literal["1.5", "plus"] = "1.5"
    stages: tuple[int, ...] = _LIST_STAGES
    raters: Literal["reference", "all", "last"] = "reference"
    top_heads: int = 14
    positions: Literal["compact", "original"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        demand_depths(self, "stages")
        stages = len(_LIST_STAGES)
        demand(self, "stages", len(self.stages) == stages, f"{stages} depths")
        demand_count(self, "top_heads", 1)
        known = self.positions in ("compact", "original", None)
        demand(self, "positions", known, "one of compact, original, None")

    @property
    def cut_depths(self) -> tuple[int, ...]:
        return self.stages

    def cuts(self, n_visual: int, shape: DecoderShape) -> tuple[Cut, ...]:
        target, lists = self.target_token_num, LISTS[self.version]
        if target >= n_visual:
            return ()
        budget = min(lists, key=lambda t: (abs(t * n_visual - target * _LIST_TOKENS), -t))
        shares = dict(zip(self.stages, lists[budget]))
        recycle = _RECYCLE if self.version == "1.5" else 0.0
        stages = Stages(n_visual, shape.layers, tuple(shares), recycle, strictly=True)
        at_home = (n_visual, shape.layers, self.stages) == (
            _LIST_TOKENS,
            _LIST_LAYERS,
            _LIST_STAGES,
        )
        if at_home and budget == target and not self.strict:
            return stages.cuts(lists[budget])
        most = n_visual / min(shares.values())
        keeps = stages.fit(
            lambda scale: [int(scale * most * share) for share in shares.values()],
            target,
            self.counted,
            spend=self.strict,
        )
        return stages.cuts(keeps)

    def start(self, layout: TokenLayout, shape: DecoderShape) -> SparseVLMRun:
        policy = self.positions or ("compact" if self.version == "1.5" else "original")
        return SparseVLMRun(self, layout, shape, policy)


class SparseVLMRun(StagedRun):
    """One prefill: `raters` (batch, rows), aligned at the right, True on the rows that count."""

    config: SparseVLM
    raters: Tensor

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        """Find the raters. Nothing is dropped."""
        rows = self.rows_at_cut(layout)
        if self.config.raters != "reference":
            tails = [min(tail, rows) for tail in layout.tail]
            self.raters = right_aligned(tails, rows, embeds.device)
        elif any(self.plans):
            self.raters = find_raters(layout, embeds, self.config.newlines)
            for i, plan in enumerate(self.plans):
                pairs = layout.n_visual[i] * layout.tail[i] if plan else 0
                self._flops[i] += 2 * pairs * embeds.shape[-1]
        return None

    def rows_at_cut(self, layout: TokenLayout) -> int:
        return 1 if self.config.raters == "last" else max(layout.tail)

    def flops_at_cut(self, layout: TokenLayout, sample: int) -> int:
        """The products of rotated all-ones queries and keys of the gravity correction."""
        if self.config.version == "1.5":
            return 0
        rows = min(self.rows_at_cut(layout), layout.tail[sample])
        return 2 * rows * layout.lengths[sample] * self.shape.head_dim

    def scores(self, observation: Observation, keep: Sequence[int]) -> Tensor:
        rows, layout = observation.rows, observation.layout
        assert rows is not None, "asked for at a cut"
        # Every sample's text is at the right edge, and no cut changes its length.
        raters = self.raters.to(rows.device)
        if self.config.version == "1.5":
            return text_relevance(rows, raters)
        shape, positions = self.shape, layout.positions(self.positions)
        pull = gravity(positions.to(rows), rows.shape[2], shape.head_dim, shape.rope_theta)
        rows = rows / pull[:, None]
        weight = raters.to(rows) / raters.sum(1, keepdim=True).clamp(min=1)
        per_head = (weight[:, None, None, :] @ rows)[:, :, 0]
        mass = (per_head * layout.candidates(self.config.newlines)[:, None, :]).sum(-1)
        order = mass.argsort(dim=1, descending=True, stable=True)[:, : self.config.top_heads]
        return per_head.gather(1, order[..., None].expand(-1, -1, layout.n)).mean(1)


def find_raters(layout: TokenLayout, embeds: Tensor, newlines: Newlines = "candidates") -> Tensor:
    """Which text tokens behind a sample's last image rate its tokens: (batch, longest tail).

    embeds: (batch, n, d), input embeddings; newlines: "candidates" if those are of V. Rows are
    aligned at the right; False on what is not a sample's own, and everywhere for a sample without
    visual tokens.
    """
    width = max(layout.tail)
    states = precise(embeds)
    logits = states @ states[:, -width:].transpose(1, 2)
    counts = behind = None
    if min(layout.tail) < width:
        counts = torch.tensor(layout.tail, device=embeds.device)[:, None]
        behind = torch.arange(width, 0, -1, device=embeds.device) <= counts
        # A sample without visual tokens has no text to look at; its rows are masked below.
        logits = logits.masked_fill(~(behind | (counts == 0))[:, None, :], -torch.inf)
    visual = layout.candidates(newlines).to(embeds.device)[..., None]
    weight = (logits.softmax(-1) * visual).sum(1) / visual.sum(1).clamp(min=1)
    above = weight > (1 / width if counts is None else 1 / counts.clamp(min=1))
    if behind is None:
        return above | ~above.any(1, keepdim=True)
    above = above & behind
    return torch.where(above.any(1, keepdim=True), above, behind)


def gravity(positions: Tensor, queries: int, head_dim: int, theta: float) -> Tensor:
    """Logits of all-ones queries and keys under rotary positions: (batch, queries, n).

    positions: (batch, n), of the dtype of the result; queries: how many, the last ones. Equal to
    2 sum_f cos((p_i - p_j) theta_f) / sqrt(head_dim), theta_f = theta^(-2 f / head_dim),
    f = 0 .. head_dim / 2 - 1.
    """
    even = torch.arange(0, head_dim, 2, device=positions.device)
    exponent = even.to(positions.dtype) / head_dim
    angle = positions[..., None] * theta**-exponent
    turned = torch.cat([angle.cos(), angle.sin()], -1)
    logits: Tensor = turned[:, -queries:] @ turned.transpose(1, 2) * (2 / head_dim**0.5)
    return logits
