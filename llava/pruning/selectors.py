"""From scores and counts to a `Selection`: top-k with stable ties, and recycling of the dropped.

Ties go to the lower index and nothing is random, so the same input always keeps the same tokens.
Text is never dropped. Newlines of tiled pictures rank below every patch, whatever a method scores
them, so that they go first; they are counted as the visual tokens that they are, and are merged
only where fewer patches are dropped than a pool holds. Counts are host integers (one a sample), so
no step waits for the device, and none sends it anything.

Recycling (AutoPrune's released code, taken from SparseVLM, arXiv 2410.04417): the best of the
dropped tokens are clustered by density peaks with k nearest neighbours (DPC-KNN, as in TCFormer,
arXiv 2204.08680) and each cluster goes on as the mean of its members. The reference breaks ties of
the density with random noise of 1e-6; here the lower index counts as denser. A pool of one token
is that token; a single cluster is a mean; only what is left is clustered.

Where a merged token stands: a token sees those that stand before it, and causality follows the
rotary positions. Under "compact" positions, which are counted after the choice, a merged token
follows the visual tokens of its centre's image, as in the reference. Under "original" ones it has
its centre's position and so its centre's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .images import order_within_images
from .layout import TEXT, TokenLayout
from .selection import (
    Merge,
    Selection,
    columns,
    left_aligned,
    precise,
    right_aligned,
    rounded,
    take,
)


def keep_top(
    layout: TokenLayout,
    scores: Tensor,
    keep: Sequence[int],
    *,
    pools: Sequence[int] | None = None,
    clusters: Sequence[int] | None = None,
    features: Tensor | None = None,
    targets: Sequence[Sequence[float]] | None = None,
    positions: str = "compact",
) -> Selection | None:
    """Keep the `keep[i]` visual tokens of sample i with the highest `scores` (batch, n), and text.

    With `pools` and `clusters`, the next `pools[i]` tokens by score are merged into `clusters[i]`
    tokens by the similarity of `features` (batch, n, d). Without features, which a layer that has
    not run cannot give, the pooled tokens stay for that layer, and `Selection.then` merges them
    by what it returns. `positions`: the policy, see the module. With `targets`, those of each image
    of each sample, the images share what is kept in proportion to them (which waits for the
    device). Returns None when nothing would change.

    Raises ValueError when a count is larger than the number of visual tokens.
    """
    for have, want in zip(layout.n_visual, keep, strict=True):
        if want > have:
            raise ValueError(f"cannot keep {want} visual tokens of {have}")
    if all(want == have for have, want in zip(layout.n_visual, keep)):
        return None
    order = (scores + layout.rank_bias).sort(dim=1, descending=True, stable=True).indices
    if targets is not None:
        order = order_within_images(layout, order, keep, targets)
    stay = _stay(layout, keep)
    added = clusters or [0] * layout.batch
    if not any(added):
        return Selection(in_sequence(order, stay), tuple(stay), tuple(keep))

    pools = pools or added
    if features is None and max(pools) > 1:
        return _merged_later(layout, order, keep, pools, added, positions)
    return _with_merged(layout, order, keep, pools, added, features, positions)


def _with_merged(
    layout: TokenLayout,
    order: Tensor,
    keep: Sequence[int],
    pools: Sequence[int],
    added: Sequence[int],
    features: Tensor | None,
    positions: str,
) -> Selection:
    """Of the ranks `order` (batch, n) text and the first `keep[i]`, and merged the pool behind."""
    stay = _stay(layout, keep)
    source = _pooled(order, stay, pools)
    cluster, centre = None, source[:, :1]
    if max(added) > 1:
        assert features is not None, "clusters are made by features"
        cluster, entry = density_peaks(take(features, source), pools, added)
        centre = source.gather(1, entry)
    merging = max(pools) > 1
    index, stands = _arranged(layout, order, stay, centre, added, positions, merging)
    merge = Merge(source, tuple(pools), cluster, max(added), **stands)
    return Selection(index, tuple(_sums(stay, added)), tuple(_sums(keep, added)), merge)


def in_sequence(order: Tensor, counts: Sequence[int]) -> Tensor:
    """The first `counts[i]` entries of row i of `order` (batch, n), ascending: (batch, most).

    Shorter rows begin with zeros.
    """
    most = max(counts)
    if min(counts) == most:
        return order[:, :most].sort(dim=1).values
    blank = _zeros(most, order.device)
    parts = [(blank[: most - count], row[:count]) for row, count in zip(_rows(order), counts)]
    return _joined(parts).sort(dim=1).values


def _stay(layout: TokenLayout, keep: Sequence[int]) -> list[int]:
    """How many of each sample's first ranks go on as they are: text ranks before all others."""
    return _sums(layout.lengths, [-n for n in layout.n_visual], keep)


def _sums(*counts: Sequence[int]) -> list[int]:
    return [sum(parts) for parts in zip(*counts, strict=True)]


def _rows(values: Tensor) -> list[Tensor]:
    return [values[i] for i in range(values.shape[0])]


def _joined(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of equal length that are each given in parts, as one tensor by one copy."""
    return torch.cat([part for parts in rows for part in parts]).view(len(rows), -1)


@lru_cache(maxsize=16)
def _blank(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(size, dtype=torch.long, device=device)


def _zeros(width: int, device: torch.device) -> Tensor:
    return _blank(rounded(width), device)[:width]


def _pooled(order: Tensor, stay: Sequence[int], pools: Sequence[int]) -> Tensor:
    """The `pools[i]` entries of row i of `order` behind the first `stay[i]`: (batch, most).

    Shorter rows end with zeros.
    """
    most = max(pools)
    if min(stay) == max(stay) and min(pools) == most:
        return order[:, stay[0] : stay[0] + most]
    blank = _zeros(most, order.device)
    spans = zip(_rows(order), stay, pools)
    return _joined([(row[start : start + p], blank[: most - p]) for row, start, p in spans])


def _merged_later(
    layout: TokenLayout,
    order: Tensor,
    keep: Sequence[int],
    pools: Sequence[int],
    added: Sequence[int],
    positions: str,
) -> Selection:
    """What stays and behind it, by rank, what is to be merged; `then` merges it."""
    visual = tuple(_sums(keep, pools))
    stay = _stay(layout, keep)
    lengths = tuple(_sums(stay, pools))
    apart = _in_front(positions, layout)
    index = in_sequence(order, stay if apart else lengths)
    if apart:
        spans = [(count, pool, 0) for count, pool in zip(stay, pools)]
        index = _in_front_of_tails(index, _pooled(order, stay, pools), spans)

    def then(left: TokenLayout, features: Tensor) -> Selection:
        if apart:
            rank = _real_first(left)
        else:
            place = order.argsort(dim=1).gather(1, index)
            rank = (left.rank_bias - place).sort(dim=1, descending=True).indices
        return _with_merged(left, rank, keep, pools, added, features, positions)

    return Selection(index, lengths, visual, then=then)


def _in_front(positions: str, layout: TokenLayout) -> bool:
    """Whether merged tokens stand in front of the text that the layout's tails count."""
    return positions == "compact" and all(len(images) <= 1 for images in layout.sizes)


def _real_first(layout: TokenLayout) -> Tensor:
    """Columns (batch, n) in order, but those that are padding last."""
    column = columns(layout.n, layout.device)
    if not layout.padded:
        return column.expand(layout.batch, -1)
    starts = [layout.n - length for length in layout.lengths]
    return _joined([(column[start:], column[:start]) for start in starts])


def _arranged(
    layout: TokenLayout,
    order: Tensor,
    stay: Sequence[int],
    centre: Tensor,
    added: Sequence[int],
    positions: str,
    merging: bool,
) -> tuple[Tensor, dict[str, Any]]:
    """`Selection.index`, and `place` or `index` of `Merge` if tokens are `merging` and not only
    moving: of the first `stay[i]` entries of row i of `order` and of `added[i]` merged tokens,
    whose centres are in the columns `centre` (batch, most)."""
    device, most = order.device, max(stay)
    width, clusters = max(_sums(stay, added)), max(added)
    kept = in_sequence(order, stay)
    in_front, spans = _in_front(positions, layout), list(zip(stay, added, layout.tail))
    if in_front and merging and _alike(spans):
        return _in_front_of_tails(kept, centre, spans), {"place": most - layout.tail[0]}
    tokens = [centre]
    if merging:
        number = torch.arange(layout.n, layout.n + clusters, device=device)
        tokens.append(number.expand(layout.batch, -1))
    if in_front:
        index, *merged = (_in_front_of_tails(kept, token, spans) for token in tokens)
        return index, {"index": merged[0]} if merging else {}

    # Old columns sort by 2j; a merged token by its centre's, or behind its image's last.
    if positions == "compact":
        image = layout.image.gather(1, centre)[..., None]
        same = (layout.image[:, None, :] == image) & (image != TEXT)
        column = columns(layout.n, device)
        sorts = 2 * torch.where(same, column, -1).amax(-1) + 1
    else:
        sorts = 2 * centre
    keys = torch.cat(
        [
            torch.where(right_aligned(stay, most, device), 2 * kept, -1),
            torch.where(left_aligned(added, clusters, device), sorts, -1),
        ],
        1,
    )
    chosen = keys.argsort(dim=1, stable=True)[:, -width:]
    index, *merged = (torch.cat([kept, new], 1).gather(1, chosen) for new in tokens)
    return index, {"index": merged[0]} if merging else {}


def _alike(spans: Sequence[tuple[int, int, int]]) -> bool:
    """Whether all samples have the same."""
    return spans.count(spans[0]) == len(spans)


def _in_front_of_tails(
    kept: Tensor, merged: Tensor, spans: Sequence[tuple[int, int, int]]
) -> Tensor:
    """`kept` (batch, m) with `merged` (batch, c) put in: (batch, most).

    spans: of each sample the entries of `kept` and of `merged` that count, the last and the first
    ones, and how many of the former stand behind the latter.
    """
    most = kept.shape[1]
    if _alike(spans):
        place = most - spans[0][2]
        return torch.cat([kept[:, :place], merged, kept[:, place:]], 1)
    width = max(count + new for count, new, _ in spans)
    blank = _zeros(width, kept.device)
    rows = [
        (
            blank[: width - count - new],
            row[most - count : most - tail],
            token[:new],
            row[most - tail :],
        )
        for row, token, (count, new, tail) in zip(_rows(kept), _rows(merged), spans)
    ]
    return _joined(rows)


def density_peaks(
    features: Tensor, pools: Sequence[int], clusters: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Cluster pooled tokens by density peaks.

    features: (batch, p, d); pools: how many entries of each row are real, the first ones;
    clusters: clusters wanted per sample, c = their maximum.

    Distance is L2 / sqrt(d). Density is exp(-mean squared distance to the k nearest members, the
    point itself included), k being the number of clusters. Separation is the distance to the
    nearest denser point, or the largest distance of the pool for the densest. The centres are the
    points of largest density x separation, best first; every member joins its nearest centre, a
    centre itself. With a single cluster there is nothing to find out: the first member, which the
    caller ranked highest, stands for it.

    Returns (cluster (batch, p) with value c on padding, centre (batch, c) as entries of the pool).
    """
    device, (batch, p, d) = features.device, features.shape
    c = max(clusters)
    real, present = _unless_all(pools, p, device), _unless_all(clusters, c, device)
    if c == 1:
        alone = torch.zeros(batch, p, dtype=torch.long, device=device)
        return alone if real is None else alone.where(real, c), alone[:, :1]
    points = precise(features)
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / d**0.5
    far = distance
    if real is not None:
        pair = real[:, None, :] & real[:, :, None]
        far, distance = distance.where(pair, torch.inf), distance.where(pair, 0)

    squared = far.topk(c, dim=-1, largest=False).values.square()
    if present is None:
        spread = squared.mean(-1)
    else:
        squared = squared.where(present[:, None] & squared.isfinite(), 0)
        spread = squared.sum(-1) / present.sum(-1, keepdim=True).clamp(min=1)
    density = torch.exp(-spread)
    if real is not None:
        density = density.where(real, -torch.inf)

    rank = density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    denser = rank[:, None, :] < rank[:, :, None]
    separation = far.where(denser, torch.inf).amin(-1)
    peak = density * torch.minimum(separation, distance.amax((1, 2))[:, None])
    if real is not None:
        peak = peak.where(real, -torch.inf)
    centre = peak.argsort(dim=1, descending=True, stable=True)[:, :c]

    to_centre = far.gather(2, centre[:, None, :].expand(-1, p, -1))
    if present is not None:
        to_centre = to_centre.where(present[:, None], torch.inf)
    number = columns(c, device).expand(batch, -1)
    cluster = to_centre.argmin(-1)
    pinned = cluster.scatter(1, centre, number)
    if present is not None:
        is_centre = torch.zeros_like(cluster, dtype=torch.bool).scatter(1, centre, present)
        pinned = pinned.where(is_centre, cluster)
    return pinned if real is None else pinned.where(real, c), centre


def _unless_all(counts: Sequence[int], width: int, device: torch.device) -> Tensor | None:
    """`left_aligned`, None where every entry counts."""
    return None if min(counts) == width else left_aligned(counts, width, device)
