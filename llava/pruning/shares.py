"""Whole tokens divided over images, views or tiles."""

from __future__ import annotations

from collections.abc import Sequence


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
        found = _largest_remainder(left, wanted if any(wanted) else [1] * len(wanted))
        full = [i for i, part in zip(places, found) if part >= caps[i]]
        for i, part in zip(places, found):
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
