"""DART: one cut early in the decoder, which drops what duplicates a few pivot tokens.

Paper: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
EMNLP 2025, arXiv 2502.11494. Reference implementation: ZichenWen1/DART, known through the fork
xqy1111111/DART at d6a5af6. After K = 2 layers:

    pivots     the 4 visual and the 4 text tokens behind the image with the largest L1 norm of
               their rotated keys in layer K-1, all heads together
    features   the output of layer K-1 through the norm before the output head
    for each pivot in turn: the q candidates with the *lowest* cosine to it stay, and are no
               longer candidates
    T = 8 q: 4 visual pivots and 8 q other visual tokens stay, T + 4 in all for T = 192, 128, 64

`budget_mode` "published" has q = floor(T / 8), so 196/132/68 tokens stay and 219.8/159.8/99.8 enter
a layer on average. "strict" solves the number that stays so that T enter; what 8 does not divide
goes to the first pivots, one each. One cut cannot spend single tokens over layers: the total is
within (L - K) / 2 tokens of L T.

Deviations: the reference takes the pivots in the order of a Python set; here visual pivots come
first, then text pivots, each by falling norm. Where fewer than 4 text tokens follow the image, the
same number of tokens is divided among the pivots there are. With several images, text pivots come
from the text behind the last one, and all images are one pool. Its LLaVA-NeXT switches are not
here: T means the same for every number of tokens. Equal values go to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..base import Observation
from ..checks import demand, demand_count
from ..cost import DecoderShape
from ..layout import TokenLayout
from ..registry import register
from ..selection import precise, take
from ..staged import Cut, StagedPruner, StagedRun, Stages, fit_single

_MOST_PIVOTS = 10_000  # more than an image has tokens


@register
@dataclass(frozen=True, kw_only=True)
class DART(StagedPruner):
    """Settings of DART.

    depth: K, the layers that run with every token.
    image_pivots, text_pivots: how many tokens the others are compared with.
    positions: rotary positions "original" (reference) or "compact".

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "dart"
    depths: ClassVar[tuple[str, ...]] = ("depth",)

    depth: int = 2
    image_pivots: int = 4
    text_pivots: int = 4
    positions: Literal["original", "compact"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand_count(self, "depth", 1)
        demand_count(self, "image_pivots", 1)
        demand_count(self, "text_pivots", 0)
        for field in ("image_pivots", "text_pivots"):
            demand(self, field, getattr(self, field) <= _MOST_PIVOTS, f"at most {_MOST_PIVOTS:,}")

    @property
    def cut_depths(self) -> tuple[int, ...]:
        return (self.depth,)

    def cuts(self, n_visual: int, shape: DecoderShape) -> tuple[Cut, ...]:
        target = int(self.target_token_num)
        if target >= n_visual:
            return ()
        if self.strict:
            keep = fit_single(n_visual, shape.layers, self.depth, target)
        else:
            pivots = self.image_pivots + self.text_pivots
            keep = self.image_pivots + target // pivots * pivots
        return Stages(n_visual, shape.layers, (self.depth,)).cuts([keep])

    def start(self, layout: TokenLayout, shape: DecoderShape) -> DARTRun:
        return DARTRun(self, layout, shape, self.positions)


class DARTRun(StagedRun):
    """One prefill."""

    needs_output = True

    config: DART

    def _pivots(self, keep: int, tail: int) -> tuple[int, int]:
        """Visual and text pivots of a sample that keeps `keep` tokens, `tail` of text behind."""
        return min(self.config.image_pivots, keep), min(self.config.text_pivots, tail)

    def flops_at_cut(self, layout: TokenLayout, sample: int) -> int:
        """One product of width d for each pivot and visual token, and the norms of the keys."""
        visual, tail, shape = layout.n_visual[sample], layout.tail[sample], self.shape
        keep = self.plans[sample][self.config.depth - 1].keep
        norms = (visual + tail) * shape.kv_heads * shape.head_dim
        return 2 * sum(self._pivots(keep, tail)) * visual * shape.hidden + norms

    def scores(self, observation: Observation, keep: Sequence[int]) -> Tensor:
        """1 on the tokens that stay, 0 on the others; a sample that keeps all may have any."""
        config, layout = self.config, observation.layout
        device, n = layout.image.device, layout.n
        counts = [self._pivots(k, t) for k, t in zip(keep, layout.tail)]
        shares = [_shares(k, *pair, config) for k, pair in zip(keep, counts)]

        assert observation.keys is not None, "the decoder gives the keys of every layer"
        norms = precise(observation.keys).abs().sum((1, 3))
        column = torch.arange(n, device=device)
        behind = column >= n - torch.tensor(layout.tail, device=device)[:, None]
        visual = layout.is_patch
        image = _largest(norms, visual, config.image_pivots)
        pivots = torch.cat([image, _largest(norms, behind, config.text_pivots)], 1)

        features = normalize(precise(observation.looked_ahead().final_norm()), dim=-1)
        cosine = take(features, pivots) @ features.transpose(1, 2)
        chosen = torch.zeros_like(visual)
        image_pivots = torch.tensor([pair[0] for pair in counts], device=device)[:, None]
        chosen = _choose(chosen, image, image_pivots)
        taken = torch.tensor(shares, device=device)
        for pivot in range(pivots.shape[1]):
            free = visual & ~chosen
            order = cosine[:, pivot].masked_fill(~free, torch.inf).argsort(dim=1, stable=True)
            chosen = _choose(chosen, order, taken[:, pivot, None])
        return chosen.float()


def _shares(keep: int, image: int, text: int, config: DART) -> list[int]:
    """How many tokens each of the pivots chooses, 0 for those that are not there."""
    each, left = divmod(keep - image, max(image + text, 1))
    shares = [each + (i < left) for i in range(image + text)]
    gap = [0] * (config.image_pivots - image)
    return [*shares[:image], *gap, *shares[image:], *[0] * (config.text_pivots - text)]


def _largest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Columns (batch, count) of the largest `values` (batch, n) where `among`; others follow."""
    order = values.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, torch.arange(count, device=order.device).clamp(max=order.shape[1] - 1)]


def _choose(chosen: Tensor, order: Tensor, count: Tensor) -> Tensor:
    """`chosen` with the first `count` (batch, 1) of the columns `order` True as well."""
    first = torch.arange(order.shape[1], device=order.device) < count
    return chosen.scatter(1, order, chosen.gather(1, order) | first)
