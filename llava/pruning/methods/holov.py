"""HoloV: every stretch of the picture gets its share of T, then CLS attention picks inside it.

Zou et al., "Don't Just Chase Highlighted Tokens in MLLMs: Revisiting Visual Holistic Context
Retention", NeurIPS 2025, arXiv 2510.02912; reference: github.com/obananas/HoloV at 1d2e65e. The n
patches of an image, in raster order, are cut into `crops` runs of equal length (the first ones are
longer by one where n is no multiple). With a_i the CLS attention of the tower's last layer that
ran, mean over heads, and S_ij the cosine of two projected features of a run of m patches, S_ii
being 0:

    mean_i = sum_j S_ij / (m - 1),     var_i = sum_j (S_ij - mean_i)^2 / (m - 1)
    score_i = 1000 a_i + variance_weight var_i * (mean of 1000 a) / (mean of var + 1e-6)
    share of a run = its mean score / (sum of all runs' + 1e-6)

A run gets floor(T share) tokens, and what is left over goes to the runs of largest share, one each.
Inside a run the patches of highest a_i are kept: the variance decides about the shares alone.

The reference fixes 16 runs and T = 64 for LLaVA; here `crops` is a setting, its default 16, and T
is any. Its weight of the attention is 1 and that of the variance 0.09.

Deviations from the reference:
- Where a run gets more than it has, the reference loses what is too much and hands the decoder zero
  vectors in place of it. Here it goes to the other runs, largest share first, one each in turn.
- Its tokens stand in order of attention inside a run; here in spatial order.
- A run of a single patch has no variance and scores 1000 a; there a, a thousandth of it.
- Scores are float32, and of equal ones the lower index is first. An image of fewer patches than
  `crops` has runs of one.
- Of a tiled picture (LLaVA-1.6) the runs go through all its patches in their order, as there.

Towers without a CLS token: the authors' port to Qwen takes the attention inside that tower, which
this package does not look into, so there it is refused.

Several images and the ways of counting T: `entry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import demand, demand_count
from ..entry import EntryPruner, ImageTokens
from ..registry import register
from ..selection import precise

_ATTENTION, _TINY = 1e3, 1e-6


@register
@dataclass(frozen=True, kw_only=True)
class HoloV(EntryPruner):
    """Settings of `EntryPruner`, and

    crops: how many runs of patches an image is cut into.
    variance_weight: of the variance beside the attention, in the score that decides the shares.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "holov"
    needs_grid: ClassVar[bool] = True

    crops: int = 16
    variance_weight: float = 0.09

    @property
    def needs_cls(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        demand_count(self, "crops", 1)
        demand(self, "variance_weight", self.variance_weight >= 0, "0 or more")

    def choose(self, image: ImageTokens, count: int, embeds: Tensor) -> list[int]:
        """Waits for the device twice: for the shares, and for the attention."""
        assert image.scores is not None, "the tower was asked for it"
        sizes = run_lengths(len(image), self.crops)
        attention = precise(image.scores)
        runs = zip(torch.split(attention, sizes), torch.split(embeds, sizes))
        means = [run_score(a, features, self.variance_weight) for a, features in runs]
        counts = allocate(torch.stack(means).tolist(), sizes, count)
        chosen, first = [], 0
        for size, part in zip(sizes, counts):
            best = attention[first : first + size].argsort(descending=True, stable=True)[:part]
            chosen.append(best + first)
            first += size
        indices: list[int] = torch.cat(chosen).tolist()
        return indices

    def pairs(self, tokens: int, count: int) -> int:
        return sum(size * size for size in run_lengths(tokens, self.crops))


def run_lengths(tokens: int, crops: int) -> list[int]:
    """How many tokens each run has, none of them 0."""
    crops = min(crops, tokens)
    return [tokens // crops + (run < tokens % crops) for run in range(crops)]


@torch.no_grad()
def run_score(attention: Tensor, features: Tensor, weight: float) -> Tensor:
    """The mean score of a run: attention (m,), features (m, d). A tensor without axes."""
    size, scaled = len(attention), _ATTENTION * attention
    if size == 1:
        return scaled.mean()
    unit = normalize(precise(features), dim=-1)
    cosine = (unit @ unit.mT).fill_diagonal_(0)
    mean = cosine.sum(1, keepdim=True) / (size - 1)
    variance = (cosine - mean).square().sum(1) / (size - 1)
    return (scaled + weight * variance * scaled.mean() / (variance.mean() + _TINY)).mean()


def allocate(scores: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """How many of `total` tokens, at most the sum of `sizes`, each run keeps."""
    whole = sum(scores) + _TINY
    counts = [min(int(total * score / whole), size) for score, size in zip(scores, sizes)]
    by_share = sorted(range(len(scores)), key=lambda run: -scores[run])
    while (left := total - sum(counts)) > 0:
        room = [run for run in by_share if counts[run] < sizes[run]]
        for run in room[:left]:
            counts[run] += 1
    return counts
