"""From scores and counts to a `Selection`: top-k with stable ties, and recycling of the dropped.

Ties go to the lower index and nothing is random, so the same input always keeps the same tokens.
Text is never dropped. Newlines of tiled pictures rank below every patch, whatever a method scores
them, so that they go first; they are counted as the visual tokens that they are, and are merged
only where fewer patches are dropped than a pool holds. Counts are host integers (one a sample), so
no step waits for the device.

Recycling (AutoPrune's released code, taken from SparseVLM, arXiv 2410.04417): the best of the
dropped tokens are clustered by density peaks with k nearest neighbours (DPC-KNN, as in TCFormer,
arXiv 2204.08680) and each cluster goes on as the mean of its members. The reference breaks ties of
the density with random noise of 1e-6; here the lower index counts as denser.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .images import order_within_images
from .layout import TEXT, Merge, Selection, TokenLayout, precise, take


def keep_top(
    layout: TokenLayout,
    scores: Tensor,
    keep: Sequence[int],
    *,
    pools: Sequence[int] | None = None,
    clusters: Sequence[int] | None = None,
    features: Tensor | None = None,
    targets: Sequence[Sequence[float]] | None = None,
) -> Selection | None:
    """Keep the `keep[i]` visual tokens of sample i with the highest `scores` (batch, n), and text.

    With `pools` and `clusters`, the next `pools[i]` tokens by score are merged into `clusters[i]`
    tokens by the similarity of `features` (batch, n, d). A merged token follows the visual tokens
    of its centre's image. With `targets`, those of each image of each sample, the images share what
    is kept in proportion to them (which waits for the device). Returns None when nothing would
    change.

    Raises ValueError when a count is larger than the number of visual tokens.
    """
    for have, want in zip(layout.n_visual, keep, strict=True):
        if want > have:
            raise ValueError(f"cannot keep {want} visual tokens of {have}")
    if all(want == have for have, want in zip(layout.n_visual, keep, strict=True)):
        return None
    device = layout.image.device
    keep_column = torch.tensor(keep, device=device)[:, None]
    visual = layout.is_visual
    scores, newline = scores.masked_fill(~visual, -torch.inf), layout.is_newline
    if newline is not None:
        # They show nothing to be ranked by: whatever their score, they are the first to go.
        scores = scores.masked_fill(newline, torch.finfo(scores.dtype).min)
    if targets is None:
        order = scores.argsort(dim=1, descending=True, stable=True)
    else:
        order = order_within_images(layout, scores, keep, targets)
    columns = torch.arange(layout.n, device=device).expand(layout.batch, -1)
    rank = torch.empty_like(order).scatter_(1, order, columns)
    kept = torch.where(visual, rank < keep_column, layout.valid)

    added = tuple(clusters) if clusters is not None else (0,) * layout.batch
    lengths = tuple(
        length - have + want + new
        for length, have, want, new in zip(layout.lengths, layout.n_visual, keep, added)
    )
    n_visual = tuple(want + new for want, new in zip(keep, added))
    width = max(lengths)
    valid = _right_aligned(lengths, width, device) if min(lengths) < width else None

    if not any(added):
        # False sorts before True and the sort is stable: the kept columns end up at the right,
        # in order, and a shorter sample is filled up on the left with columns it does not need.
        index = kept.to(torch.uint8).argsort(dim=1, stable=True)[:, layout.n - width :]
        return Selection(index, valid, lengths, n_visual)

    assert pools is not None and features is not None, "clusters are made of pools, by features"
    pool_width, cluster_width = max(pools), max(added)
    in_pool = _left_aligned(pools, pool_width, device)
    source = (keep_column + torch.arange(pool_width, device=device)).clamp(max=layout.n - 1)
    source = order.gather(1, source)
    cluster, centre = density_peaks(take(features, source), in_pool, added)
    centre_column = source.gather(1, centre)

    # Old columns sort by 2j; a merged token by the odd number after its image's last column.
    image = layout.image.gather(1, centre_column)
    same = (layout.image[:, None, :] == image[..., None]) & (image != TEXT)[..., None]
    last = torch.where(same, columns[:, None, :], -1).amax(-1)
    present = _left_aligned(added, cluster_width, device)
    key = torch.cat(
        [
            torch.where(kept, 2 * columns, -1),
            torch.where(present, 2 * last + 1, -1),
        ],
        1,
    )
    chosen = key.argsort(dim=1, stable=True)[:, key.shape[1] - width :]
    is_merged = chosen >= layout.n
    index = torch.where(
        is_merged,
        centre_column.gather(1, (chosen - layout.n).clamp(min=0)),
        chosen.clamp(max=layout.n - 1),
    )
    column = torch.full((layout.batch, cluster_width + 1), width - 1, device=device)
    slot = torch.where(is_merged, chosen - layout.n, cluster_width)
    new_columns = torch.arange(width, device=device).expand(layout.batch, -1)
    column = column.scatter_(1, slot, new_columns)[:, :cluster_width]
    column = torch.where(present, column, width - 1)
    merge = Merge(source, cluster, column, present, tuple(pools))
    return Selection(index, valid, lengths, n_visual, merge)


def density_peaks(
    features: Tensor, member: Tensor, clusters: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Cluster pooled tokens by density peaks.

    features: (batch, p, d); member: (batch, p), True on real entries (the first ones of each row);
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
    if c == 1:
        return (~member).long(), torch.zeros(batch, 1, dtype=torch.long, device=device)
    points = precise(features)
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / d**0.5
    pair = member[:, None, :] & member[:, :, None]
    far = distance.masked_fill(~pair, torch.inf)

    wanted = torch.tensor(clusters, device=device)
    nearest = far.topk(min(c, p), dim=-1, largest=False).values
    counted = torch.arange(nearest.shape[-1], device=device) < wanted[:, None, None]
    squared = torch.where(counted & nearest.isfinite(), nearest.square(), 0).sum(-1)
    density = torch.exp(-squared / wanted[:, None].clamp(min=1)).masked_fill(~member, -torch.inf)

    index = torch.arange(p, device=device)
    tie = (density[:, None, :] == density[:, :, None]) & (index[None, :] < index[:, None])
    denser = (density[:, None, :] > density[:, :, None]) | tie
    widest = distance.masked_fill(~pair, 0).amax((1, 2))[:, None]
    separation = far.masked_fill(~denser, torch.inf).amin(-1)
    separation = torch.minimum(separation, widest)
    peak = (density * separation).masked_fill(~member, -torch.inf)
    centre = peak.argsort(dim=1, descending=True, stable=True)[:, :c]

    to_centre = far.gather(2, centre[:, None, :].expand(-1, p, -1))
    present = _left_aligned(clusters, c, device)
    cluster = to_centre.masked_fill(~present[:, None, :], torch.inf).argmin(-1)
    number = torch.arange(c, device=device).expand(batch, -1)
    pinned = cluster.scatter(1, centre, number)
    is_centre = torch.zeros_like(member).scatter(1, centre, present)
    cluster = torch.where(is_centre, pinned, cluster)
    return torch.where(member, cluster, c), centre


def _left_aligned(counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    return torch.arange(width, device=device) < torch.tensor(counts, device=device)[:, None]


def _right_aligned(counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    start = width - torch.tensor(counts, device=device)
    return torch.arange(width, device=device) >= start[:, None]
