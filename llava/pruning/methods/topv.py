"""TopV: one early cut by optimal transport, without attention.

Paper: "TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory
Multimodal Vision Language Model", CVPR 2025, arXiv 2503.18278. At one early layer, the `layer`-th
(the second in the paper's main setting, as in FastV), the visual tokens s_i that enter it are
transported onto the normed tokens t_j that it makes of them, at a cost of three terms,

    F_ij = |s_i - t_j|^2                             how unlike they are
    D_ij = 1 - exp(-|p_i - p_j|^2 / (2 sigma^2))     how far apart they are on the picture
    E_ij = |p_i - centre|                            how far out the source is
    C    = feature_weight F' + distance_weight D' + centre_weight E'

with p the place of a patch in its grid, and X' the term X less its mean, over its standard
deviation, both over all pairs of the image. Entropic optimal transport, by Sinkhorn's iterations,
gives a plan P; the importance of a token is its total contribution sum_j P_ij. The least important
are dropped from what leaves the layer, and some of the dropped ones come back at even steps, so
that no part of the picture is lost altogether.

**The constants are our own**, and so is what a table says of it, which is why its name there is
"topv (own constants)". No public code was found, nor the weights, epsilon, sigma, how the terms are
scaled, how many come back, and the counts at 192, 128 and 64. The forms of the terms, three
iterations, and that a large contribution is what makes a token stay, are as two readers of the
paper tell them. What was chosen here:
- t_j is what the layer returns, through the first norm of the next layer. The paper takes the norm
  between the layer's attention and its MLP, which a method cannot see here.
- The three terms have equal spread and weights of 1. With each term scaled to [0, 1] instead, and
  F by cosine, the method was a crop of the centre: on random features importance correlated with
  nearness to the centre by 0.9, here by 0.6 at most; on the embedded model a patch that shows an
  object stayed 0.6 times as often as any, here 2.9 times (a dozen scenes, 128 of 576 kept).
- All targets have the mass 1/n. The masses of the sources are not fixed but pulled towards 1/n by
  a Kullback-Leibler term of weight `relax` (unbalanced transport): with fixed masses every source
  would contribute 1/n, whatever the costs, and a term that depends on the source alone, as the
  last one does, would change nothing. The update of a source is then raised to the power
  relax / (relax + epsilon), and the last update is that of the targets.
- Of the tokens kept, the share `recover` (rounded down) is taken of the dropped ones, at the
  centres of so many equal parts of their order.
- Several images: transport stays within an image, and the images share the sample's tokens as in
  `entry`. Where the tokens are no square grid they lie on a line.
- Rotary positions stay ("original").

Counting T: all N tokens enter the first `layer` layers, n the others, and n leave layer `layer - 1`
already. "published" is the mean of tokens leaving a layer, "strict" of tokens entering it; n is
rounded down, so the mean is at most T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import Observation, PrunerRun
from ..budget import Budgeted
from ..checks import demand, demand_later_layers
from ..cost import DecoderShape
from ..entry import ImageTokens, find_images, select_in_images
from ..layout import TokenLayout
from ..registry import register
from ..selection import Selection, precise
from ..solver import down
from ..staged import fit_single
from .uniform_grid import centres

_MOST_ITERATIONS = 10_000  # it settles long before


@register
@dataclass(frozen=True, kw_only=True)
class TopV(Budgeted):
    """Settings of TopV, see the module.

    target_token_num: visual tokens per layer on average, counted as budget_mode says.
    layer: how many layers process all tokens, at least 1 and fewer than there are.
    sigma: reach of "near" on the picture, as a share of the grid's diagonal.
    epsilon: weight of the plan's entropy, in units of a term's standard deviation.
    iterations: of Sinkhorn, each updating sources and targets.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "topv"
    label: ClassVar[str] = "topv (own constants)"
    needs_grid: ClassVar[bool] = True
    depths: ClassVar[tuple[str, ...]] = ("layer",)
    fractional: ClassVar[bool] = True

    layer: int = 2
    feature_weight: float = 1.0
    distance_weight: float = 1.0
    centre_weight: float = 1.0
    sigma: float = 0.2
    epsilon: float = 0.3
    relax: float = 0.1
    iterations: int = 3
    recover: float = 0.1
    positions: Literal["compact", "original"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, "layer", self.layer >= 1, "at least 1")
        ok = 1 <= self.iterations <= _MOST_ITERATIONS
        demand(self, "iterations", ok, f"from 1 to {_MOST_ITERATIONS:,}")
        for field in ("feature_weight", "distance_weight", "centre_weight", "relax"):
            demand(self, field, getattr(self, field) >= 0, "0 or more")
        for field in ("epsilon", "sigma"):
            demand(self, field, getattr(self, field) > 0, "above 0")
        demand(self, "recover", 0 <= self.recover <= 1, "between 0 and 1")

    def start(self, layout: TokenLayout, shape: DecoderShape) -> TopVRun:
        """Raises ValueError for a layer that the decoder lacks and a budget below the floor."""
        return TopVRun(self, layout, shape)


class TopVRun(PrunerRun):
    """One prefill: everything happens after the first `layer` layers."""

    def __init__(self, config: TopV, layout: TokenLayout, shape: DecoderShape) -> None:
        self.config = config
        self.positions = config.positions
        demand_later_layers(config.method, "layer", config.layer, shape.layers)
        self.keep = [
            _count(config.resolved(sizes), shape.layers, visual)
            for sizes, visual in zip(layout.sizes, layout.n_visual)
        ]
        self.targets = config.targets_in_images(layout.sizes)
        self._entering: Tensor | None = None
        self._images: list[list[ImageTokens]] = []
        self._flops = [0] * layout.batch

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        """Only looks: with one layer, these are what enters it. Waits for the device, to see the
        images, while it has nothing else to do."""
        if tuple(self.keep) == layout.n_visual:
            return None
        self._images = find_images(layout)
        if self.config.layer == 1:
            self._entering = embeds
        return None

    def scoring_flops(self) -> list[int]:
        return self._flops

    def leaving(self, layer: int, layout: TokenLayout) -> list[int] | None:
        return None if layer < self.config.layer else [0] * layout.batch

    def after_layer(self, observation: Observation) -> Selection | None:
        """Waits for the device once, to see what is important."""
        config, layout = self.config, observation.layout
        if tuple(self.keep) == layout.n_visual:
            return None
        if observation.layer == config.layer - 2:
            self._entering = observation.hidden
        if observation.layer != config.layer - 1:
            return None
        assert self._entering is not None, "seen before the layer of the cut"
        targets = observation.looked_ahead().next_norm()
        importance = self._importance(self._entering, targets)
        self._entering = None

        def choose(sample: int, image: ImageTokens, count: int) -> list[int]:
            n, width = len(image), targets.shape[-1]
            # Distances, and two sums over the plan an iteration: a product and an addition a pair.
            self._flops[sample] += 2 * n * n * width + 4 * config.iterations * n * n
            return with_recovered(importance[sample, image.columns[0]], count, config.recover)

        return select_in_images(layout, self.keep, choose, self.targets, self._images)

    def _importance(self, sources: Tensor, targets: Tensor) -> dict[tuple[int, int], list[float]]:
        """What the tokens of each image give of its plan, by its sample and first column."""
        alike: dict[tuple[int, int | None], list[tuple[int, ImageTokens]]] = {}
        for sample, images in enumerate(self._images):
            for image in images:
                if len(image) and self.keep[sample] < sum(len(i) + i.newlines for i in images):
                    alike.setdefault((len(image), image.side), []).append((sample, image))
        # Images of one shape go through the transport together.
        given = []
        for (_, side), group in alike.items():
            source, target = (
                torch.stack([states[sample, image.span] for sample, image in group])
                for states in (sources, targets)
            )
            cost = costs(self.config, source, target, side)
            given.append(contributions(self.config, cost).flatten())
        flat = iter(torch.cat(given).tolist())
        return {
            (sample, image.columns[0]): list(islice(flat, len(image)))
            for group in alike.values()
            for sample, image in group
        }


def _count(config: TopV, layers: int, visual: int) -> int:
    """Visual tokens that a sample of `visual` keeps at the cut.

    Raises BudgetError when not even one is affordable.
    """
    target = config.target_token_num
    if target >= visual:
        return visual
    return fit_single(visual, layers, config.layer, target, config.counted, down)


@torch.no_grad()
def costs(config: TopV, source: Tensor, target: Tensor, side: int | None) -> Tensor:
    """C (..., n, n) of the tokens (..., n, d) of images; `side` as in `ImageTokens`."""
    apart, out = places(source.shape[-2], side, config.sigma, source.device)
    cost = config.feature_weight * spread(unlikeness(source, target))
    return cost + config.distance_weight * spread(apart) + config.centre_weight * spread(out)


def unlikeness(source: Tensor, target: Tensor) -> Tensor:
    """F (..., n, n), at least float32, of the tokens (..., n, d)."""
    source, target = precise(source), precise(target)
    lengths = source.square().sum(-1)[..., :, None] + target.square().sum(-1)[..., None, :]
    return lengths - 2 * source @ target.mT


def places(n: int, side: int | None, sigma: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """D and E (n, n), float32, of n places row by row, `sigma` a share of their diagonal."""
    index, width = torch.arange(n, device=device), side or n
    place = torch.stack([index // width, index % width], 1).float()
    # Between the grid's outermost places; a single token is at the centre.
    diagonal = max(math.hypot((n - 1) // width, (n - 1) % width), 1.0)
    apart = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist") / diagonal
    out = (place - (place[0] + place[-1]) / 2).norm(dim=1)
    return 1 - torch.exp(-((apart / sigma) ** 2) / 2), out[:, None].expand(n, n)


def spread(term: Tensor) -> Tensor:
    """The term (..., n, n) with mean 0 and standard deviation 1; 0 where it is the same for all."""
    term = term - term.mean((-2, -1), keepdim=True)
    deviation = term.square().mean((-2, -1), keepdim=True).sqrt()
    # What is left of equal numbers is rounding, of their own size.
    return term / deviation.clamp(min=1e-6)


@torch.no_grad()
def contributions(config: TopV, cost: Tensor) -> Tensor:
    """What each source gives of the plan for `cost` (..., sources, targets): (..., sources), which
    sum to 1."""
    scores = -cost / config.epsilon
    source_mass, target_mass = (-math.log(n) for n in cost.shape[-2:])
    power = config.relax / (config.relax + config.epsilon)
    targets = scores.new_zeros(*scores.shape[:-2], 1, scores.shape[-1])
    for _ in range(config.iterations):
        sources = power * (source_mass - (scores + targets).logsumexp(-1, keepdim=True))
        targets = target_mass - (scores + sources).logsumexp(-2, keepdim=True)
    return (scores + sources + targets).exp().sum(-1)


def with_recovered(importance: Sequence[float], count: int, share: float) -> list[int]:
    """Indices of the most important and, `share` of `count` of them, of the rest at even steps.

    0 <= count < len(importance). Ties go to the lower index.
    """
    recovered = int(share * count)
    order = sorted(range(len(importance)), key=lambda i: -importance[i])
    kept = order[: count - recovered]
    dropped = sorted(order[count - recovered :])
    return [*kept, *(dropped[place] for place in centres(len(dropped), recovered))]
