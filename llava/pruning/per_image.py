"""A budget for each image of a prompt: the order in which tokens are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import TEXT, TokenLayout
from .shares import share_out


def columns_of_images(image: Sequence[int]) -> dict[int, list[int]]:
    """Of each image that has tokens left, by its index, their columns, ascending."""
    columns: dict[int, list[int]] = {}
    for column, owner in enumerate(image):
        if owner != TEXT:
            columns.setdefault(owner, []).append(column)
    return columns


def order_within_images(
    layout: TokenLayout,
    scores: Tensor,
    keep: Sequence[int],
    targets: Sequence[Sequence[float]],
) -> Tensor:
    """Columns (batch, n) in the order in which they stay: the best of each image first.

    keep: how many visual tokens of each sample stay; its images share them in proportion to their
    `targets`. Behind these come the others by `scores` (batch, n), which are -inf on what is no
    visual token. Waits for the device, to see whose tokens are left.
    """
    chosen = torch.zeros_like(layout.is_visual)
    for sample, image in enumerate(layout.image.tolist()):
        columns = columns_of_images(image)
        weights = [targets[sample][owner] for owner in columns]
        caps = [len(own) for own in columns.values()]
        for own, count in zip(columns.values(), share_out(keep[sample], weights, caps)):
            here = torch.tensor(own, device=scores.device)
            best = scores[sample, here].argsort(descending=True, stable=True)[:count]
            chosen[sample, here[best]] = True
    order = scores.argsort(dim=1, descending=True, stable=True)
    first = chosen.gather(1, order).to(torch.uint8)
    return order.gather(1, first.argsort(dim=1, descending=True, stable=True))
