"""One prefill of AutoPrune: the pre-selection, the complexity of the samples, the schedule's cuts.

The complexity is what one layer shows by a measure of `indicators`, over the settings' text rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import schedules
from ...base import Observation, PrunerRun
from ...checks import demand_text_behind
from ...cost import DecoderShape
from ...indicators import (
    cosine_similarity,
    mean_attention,
    mutual_information,
    text_relevance,
)
from ...layout import TokenLayout
from ...selection import Selection
from ...selectors import keep_top
from .budget import budget, solve_plan
from .preselection import cls_scores, novel_first
from .settings import AutoPruneSettings


class AutoPruneRun(PrunerRun):
    """State of one prefill: the schedules, once the indicator is known."""

    def __init__(self, config: AutoPruneSettings, layout: TokenLayout, shape: DecoderShape) -> None:
        self.config, self.shape = config, shape
        self.positions = config.positions
        if config.mi_layer >= shape.layers:
            raise ValueError(f"mi_layer {config.mi_layer} of a decoder of {shape.layers} layers")
        if config.prune_every > shape.layers:
            raise ValueError(
                f"prune_every must be at most the {shape.layers} layers of this decoder, got "
                f"{config.prune_every}"
            )
        demand_text_behind(config.method, layout)
        self.n_text = [n - v for n, v in zip(layout.lengths, layout.n_visual)]
        self.configs = [config.resolved(sizes) for sizes in layout.sizes]
        self.targets = config.targets_in_images(layout.sizes)
        self.budgets = [
            budget(resolved, shape, visual, text) if visual else None
            for resolved, visual, text in zip(self.configs, layout.n_visual, self.n_text)
        ]
        # A sample is left alone when it has no visual tokens or fewer than it may keep.
        self.active = [
            b is not None and b.tokens < v for b, v in zip(self.budgets, layout.n_visual)
        ]
        without = config.cuts_layer_0 and layout.mixed
        if any(self.active) and config.needs_cls and layout.cls is None and not without:
            raise ValueError(
                "the pre-selection ranks patches by the vision tower's CLS attention, which this "
                "model does not give; set preselect_ratio to none (--set preselect_ratio=none)"
            )
        self._flops: list[int] = []  # of a pre-selection that compares patches
        self.plans: list[schedules.Plan | None] = []
        self.measured: list[dict[str, float]] = []
        if config.indicator == "static" and any(self.active):
            self._schedule([0.0] * layout.batch)

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        """The pre-selection, where it comes before layer 0."""
        if not self.config.cuts_entry or not any(self.active):
            return None
        keep, scores = self._preselected(layout), cls_scores(self.config, layout)
        candidates = self._candidates(layout, keep)
        if any(candidates):
            width = embeds.shape[-1]
            self._flops = [2 * count * count * width for count in candidates]
            scores = novel_first(layout, scores, embeds, candidates)
        return keep_top(layout, scores, keep, targets=self.targets)

    def _candidates(self, layout: TokenLayout, keep: Sequence[int]) -> list[int]:
        """How many patches of each sample compete; none where all stay, or the score alone says."""
        share = self.config.preselect_candidates
        return [
            min(int(share * count), n) if share > 1 and count < n else 0
            for count, n in zip(keep, layout.n_visual)
        ]

    def scoring_flops(self) -> list[int]:
        return self._flops

    def rows(self, layer: int, layout: TokenLayout) -> int:
        return max(layout.tail) if any(self.needed_by(layer, layout)) else 0

    def needed_by(self, layer: int, layout: TokenLayout) -> list[bool]:
        if layer == 0 and self.config.cuts_layer_0:
            return self.active
        if not self.plans:
            return [active and layer == self.config.mi_layer for active in self.active]
        return [p is not None and p.keep[layer] < p.entering[layer] for p in self.plans]

    def leaving(self, layer: int, layout: TokenLayout) -> list[int] | None:
        config = self.config
        if layer == config.mi_layer and not self.plans:
            # How many is known once the rows are: many, if the budget is what it is for.
            looks = config.indicator == "cosine_similarity" and any(self.active)
            pairs = zip(layout.n_visual, self.active)
            return None if looks else [n if active else 0 for n, active in pairs]
        if layer == 0 and config.cuts_layer_0:
            return [n - keep for n, keep in zip(layout.n_visual, self._preselected(layout))]
        if not self.plans:
            return [0] * layout.batch
        return [
            0 if p is None else n - p.keep[layer] - p.pools[layer]
            for p, n in zip(self.plans, layout.n_visual)
        ]

    def _preselected(self, layout: TokenLayout) -> list[int]:
        """What the pre-selection keeps of each sample."""
        return [
            min(b.start, n) if b is not None and active else n
            for b, n, active in zip(self.budgets, layout.n_visual, self.active)
        ]

    def after_layer(self, observation: Observation) -> Selection | None:
        layer, layout = observation.layer, observation.layout
        if observation.rows is None:
            return None
        if layer == self.config.mi_layer and not self.plans:
            # Waits for the device: the only place that has to.
            self._schedule(indicator(self.config, observation).tolist())
        if layer == 0 and self.config.cuts_layer_0:
            keep = self._preselected(layout)
            return keep_top(layout, self._first_scores(observation), keep, targets=self.targets)
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
            positions=self.positions,
        )

    def _first_scores(self, observation: Observation) -> Tensor:
        """CLS attention + 0.3 M0 x text attention, M0 = MI of layer 0 over heads / N_t.

        Text attention alone where the tokens have no CLS attention.
        """
        layout, config = observation.layout, self.config
        rows, mask = observation.measured()
        if layout.mixed and layout.cls is None:
            return text_relevance(rows, mask)
        n_text = rows.shape[2] if mask is None else mask.sum(-1).clamp(min=1)
        weight = config.preselect_text * information(config, observation) / n_text
        return cls_scores(config, layout) + weight[:, None] * text_relevance(rows, mask)

    def _schedule(self, measured: Sequence[float]) -> None:
        """Solve every sample's schedule for its value of the indicator; 0 where static."""
        config = self.config
        static = config.indicator == "static"
        name = {"mutual_information": "mi"}.get(config.indicator, config.indicator)
        for i, value in enumerate(measured):
            sample_budget = self.budgets[i]
            if sample_budget is None or not self.active[i]:
                self.plans.append(None)
                self.measured.append({})
                continue
            k = config.k0 - config.gamma * value
            k = max(k, 0.0) if config.clamp_slope else k
            shift = k if config.inflection == "slope" else config.beta * value
            x0 = config.x0 if static else config.x0 + shift
            plan = solve_plan(self.configs[i], self.shape, sample_budget, k, x0)
            self.plans.append(plan)
            known = {} if static else {name: value}
            self.measured.append({**known, "k": k, "x0": x0, "scale": plan.scale})

    def complexity(self) -> list[dict[str, float]]:
        return self.measured


def indicator(config: AutoPruneSettings, observation: Observation) -> Tensor:
    """What `config.indicator` names, of each sample: (batch,). Static runs measure nothing."""
    rows, mask = text_rows(observation, config.mi_rows)
    visual = observation.layout.is_patch
    if config.indicator == "mean_attention":
        return mean_attention(rows, mask, visual)
    if config.indicator == "cosine_similarity":
        mask = torch.ones_like(rows[:, 0, :, 0], dtype=torch.bool) if mask is None else mask
        return cosine_similarity(observation.returned(), mask, visual)
    return information(config, observation)


def information(config: AutoPruneSettings, observation: Observation) -> Tensor:
    """Mutual information of each sample, summed or averaged over heads: (batch,)."""
    rows, mask = text_rows(observation, config.mi_rows)
    heads = mutual_information(
        rows,
        mask,
        observation.layout.is_patch,
        normalise=config.normalise_rows,
        eps=config.mi_eps,
        base=config.log_base,
    )
    return heads.sum(-1) if config.mi_heads == "sum" else heads.mean(-1)


def text_rows(observation: Observation, which: str) -> tuple[Tensor, Tensor | None]:
    """The measured rows and their mask ("text"), or only those of the last token ("last")."""
    rows, mask = observation.measured()
    if which == "text":
        return rows, mask
    return rows[:, :, -1:], None if mask is None else mask[:, -1:]
