"""ToMe: similar tokens merge inside the vision tower, a few in each layer.

Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461, ICLR 2023; reference:
github.com/facebookresearch/ToMe at af95e4b (2023-03-30). The rows "ToMe" of the tables that compare
pruning of LLaVA go back to SparseVLM's paper; no released code makes them. The schedule is ours.

Between attention and MLP of each layer that runs, t tokens with CLS first:
    1. k_i = the layer's keys of token i, mean over heads, scaled to length 1.
    2. A = tokens at even places (CLS is the first), B = tokens at odd places. Each of A but CLS has
       an edge to the one of B whose k has the highest product with its own.
    3. The r highest edges merge: the token of B becomes the mean of itself and of all that came
       to it, weighted by size; its size is the sum. Sizes start at 1.
    4. The order is now: what is left of A, as it was, then B. Spatial order is lost.
    5. From then on log(size_j) is added to the attention scores of key j ("proportional
       attention"), so that a token weighs as many as it stands for.

Schedule: exactly T of N patches are left behind the L layers that run. Each removes N - T over L,
rounded down or up, the lower numbers first. With 576 patches and 23 layers, LLaVA-1.5:
    T = 192: 7 x 16, 16 x 17      T = 128: 12 x 19, 11 x 20      T = 64: 17 x 22, 6 x 23
A layer can merge at most its A without CLS, floor((t - 1) / 2). A T below what this allows, 24
there, is refused; the reference clips r and leaves more tokens than asked for.

CLS never merges and is dropped behind the tower. The decoder gets the tokens in the order they
come out in, at contiguous positions. A merged token has the patch id of the token of B that it grew
from. Exactly T tokens are in every layer of the decoder, so the two ways of counting T, `published`
and `strict`, mean the same. A sample with no more than T patches keeps all; in a batch its images
still run without merging. Images that keep equally many run together.

The reference is no LLaVA. Of a tiled picture each view merges by itself, with a merge type that has
no newlines.

Deviations from the reference:
- r makes T exact; the reference has a constant, a ramp or a list of its user's.
- Similarities and means are float32.
- Of equal edges, and of equal partners, the first in order counts as the higher. The reference's
  sort is not stable.

The port in ModelTC/LightCompress differs in more: r = 16 throughout, which leaves LLaVA 208 patches
and not the 192 it states, sizes that are forgotten from layer to layer, and no proportional
attention. The last is a field: with `proportional_attention=False` nothing is added to the scores,
and flash attention works too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..base import PrunerRun
from ..budget import Budgeted
from ..checks import BudgetError
from ..cost import DecoderShape, TowerShape
from ..layout import TokenLayout
from ..registry import register
from ..selection import precise, take
from ..tower import TowerPruned, view_counts
from ..vision import Groups, TowerRun


@register
@dataclass(frozen=True, kw_only=True)
class ToMe(Budgeted):
    """Settings of `Budgeted`, and `proportional_attention`: step 5."""

    method: ClassVar[str] = "tome"
    merges_in_tower: ClassVar[bool] = True

    proportional_attention: bool = True

    def tower_runs(self, groups: Groups, patches: int, ran: int) -> list[Merging] | None:
        """One run for each number of tokens that an image may keep.

        Raises ValueError where an image may keep fewer than the tower can merge it into.
        """
        counts = view_counts(self, patches, groups)
        if min(counts, default=patches) == patches:
            return None
        runs = {
            count: Merging(schedule(patches, count, ran), self.proportional_attention)
            for count in dict.fromkeys(counts)
        }
        return [runs[count] for count in counts]

    def scoring(self, count: int, tower: TowerShape) -> int:
        """Multiply-accumulates of the products of A and B in one image."""
        removed = schedule(tower.patches, count, tower.layers)
        pairs = sum(
            (t + 1) // 2 * (t // 2) for t, r in zip(entering(tower.patches, removed), removed) if r
        )
        return pairs * (tower.hidden // tower.heads)

    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        """Nothing is left to do in the decoder."""
        return TowerPruned(self, self.scoring, layout, shape)


def schedule(patches: int, count: int, layers: int) -> list[int]:
    """How many tokens each layer removes, so that `count` of `patches` are left.

    Raises BudgetError, naming the least that can be left, where a layer would have to remove more
    than it can merge.
    """
    if _possible(patches, removed := _evenly(patches - count, layers)):
        return removed
    floor = next(
        c for c in range(count, patches + 1) if _possible(patches, _evenly(patches - c, layers))
    )
    raise BudgetError(
        f"tome cannot merge the {patches} patches of an image into {count} in {layers} layers, of "
        f"which each merges at most half of its tokens: {floor} is the least. Raise "
        f"target_token_num to {floor} for each image of a sample"
    )


def entering(patches: int, removed: Sequence[int]) -> Iterator[int]:
    """How many tokens enter each layer, CLS included."""
    tokens = 1 + patches
    for r in removed:
        yield tokens
        tokens -= r


def _evenly(total: int, layers: int) -> list[int]:
    low, more = divmod(total, layers)
    return [low] * (layers - more) + [low + 1] * more


def _possible(patches: int, removed: Sequence[int]) -> bool:
    return all(r <= (t - 1) // 2 for t, r in zip(entering(patches, removed), removed))


class Merging(TowerRun):
    """One pass of images through the tower; layer l removes `removed[l]` of their tokens.

    A run serves one batch: it holds the sizes and the patch ids of the tokens.
    """

    def __init__(self, removed: Sequence[int], proportional: bool) -> None:
        self._removed = removed
        self._proportional = proportional
        self._size: Tensor | None = None
        self._patch: Tensor | None = None

    def bias(self) -> Tensor | None:
        """Logarithm of the tokens' sizes; None while nothing has merged."""
        if self._size is None or not self._proportional:
            return None
        return self._size.log()[:, None, None, :]

    def patch(self) -> Tensor:
        assert self._patch is not None, "patches are known once a layer ran"
        return self._patch[:, 1:]

    def after_attention(self, layer: int, hidden: Tensor, keys: Tensor) -> Tensor:
        images, tokens, _ = hidden.shape
        if self._patch is None:
            # CLS has no patch; its entry is never read.
            self._patch = torch.arange(-1, tokens - 1, device=hidden.device).expand(images, -1)
        r = self._removed[layer]
        if not r:
            return hidden
        states, size = precise(hidden), self._size
        if size is None:
            size = states.new_ones(images, tokens)

        unit = normalize(precise(keys).mean(1), dim=-1)
        similarity = unit[:, ::2] @ unit[:, 1::2].mT
        similarity[:, 0] = -torch.inf
        edge, partner = similarity.max(-1)
        order = edge.argsort(dim=1, descending=True, stable=True)
        merged, left = order[:, :r], order[:, r:].sort(dim=1).values

        # A sum as a product with zeros and ones: unlike scatter_add it repeats exactly on a GPU.
        target = partner.gather(1, merged)
        slots = torch.arange(similarity.shape[2], device=hidden.device)
        joins = (target[:, None, :] == slots[:, None]).to(size)
        sizes_a, sizes_b = size[:, ::2], size[:, 1::2]
        weighted = states * size[..., None]
        total = weighted[:, 1::2] + joins @ take(weighted[:, ::2], merged)
        sizes_b = sizes_b + (joins @ sizes_a.gather(1, merged)[..., None])[..., 0]
        means = (total / sizes_b[..., None]).to(hidden.dtype)

        self._size = torch.cat([sizes_a.gather(1, left), sizes_b], 1)
        a, b = self._patch[:, ::2], self._patch[:, 1::2]
        self._patch = torch.cat([a.gather(1, left), b], 1)
        return torch.cat([take(hidden[:, ::2], left), means], 1)
