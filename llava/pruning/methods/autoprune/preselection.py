"""How AutoPrune's pre-selection ranks the patches: by the tower's attention, and by what is new."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import TokenLayout
from ...selection import columns, left_aligned, precise, take
from .settings import AutoPruneSettings

#: Of cosines, so that patches which are alike but for a rounding are equally new.
_STEP = 2.0**-10


def cls_scores(config: AutoPruneSettings, layout: TokenLayout) -> Tensor:
    """CLS attention, 0 where a picture is padding: (batch, n)."""
    assert layout.cls is not None, "a prefill that needs it begins with it"
    scores = layout.cls
    if config.tile_scores == "normalised" and layout.tile is not None:
        scores = normalised_in_tiles(layout)
    masked = config.letterbox_mask if layout.tile is None else config.border_mask
    if masked and layout.letterbox is not None:
        scores = scores.masked_fill(layout.letterbox, 0.0)
    return scores


def normalised_in_tiles(layout: TokenLayout) -> Tensor:
    """The CLS attention (batch, n) of tiled pictures, divided by its sum over each tile."""
    assert layout.cls is not None and layout.tile is not None, "of tiled pictures"
    most = max((max(images) for images in layout.sizes if images), default=1)
    scores = layout.cls * layout.is_patch
    # One number for each tile of each image; text and newlines add nothing wherever they go.
    group = (layout.image.clamp(min=0) * most + layout.tile.clamp(min=0)).long()
    images = max(map(len, layout.sizes))
    sums = scores.new_zeros(layout.batch, max(images, 1) * most).scatter_add_(1, group, scores)
    return scores / sums.gather(1, group).clamp(min=torch.finfo(scores.dtype).tiny)


def novel_first(
    layout: TokenLayout, scores: Tensor, embeds: Tensor, candidates: Sequence[int]
) -> Tensor:
    """Scores (batch, n) that rank the `candidates[i]` best patches of sample i by `scores`
    (batch, n) before all others, and among themselves the new ones first.

    A candidate is as new as the highest cosine of its embedding (`embeds`, (batch, n, d)) to a
    candidate with a higher score is low; equally new ones stay in the order of their scores. One
    matrix product a batch, and no loop: what DivPrune's greedy choice (CVPR 2025) finds in as many
    steps as it keeps tokens, approximately.
    """
    most = max(candidates)
    order = columns(most, scores.device)
    scores = precise(scores)
    best = scores.masked_fill(~layout.is_patch, -torch.inf)
    best = best.argsort(dim=1, descending=True, stable=True)[:, :most]
    unit = F.normalize(precise(take(embeds, best)), dim=-1)
    alike = (unit @ unit.mT).masked_fill(order >= order[:, None], -1).amax(-1).div(_STEP).round()
    takes_part = left_aligned(candidates, most, scores.device)
    newest = alike.masked_fill(~takes_part, torch.inf).argsort(dim=1, stable=True)
    place = torch.empty_like(newest).scatter_(1, newest, order.expand_as(best))
    # Attention is at most 1.
    new = torch.where(takes_part, (1 + most - place).to(scores.dtype), scores.gather(1, best))
    return scores.scatter(1, best, new)
