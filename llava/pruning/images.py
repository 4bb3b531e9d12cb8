"""Several images of a prompt: whole tokens divided over them, and the order tokens are kept in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import TEXT, TokenLayout


def divide(total: int, sizes: Sequence[int]) -> list[int]:
    """Split `total` over images of `sizes` tokens in proportion, by largest remainder.

    No image gets more than it has; a total at or above the sum of the sizes gives all of each.
    """
    return list(sizes) if total >= sum(sizes) else _largest_remainder(total, sizes)


def share_out(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `weights`, none getting more than its cap.

    What a cap turns away goes to the others, in proportion again; where all weights left are 0,
    evenly. The parts sum to `total`, or to all caps where those are less.
    """
    parts, left = [0] * len(caps), min(total, sum(caps))
    places = list(range(len(caps)))
    while places:
        wanted = [weights[i] for i in places]
        round_parts = _largest_remainder(left, wanted if any(wanted) else [1] * len(wanted))
        full = [i for i, part in zip(places, round_parts) if part >= caps[i]]
        for i, part in zip(places, round_parts):
            parts[i] = caps[i] if i in full else part
        if not full:
            break
        left -= sum(caps[i] for i in full)
        places = [i for i in places if i not in full]
    return parts


def _largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    whole = sum(weights)
    counts = [int(total * weight // whole) for weight in weights]
    # The sort is stable: of equal remainders the first comes first.
    by_remainder = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def columns_of_images(image: Sequence[int]) -> dict[int, list[int]]:
    """Of each image that has tokens left, by its index, their columns, ascending."""
    columns: dict[int, list[int]] = {}
    for column, owner in enumerate(image):
        if owner != TEXT:
            columns.setdefault(owner, []).append(column)
    return columns


def order_within_images(
    layout: TokenLayout,
    order: Tensor,
    keep: Sequence[int],
    targets: Sequence[Sequence[float]],
) -> Tensor:
    """Columns (batch, n) in the order in which they stay: text, then the best of each image.

    order: columns by rank, text first, padding last. keep: how many visual tokens of each sample
    stay; its images share them in proportion to their `targets`. Behind these come the others as
    they were ranked. Waits for the device, to see whose tokens are left.
    """
    rank = order.argsort(dim=1)
    first = layout.valid & ~layout.is_visual
    for sample, image in enumerate(layout.image.tolist()):
        images = columns_of_images(image)
        weights = [targets[sample][index] for index in images]
        caps = [len(columns) for columns in images.values()]
        for columns, count in zip(images.values(), share_out(keep[sample], weights, caps)):
            column = torch.tensor(columns, device=order.device)
            best = rank[sample, column].argsort()[:count]
            first[sample, column[best]] = True
    ahead = first.gather(1, order).to(torch.uint8)
    return order.gather(1, ahead.argsort(dim=1, descending=True, stable=True))
