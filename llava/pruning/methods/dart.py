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

`pivot_order` is "set" (the default), as the reference runs: in the order in which CPython iterates
the set of their places in the prompt, filled with the visual pivots by falling norm and then with
the text pivots. It follows from the places alone, but moves with the number of tokens before the
image. "norm": the visual pivots, then the text pivots, each by falling norm.

`newlines` of tiled pictures may be pivots and are candidates, as in the reference, or neither of
these ("last"), see `staged`.

Deviations: where fewer than 4 text tokens follow the image, the same number of tokens is divided
among the pivots there are. With several images, text pivots come from the text behind the last one,
and all images are one pool. Its LLaVA-NeXT switches are not here: T means the same for every number
of tokens. Equal values go to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

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
    pivot_order: in which order the pivots choose, see the module.
    positions: rotary positions "original" (reference) or "compact".

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "dart"
    depths: ClassVar[tuple[str, ...]] = ("depth",)

    depth: int = 2
    image_pivots: int = 4
    text_pivots: int = 4
    pivot_order: Literal["set", "norm"] = "set"
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
        layout, n = observation.layout, observation.layout.n
        counts, choices = self._choices(layout, keep)
        tail, image_count, *shares = (max(column) for column in zip(*choices))
        text_count = len(shares) - image_count

        assert observation.keys is not None, "the decoder gives the keys of every layer"
        norms = observation.keys.abs()
        norms = norms.sum((1, 3), dtype=None if norms.dtype.itemsize > 2 else torch.float32)
        # Counts that differ from sample to sample go to the device, all in one copy.
        beyond = None
        if len(set(choices)) > 1:
            limits = torch.tensor(choices, device=norms.device)[..., None]
            width = max(tail, image_count, *shares)
            beyond = torch.arange(width, device=norms.device) >= limits

        other = ~layout.candidates(self.config.newlines)
        image = _descending(norms.masked_fill(other, -torch.inf), image_count)
        pivots = image
        if text_count:
            behind = norms[:, n - tail :]
            if beyond is not None:
                behind = behind.masked_fill(beyond[:, 0, :tail].flip(1), -torch.inf)
            pivots = torch.cat([image, _descending(behind, text_count) + (n - tail)], 1)
        pivots = self._in_order(layout, pivots, counts, image_count)

        features = normalize(precise(observation.looked_ahead().final_norm()), dim=-1)
        cosine = take(features, pivots) @ features.transpose(1, 2)
        # Infinite on what is chosen, and on what cannot be: it sorts behind all that is free.
        cosine = cosine.masked_fill(other[:, None], torch.inf)
        if beyond is not None:
            # One more column, for choices beyond a sample's own number.
            cosine = pad(cosine, (0, 1), value=torch.inf)
            image = image.masked_fill(beyond[:, 1, :image_count], n)
        _exclude(cosine, image)
        for pivot, count in enumerate(shares):
            if count:
                farthest = cosine[:, pivot].argsort(dim=1, stable=True)[:, :count]
                if beyond is not None:
                    farthest = farthest.masked_fill(beyond[:, pivot + 2, :count], n)
                _exclude(cosine, farthest)
        return (cosine[:, 0, :n] == torch.inf).float()

    def _choices(
        self, layout: TokenLayout, keep: Sequence[int]
    ) -> tuple[list[tuple[int, int]], list[tuple[int, ...]]]:
        """Of each sample its visual and text pivots; and: text tokens behind the image, visual
        pivots, and how many tokens each pivot chooses in turn, 0 for those that are not there."""
        drops = [i for i, (k, n) in enumerate(zip(keep, layout.n_visual)) if k < n]
        pairs = {i: self._pivots(keep[i], layout.tail[i]) for i in drops}
        image_count, text_count = (max(counts) for counts in zip(*pairs.values()))
        choices = {}
        for i, (image, text) in pairs.items():
            each, left = divmod(keep[i] - image, max(image + text, 1))
            shares = [each + (pivot < left) for pivot in range(image + text)]
            absent = image_count + text_count - len(shares)
            choices[i] = (layout.tail[i], image, *shares, *[0] * absent)
        # The others are not looked at, and do as a sample does that is.
        like = [i if i in pairs else drops[0] for i in range(layout.batch)]
        return [pairs[i] for i in like], [choices[i] for i in like]

    def _in_order(
        self, layout: TokenLayout, pivots: Tensor, counts: Sequence[tuple[int, int]], first: int
    ) -> Tensor:
        """The columns `pivots` (batch, m) of each sample in the order in which they choose, those
        that a sample does not have last.

        counts: visual and text pivots of each sample; text pivots begin at `first`.
        """
        m = pivots.shape[1]
        slots = [[*range(image), *range(first, first + text)] for image, text in counts]
        if self.config.pivot_order == "set":
            # Waits for the device, since an order of sets is known on the host alone.
            columns = pivots.tolist()
            for i, (row, begin) in enumerate(zip(columns, layout.lengths)):
                slot_of = {row[slot] - (layout.n - begin): slot for slot in slots[i]}
                slots[i] = [slot_of[place] for place in set(list(slot_of))]
        order = [[*row, *(slot for slot in range(m) if slot not in row)] for row in slots]
        if all(row == list(range(m)) for row in order):
            return pivots
        return pivots.gather(1, torch.tensor(order, device=pivots.device))


def _descending(values: Tensor, count: int) -> Tensor:
    """Columns (batch, count) of the largest `values` (batch, n), the largest first."""
    return values.argsort(dim=1, descending=True, stable=True)[:, :count]


def _exclude(cosine: Tensor, columns: Tensor) -> None:
    """Make `columns` (batch, m) of `cosine` (batch, pivots, n) infinite, in place."""
    columns = columns[:, None].expand(-1, cosine.shape[1], -1)
    cosine.scatter_(2, columns, torch.inf)
